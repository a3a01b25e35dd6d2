// SPDX-License-Identifier: Apache-2.0
// CpuOps: the CPU backend. Every operation in FP32; experts may round their inputs.
//
// Bodies split the work and find the rows; kernels/ does the arithmetic, once per instruction set.
// With CpuIsa::kPlain the backend is the reference that the others are tested against. A row's
// result depends on nothing but the row (and its sequence's state), never on other rows, their
// number or the thread count: every sum has one fixed order.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "backends/cpu/hyper_connections.h"
#include "backends/cpu/kernels/panel_matrix.h"
#include "backends/cpu/row_decoder.h"
#include "backends/cpu/row_math.h"
#include "backends/cpu/weight_memory.h"
#include "core/thread_pool.h"
#include "ops/ops.h"
#include "ops/sampling.h"

namespace quatrain {

/// A weight as panels, or, without vector kernels, as the checkpoint stores it.
struct CpuWeight {
  std::shared_ptr<std::byte> memory;  // what `panels` or `stored` points into
  std::optional<PanelMatrix> panels;
  QuantMatrix stored;
};

class CpuLinear final : public PackedLinear {
 public:
  CpuWeight weight;
};

class CpuExperts final : public PackedExperts {
 public:
  struct Expert {
    CpuWeight w1, w3, w2;
    float input_scale = 0;   // of w1 and w3
    float hidden_scale = 0;  // of w2
  };
  std::vector<Expert> experts;
};

/// Rows of activations as int8.
class Int8Rows {
 public:
  /// Room for `rows` of up to `width` values; never shrinks.
  void reserve(std::int64_t rows, std::int64_t width);
  void set(const CpuKernels& kernels, std::int64_t row, const float* x, std::int64_t n);
  const Int8Activations* row(std::int64_t i) const { return groups_.get() + i * groups_per_row_; }

 private:
  std::int64_t rows_ = 0;
  std::int64_t groups_per_row_ = 0;
  std::unique_ptr<Int8Activations[]> groups_;
};

/// Memory for the inputs of matrix tiles.
class TileMemory {
 public:
  /// Room for `blocks` of 16 rows of up to `width` values, each as `parts` BF16 values.
  void reserve(std::int64_t blocks, std::int64_t width, int parts);
  /// Makes rows that wide; what they held is lost. Returns how many blocks there is room for.
  std::int64_t set_width(std::int64_t width, int parts);
  std::int64_t groups() const { return groups_; }
  /// Blocks [first, first + count).
  TileInputs blocks(std::int64_t first, std::int64_t count) const;

 private:
  std::int64_t value_bytes_ = 0;
  std::int64_t scale_bytes_ = 0;
  std::int64_t groups_ = 0;
  int parts_ = 1;
  std::shared_ptr<std::byte> values_;
  std::shared_ptr<std::byte> scales_;
};

class CpuOps final : public Ops {
 public:
  /// `threads` = 0 takes one per core, or one per entry of `cpus`, to which threads are pinned.
  /// The machine must have `isa`.
  explicit CpuOps(int threads = 0, CpuIsa isa = best_isa(), const std::vector<int>& cpus = {})
      : CpuOps(place_threads(cpu_topology(), threads, cpus), isa) {}
  /// With threads on these places.
  explicit CpuOps(std::vector<ThreadPlace> places, CpuIsa isa = best_isa())
      : kernels_(select_kernels(isa)), pool_(std::move(places)) {
    thread_angles_.resize(static_cast<std::size_t>(pool_.threads()));
  }

  std::string_view backend_name() const override { return "cpu"; }
  DType activation_dtype() const override { return DType::kF32; }
  MemoryInfo memory() override;
  Buffer allocate(std::int64_t bytes) override;
  void upload(const Tensor& device, const void* host) override;
  void download(void* host, const Tensor& device) override;
  void zero(const Tensor& device) override;
  void copy(const Tensor& to, const Tensor& from) override;

  std::unique_ptr<PackedLinear> pack_linear(const QuantMatrix& w) override;
  std::unique_ptr<PackedExperts> make_experts(std::string name, std::int64_t count,
                                              std::int64_t hidden,
                                              std::int64_t intermediate) override;
  void pack_expert(PackedExperts& experts, std::int64_t e, const QuantMatrix& w1,
                   const QuantMatrix& w3, const QuantMatrix& w2) override;
  void reserve(const StepLimits& limits) override;
  std::int64_t reserve_bytes(const StepLimits& limits) override;

#define QT_OVERRIDE(Args, method) void method(const op::Args& args) override;
  QT_FOR_EACH_PLAIN_OP(QT_OVERRIDE)
#undef QT_OVERRIDE
  void linears(const op::Linears& args) override;
  void hc_pre_norm(const op::HcPreNorm& args) override;
  void hc_post_pre_norm(const op::HcPostPreNorm& args) override;

  ThreadPool& pool() { return pool_; }
  CpuIsa isa() const { return kernels_.isa; }

 private:
  // Heads of one token that one task of attend() serves: they share its keys.
  static constexpr std::int64_t kHeadsPerTask = 4;
  // Work below this many bytes or operations takes less time than waking a thread.
  static constexpr std::int64_t kSmallWork = 32 << 10;

  // Rows of inputs that are rounded to FP8 at a time, those of all groups of a token among them.
  static constexpr std::int64_t kRoundedGroups = 64;
  // Groups of a grouped linear whose inputs matrix tiles take.
  static constexpr std::int64_t kMostTileGroups = 64;

  bool has_panels() const { return kernels_.float_tile > 0; }
  // As pool_.parallel_for, but on this thread alone when all `work` together is small, and in some
  // ranges for each thread however small `grain` is: taking one costs a cache line's way between
  // cores.
  template <class Body>
  void parallel_for(std::int64_t n, std::int64_t grain, std::int64_t work, Body&& body) {
    if (work <= kSmallWork && n > 0)
      body(std::int64_t{0}, n, 0);
    else
      pool_.parallel_for(n, std::max(grain, n / (8 * pool_.threads())), body);
  }
  // The same over `lists` times the n panels of a matrix (or parts of them), those of each node
  // first: body(list, panel, thread). Panels lie where threads of a node have packed them.
  template <class Body>
  void for_each_panel(std::int64_t lists, std::int64_t n, std::int64_t grain, std::int64_t work,
                      Body&& body) {
    if (lists == 0 || n == 0) return;
    std::array<std::int64_t, ThreadPool::kMostGroups> ends{};
    const int groups = work <= kSmallWork ? 1 : pool_.groups();
    for (int g = 0; g < groups; ++g)
      ends[static_cast<std::size_t>(g)] =
          lists * (g + 1 == groups ? n : pool_.share_begin(n, g + 1));
    const auto range = [&](std::int64_t begin, std::int64_t end, int thread) {
      int g = 0;
      while (begin >= ends[static_cast<std::size_t>(g)]) ++g;
      const std::int64_t before = g == 0 ? 0 : ends[static_cast<std::size_t>(g - 1)];
      const std::int64_t share = (ends[static_cast<std::size_t>(g)] - before) / lists;
      for (std::int64_t i = begin; i < end; ++i)
        body((i - before) / share, before / lists + (i - before) % share, thread);
    };
    if (work <= kSmallWork)
      range(0, lists * n, 0);
    else
      pool_.parallel_for_near({ends.data(), static_cast<std::size_t>(groups)},
                              std::max(grain, lists * n / (8 * pool_.threads())), range);
  }

  CpuWeight pack(const QuantMatrix& w);
  float* thread_row(int thread) { return thread_rows_.get() + 2 * thread * row_capacity_; }
  float* thread_scores(int thread) { return thread_scores_.get() + thread * score_capacity_; }
  std::int32_t* thread_order(int thread) { return thread_order_.get() + thread * key_capacity_; }
  const float** thread_keys(int thread) { return thread_keys_.get() + thread * key_capacity_; }

  // linear.cpp
  struct LinearRows;
  void linear_rows(const CpuLinear& w, const LinearRows& rows);
  /// As fp8_round_row() of activation_quant.h.
  using RoundRow = void(const float* x, std::int64_t n, float* out);
  void rounded_linear_rows(const CpuLinear& w, const LinearRows& rows, RoundRow* round);
  void grouped(const PackedLinear* w, const LinearRows& rows, LinearActivations activations);
  void panel_linear(const PanelMatrix& w, std::int64_t groups, const float* x,
                    std::int64_t x_stride, std::int64_t tokens, float* out,
                    std::int64_t out_stride);
  void multiply_panels(const PanelMatrix& w, std::int64_t groups, const float* x,
                       std::int64_t x_stride, std::int64_t tokens, float* out,
                       std::int64_t out_stride, std::int64_t begin, std::int64_t end) const;

  bool has_tiles(const PanelMatrix& w, std::int64_t groups) const;
  void tile_linear(const PanelMatrix& w, std::int64_t groups, const float* x, std::int64_t x_stride,
                   std::int64_t tokens, float* out, std::int64_t out_stride);
  template <class Inputs>
  void multiply_tiles(const PanelMatrix& w, std::int64_t groups, Inputs&& inputs,
                      std::int64_t tokens, float* out, std::int64_t out_stride);
  float* thread_sums(int thread) {
    return reinterpret_cast<float*>(thread_sums_.get()) + thread * kTileTokens * kTileRows;
  }

  // hyper_connections.cpp
  template <class Body>
  void each_site(const Tensor& streams, const Tensor& fn, float eps, const op::HcPost* update,
                 Body&& body);
  void collapse_streams(const float* streams, const float* pre, std::int64_t hc, std::int64_t width,
                        bool share, float* out);
  void enter_site(const op::HcPost* update, const op::HcPre& args, const op::HcPreNorm* norm);

  // attention.cpp
  void score_keys(const op::IndexSelect& args, std::int64_t r, std::int64_t begin, std::int64_t end,
                  int thread, float* scores);

  // experts.cpp
  void sort_slots_by_expert(const op::Experts& args);
  void round_expert_inputs(const op::Experts& args);
  void round_hidden(const op::Experts& args);
  bool takes_tiles(std::int32_t e, const CpuWeight& w) const;
  std::int64_t panels_per_task(const op::Experts& args, std::int64_t panels,
                               std::int64_t most) const;
  void expand_expert_rows(const op::Experts& args, bool first);
  void expert_hidden(const op::Experts& args);
  void hidden_by_panels(const op::Experts& args, std::int32_t e, std::int64_t p, int thread);
  void hidden_by_tiles(const op::Experts& args, std::int32_t e, std::int64_t first,
                       std::int64_t last, int thread);
  void expert_outputs(const op::Experts& args);
  void outputs_by_panel(const op::Experts& args, std::int32_t e, std::int64_t p, int thread);
  void outputs_by_tiles(const op::Experts& args, std::int32_t e, std::int64_t first,
                        std::int64_t last, int thread);
  void combine_outputs(const op::Experts& args);
  bool exact_input(const op::Experts& args, const CpuWeight& w) const;
  std::int64_t expert_work(const op::Experts& args) const;
  template <class Body>
  void for_each_pass(std::int32_t e, Body&& body) const;
  TileInputs expert_tiles(std::int32_t e) const;
  template <class Body>
  void for_each_tile_pass(std::int32_t e, Body&& body) const;
  template <class Out>
  void multiply_expert(const CpuWeight& w, std::int64_t p, const Int8Rows* int8, const float* x,
                       std::int64_t x_per_row, std::int64_t int8_per_row,
                       std::span<const std::int32_t> slots, int thread, Out&& out);

  const CpuKernels& kernels_;
  ThreadPool pool_;
  WeightMemory weights_;

  // Scratch per thread: two decoded weight rows; the scores, order and keys of a few queries.
  std::int64_t row_capacity_ = 0;
  std::int64_t score_capacity_ = 0;
  std::int64_t key_capacity_ = 0;
  std::unique_ptr<float[]> thread_rows_;
  std::unique_ptr<float[]> thread_scores_;
  std::unique_ptr<std::int32_t[]> thread_order_;
  std::unique_ptr<const float*[]> thread_keys_;
  std::vector<RopeAngles> thread_angles_;
  std::unique_ptr<float[]> index_scores_;  // [key_capacity_] of one row
  // For matrix tiles: the sums of a task per thread, the inputs of a linear or of the experts.
  std::shared_ptr<std::byte> thread_sums_;
  std::int64_t widest_tile_linear_ = 0;
  TileMemory tile_memory_;
  std::vector<float> rounded_inputs_;  // kRoundedGroups rows of the widest FP8 linear
  std::vector<SamplerWorkspace> samplers_;

  // Scratch of experts(), by slot = t * k + i.
  std::vector<std::int32_t> expert_begin_;   // [E] into sorted_slots_
  std::vector<std::int32_t> expert_end_;     // [E]
  std::vector<std::int32_t> tile_block_;     // [E] first block of an expert in tile_memory_
  std::vector<std::int32_t> sorted_slots_;   // [T * k]
  std::vector<std::int32_t> active_;         // experts with at least one slot
  std::unique_ptr<float[]> expert_inputs_;   // [T * k, D] rounded inputs
  std::unique_ptr<float[]> expert_hidden_;   // [T * k, I]
  std::unique_ptr<float[]> expert_outputs_;  // [T * k, D]
  Int8Rows int8_inputs_;                     // [T, D]
  Int8Rows int8_hidden_;                     // [T * k, I]
};

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// CpuOps: the reference backend. Every operation in FP32, in the plainest form that is not slow.
//
// Its bodies are the definition that fast kernels are tested against. A row's result depends on
// nothing but the row (and its sequence's state), never on other rows, their number or the thread
// count: every sum has one fixed order.
#pragma once

#include <vector>

#include "backends/cpu/row_decoder.h"
#include "core/thread_pool.h"
#include "ops/ops.h"
#include "ops/sampling.h"

namespace quatrain {

class CpuLinear final : public PackedLinear {
 public:
  std::vector<std::byte> storage;
  QuantMatrix matrix;  // points into storage
};

class CpuExperts final : public PackedExperts {
 public:
  struct Expert {
    std::unique_ptr<CpuLinear> w1, w3, w2;
  };
  std::vector<Expert> experts;
};

class CpuOps final : public Ops {
 public:
  /// `threads` = 0 takes one per core.
  explicit CpuOps(int threads = 0) : pool_(threads) {}

  std::string_view backend_name() const override { return "cpu"; }
  DType activation_dtype() const override { return DType::kF32; }
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

#define QT_OVERRIDE(Args, method) void method(const op::Args& args) override;
  QT_FOR_EACH_PLAIN_OP(QT_OVERRIDE)
#undef QT_OVERRIDE

  ThreadPool& pool() { return pool_; }

 private:
  std::unique_ptr<CpuLinear> pack(const QuantMatrix& w);
  float* thread_row(int thread) { return thread_rows_.data() + 2 * thread * row_capacity_; }
  float* thread_scores(int thread) { return thread_scores_.data() + thread * score_capacity_; }
  std::int32_t* thread_order(int thread) { return thread_order_.data() + thread * score_capacity_; }
  const float** thread_keys(int thread) { return thread_keys_.data() + thread * score_capacity_; }

  // experts.cpp
  void sort_slots_by_expert(const op::Experts& args);
  void round_expert_inputs(const op::Experts& args);

  ThreadPool pool_;

  // Scratch per thread: two decoded weight rows; the scores, order and keys of one query.
  std::int64_t row_capacity_ = 0;
  std::int64_t score_capacity_ = 0;
  std::vector<float> thread_rows_;
  std::vector<float> thread_scores_;
  std::vector<std::int32_t> thread_order_;
  std::vector<const float*> thread_keys_;
  std::vector<SamplerWorkspace> samplers_;

  // Scratch of experts(), by slot = t * k + i.
  std::vector<std::int32_t> expert_begin_;  // [E] into sorted_slots_
  std::vector<std::int32_t> expert_end_;    // [E]
  std::vector<std::int32_t> sorted_slots_;  // [T * k]
  std::vector<std::int32_t> active_;        // experts with at least one slot
  std::vector<float> expert_inputs_;        // [T * k, D] quantised inputs
  std::vector<float> expert_hidden_;        // [T * k, I]
  std::vector<float> expert_outputs_;       // [T * k, D]
};

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// CudaOps: the operations on one NVIDIA GPU, in order on one stream.
//
// Activations are FP32; products round their inputs to BF16 and accumulate in FP32 on tensor cores.
// Caches are 16 bits, FP32 or packed. Methods only launch kernels: none waits, allocates or reads
// device values, so a step can be captured into a graph. Methods live in cuda_ops_*.cpp; kernels,
// which know nothing of this class, behind launch/*.h.
#pragma once

#include <cuda_runtime.h>

#include <span>
#include <vector>

#include "backends/cuda/launch/attention.h"
#include "backends/cuda/launch/cache.h"
#include "backends/cuda/launch/experts.h"
#include "backends/cuda/launch/linear.h"
#include "ops/ops.h"

namespace quatrain {

/// A weight in device memory in the layout of the checkpoint.
class CudaLinear final : public PackedLinear {
 public:
  Buffer memory;
  cuda::Matrix matrix;
};

/// All experts of a layer: every projection has one layout, so an expert is an offset. NVFP4 is in
/// the packed layout of launch/experts_layout.h, other formats in the checkpoint's.
class CudaExperts final : public PackedExperts {
 public:
  struct Projection {
    Buffer values, scales;               // of the checkpoint's layout
    Buffer global_scales, input_scales;  // FP32 [E] each
    cuda::Matrix matrix;                 // of expert 0
    bool is_set = false;
  };
  Projection w1, w3, w2;
  Buffer first, second;  // packed: w1 and w3 together, and w2

  bool packed() const { return first.data() != nullptr; }
  cuda::PackedExpertsView view() const;
};

class CudaOps final : public Ops {
 public:
  /// Uses device `ordinal`; throws Error when there is none or it is not a Hopper. Caches are F16,
  /// BF16, F32 for comparisons that their rounding would blur, or U8: packed rows, for models that
  /// keep to the grid of core/packed_row.h.
  explicit CudaOps(int ordinal = 0, DType cache_dtype = DType::kF16);
  ~CudaOps() override;

  std::string_view backend_name() const override { return "cuda"; }
  std::vector<std::string> kernel_choices() const override;
  DType activation_dtype() const override { return DType::kF32; }
  DType cache_dtype() const override { return cache_dtype_; }
  /// Weights of experts are read once for all of them: 512 rows run at half of the rate.
  std::int64_t prompt_rows() const override { return 4096; }

  MemoryInfo memory() override;
  Buffer allocate(std::int64_t bytes) override;
  void upload(const Tensor& device, const void* host) override;
  void download(void* host, const Tensor& device) override;
  void zero(const Tensor& device) override;
  void copy(const Tensor& to, const Tensor& from) override;
  Buffer allocate_host(std::int64_t bytes) override;
  void start_download(void* host, const Tensor& device) override;
  void wait() override { synchronize(); }
  std::unique_ptr<Fence> fence() override;

  std::unique_ptr<PackedLinear> pack_linear(const QuantMatrix& w) override;
  std::unique_ptr<PackedExperts> make_experts(std::string name, std::int64_t count,
                                              std::int64_t hidden,
                                              std::int64_t intermediate) override;
  void pack_expert(PackedExperts& experts, std::int64_t e, const QuantMatrix& w1,
                   const QuantMatrix& w3, const QuantMatrix& w2) override;
  void reserve(const StepLimits& limits) override;
  std::int64_t reserve_bytes(const StepLimits& limits) override;
  bool can_record() const override { return true; }
  std::unique_ptr<Recording> record(const std::function<void()>& body) override;
  std::unique_ptr<OpClock> make_clock(std::int64_t points) override;

#define QT_OVERRIDE(Args, method) void method(const op::Args& args) override;
  QT_FOR_EACH_OP(QT_OVERRIDE)
#undef QT_OVERRIDE

  cudaStream_t stream() const { return stream_; }
  const cudaDeviceProp& properties() const { return properties_; }
  /// Waits for everything issued so far.
  void synchronize();

 private:
  /// Copies weights: does not wait where `host` is pinned (see Ops::fence).
  void upload_bytes(void* device, const void* host, std::int64_t bytes);
  /// A device copy of host bytes that a packing kernel reads: valid for work issued before the next
  /// call. Load time only; reserve() frees the memory behind it.
  const void* stage(const void* host, std::int64_t bytes);
  static bool has_norm_rope(const op::NormRope& args);
  static cuda::NormRopeArgs kernel_args(const op::NormRope& args);
  static cuda::CompressArgs kernel_args(const op::Compress& args);
  cuda::AttendArgs kernel_args(const op::Attend& args);
  void round_to_grids(const op::NormRope& args);
  void product(const cuda::LinearsArgs& args);
  void product(const cuda::LinearsArgs& args, LinearActivations activations,
               std::span<const bool> precise = {});
  void fp8_product(const cuda::LinearsArgs& args);
  cuda::LinearScratch linear_scratch() const;
  Buffer allocate_zeros(std::int64_t bytes);
  void reserve_experts();
  void reserve_linears();
  void pack_projection(CudaExperts& experts, CudaExperts::Projection& p, std::int64_t e,
                       const QuantMatrix& w);
  void pack_nvfp4(CudaExperts& experts, std::int64_t e, const QuantMatrix& w,
                  cuda::PackedRows rows);
  void plain_experts(const op::Experts& args, const CudaExperts& all);
  void packed_experts(const op::Experts& args, const CudaExperts& all);
  void decode_experts(const op::Experts& args, const CudaExperts& all);
  void prefill_experts(const op::Experts& args, const CudaExperts& all);
  void prefill_fp8_experts(const op::Experts& args, const CudaExperts& all);
  cuda::PrefillArgs prefill_args(const op::Experts& args, const CudaExperts& all) const;
  void list_expert_passes(const cuda::PrefillArgs& launch, int widest);
  void combine_passes(const op::Experts& args, const cuda::PrefillArgs& launch);
  const std::int8_t* upload_tops(const QuantMatrix& w);
  void round_expert_rows(const op::Experts& args, const CudaExperts::Projection& projection,
                         const float* x, int rows, int cols, float* out);

  int ordinal_;
  DType cache_dtype_;
  cudaDeviceProp properties_{};
  cudaStream_t stream_ = nullptr;
  StepLimits limits_;
  std::int64_t* measured_ = nullptr;  // set: allocate() adds up what is asked for, and gives little
  Buffer staging_;                    // pinned
  std::int64_t staging_used_ = 0;
  Buffer load_staging_;
  std::int64_t load_staging_used_ = 0;
  Buffer load_tops_;

  // Scratch of index_select: scores [rows per pass, context / 4].
  Buffer index_scores_;
  std::int64_t index_score_rows_ = 0;

  Buffer step_latents_;     // scratch of attend: F16 [T, n]
  Buffer parked_sums_;      // and attend_parked_bytes()
  Buffer linear_scratch_;   // split or quantised inputs of steps with many rows, sums of slices
  Buffer linear_meetings_;  // and counts of blocks that have come
  Buffer rounded_inputs_;   // F32, of linears with FP8 activations in short steps

  // Scratch of experts(), by slot = t * k + i.
  struct ExpertScratch {
    Buffer offsets;     // I32 [E + 1] first sorted position of each expert
    Buffer sorted;      // I32 [T * k] slots by expert
    Buffer row_map;     // I32 [T * k] token of each slot
    Buffer row_scales;  // F32 [T * k] static global scale of each slot
    Buffer hidden;      // F32 [T * k, I]
    Buffer outputs;     // F32 [T * k, D]; before that, quantised inputs
    // Of packed experts, columns padded to whole chunks:
    Buffer inputs16;    // BF16 [T, 2 parts, D], or [T * k, 1 part, D]
    Buffer hidden16;    // BF16 [T * k, 2 parts, I]
    Buffer sync;        // barrier and flags of the decode kernel
    Buffer tiles;       // PassTile of the prefill kernel
    Buffer tile_count;  // I32
  } experts_;
};

}  // namespace quatrain

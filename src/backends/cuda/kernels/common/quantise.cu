// SPDX-License-Identifier: Apache-2.0
// nvfp4_round_rows: a block per row, half a warp per block of 16 columns.
//
// Every step is one correctly rounded operation, as in the CPU body, and no product feeds a sum.
#include <cstdint>

#include "backends/cuda/cuda_check.h"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/launch/quantise.h"
#include "core/codec.h"

namespace quatrain::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlock = 16;  // columns that share a scale

__device__ float row_maximum(const float* x, int cols, float* scratch) {
  float amax = 0;
  for (int c = static_cast<int>(threadIdx.x); c < cols; c += kThreads)
    amax = fmaxf(amax, fabsf(x[c]));
  return block_max(amax, scratch);
}

__global__ void __launch_bounds__(kThreads) nvfp4_round_rows_kernel(RoundRowsArgs args) {
  __shared__ float scratch[kReduceScratch];
  const int r = static_cast<int>(blockIdx.x);
  if (args.batch_slots != nullptr && args.batch_slots[r / args.rows_per_token] < 0) return;
  const std::int64_t source = args.row_map != nullptr ? args.row_map[r] : r;
  const float* x = args.x + source * args.cols;
  float* out = args.out + std::int64_t{r} * args.cols;
  const float global =
      args.global_scales != nullptr
          ? args.global_scales[r]
          : fmaxf(__fdiv_rn(row_maximum(x, args.cols, scratch), kE2M1Max * kE4M3Max), 1e-30f);
  // The loop bound is uniform, so that whole warps reach the shuffles. A thread writes only what it
  // alone reads from here on: out may be x.
  for (int begin = 0; begin < args.cols; begin += kThreads) {
    const int c = begin + static_cast<int>(threadIdx.x);
    const float value = c < args.cols ? x[c] : 0.0f;
    const float amax = warp_max<kBlock>(fabsf(value));
    const std::uint8_t code = e4m3_encode(__fdiv_rn(__fdiv_rn(amax, kE2M1Max), global));
    const float block_scale = e4m3_decode(code);
    const float scale = block_scale * global;
    const float unit = args.units ? block_scale : scale;
    if (c < args.cols)
      out[c] = scale > 0 ? e2m1_decode(e2m1_encode(__fdiv_rn(value, scale))) * unit : 0.0f;
  }
  if (args.row_scales != nullptr && threadIdx.x == 0) args.row_scales[r] = global;
}

}  // namespace

void nvfp4_round_rows(const RoundRowsArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return;
  nvfp4_round_rows_kernel<<<static_cast<unsigned>(args.rows), kThreads, 0, stream>>>(args);
  QT_CUDA(cudaGetLastError());
}

}  // namespace quatrain::cuda

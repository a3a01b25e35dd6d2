// SPDX-License-Identifier: Apache-2.0
// nvfp4_round_rows: a block per row, half a warp per block of 16 columns.
// fp8_quantise_rows: a warp per four rows and block of 128 columns.
//
// Every step is one correctly rounded operation, as in the CPU body, and no product feeds a sum.
#include <cstdint>

#include "backends/cuda/cuda_check.h"
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/fp8_activations.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/scalar.cuh"
#include "backends/cuda/launch/launch.h"
#include "backends/cuda/launch/matrix.h"
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

constexpr int kFp8Warps = kThreads / kWarp;
constexpr int kFp8Rows = 4;  // of a warp, all of which are asked for before any is used

/// Four columns of what a row's codes are of; zeros where there are none.
__device__ float4 load_four(const Fp8RowsArgs& args, int r, int column) {
  if (r >= args.rows || column >= args.cols) return {0, 0, 0, 0};
  const std::int64_t row = args.row_map != nullptr ? args.row_map[r] : r;
  const auto* x = reinterpret_cast<const float4*>(args.x + row * args.cols + column);
  if (args.up == nullptr) return *x;
  const auto* up = reinterpret_cast<const float4*>(args.up + row * args.cols + column);
  return swiglu_values(*x, *up, args.limit);
}

/// x counts kFp8Rows rows, y groups of kFp8Warps blocks of columns.
__global__ void __launch_bounds__(kThreads) fp8_rows_kernel(Fp8RowsArgs args) {
  let_next_start();
  wait_for_previous();
  const int block = static_cast<int>(blockIdx.y) * kFp8Warps + warp_id();
  const int column = block * kFp8ActivationBlock + 4 * lane_id();
  if (block * kFp8ActivationBlock >= args.cols) return;
  const int first = static_cast<int>(blockIdx.x) * kFp8Rows;
  float4 x[kFp8Rows];
#pragma unroll
  for (int i = 0; i < kFp8Rows; ++i) x[i] = load_four(args, first + i, column);
#pragma unroll
  for (int i = 0; i < kFp8Rows; ++i) {
    const float scale = fp8_scale_of(x[i]);
    const std::uint32_t codes = fp8_codes(x[i], scale);
    const std::int64_t r = first + i;
    if (r >= args.rows) return;
    if (args.scales != nullptr && lane_id() == 0)
      args.scales[r * args.scale_row + block * args.scale_block] = scale;
    if (column >= args.cols) continue;
    const std::int64_t to = r * args.cols + column;
    if (args.codes != nullptr) *reinterpret_cast<std::uint32_t*>(args.codes + to) = codes;
    if (args.out == nullptr) continue;
    const auto value = [&](int j) {
      return e4m3_decode(static_cast<std::uint8_t>(codes >> (8 * j) & 255u)) * scale;
    };
    *reinterpret_cast<float4*>(args.out + to) = {value(0), value(1), value(2), value(3)};
  }
}

}  // namespace

void nvfp4_round_rows(const RoundRowsArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return;
  nvfp4_round_rows_kernel<<<static_cast<unsigned>(args.rows), kThreads, 0, stream>>>(args);
  QT_CUDA(cudaGetLastError());
}

void fp8_quantise_rows(const Fp8RowsArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return;
  const int blocks = ceil_div(args.cols, kFp8ActivationBlock);
  launch(fp8_rows_kernel,
         {.grid = dim3(static_cast<unsigned>(ceil_div(args.rows, kFp8Rows)),
                       static_cast<unsigned>(ceil_div(blocks, kFp8Warps))),
          .block = kThreads},
         stream, args);
}

}  // namespace quatrain::cuda

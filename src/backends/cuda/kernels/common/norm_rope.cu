// SPDX-License-Identifier: Apache-2.0
// rms_norm, rope, round_to_grid: a block per row or token.
// norm_rope: a warp per row.
#include <algorithm>

#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/norm_rope_rows.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/row_math.cuh"
#include "backends/cuda/device/scalar.cuh"
#include "backends/cuda/launch/elementwise.h"
#include "backends/cuda/launch/launch.h"

namespace quatrain::cuda {
namespace {

// A function of the width alone: the order of a row's sum must not depend on the batch.
int threads_for(int width) { return width <= 128 ? 32 : width <= 1024 ? 128 : 512; }

__global__ void rms_norm_kernel(RmsNormArgs args) {
  let_next_start();
  wait_for_previous();
  __shared__ float scratch[kReduceScratch];
  const std::int64_t begin = std::int64_t{blockIdx.x} * args.width;
  const float* x = args.x + begin;
  float* out = args.out + begin;
  float squares = 0;
  for (int i = static_cast<int>(threadIdx.x); i < args.width; i += blockDim.x)
    squares += x[i] * x[i];
  const float factor = rms_factor(block_sum(squares, scratch), args.width, args.eps);
  // Each thread writes only what it alone reads, so out may be x.
  for (int i = static_cast<int>(threadIdx.x); i < args.width; i += blockDim.x) {
    const float y = x[i] * factor;
    out[i] = args.weight != nullptr ? args.weight[i] * y : y;
  }
}

// A block per token: the angles are computed once and serve all heads.
__global__ void rope_kernel(RopeArgs args) {
  let_next_start();
  wait_for_previous();
  extern __shared__ float2 turns[];  // [pairs]
  const std::int64_t t = blockIdx.x;
  for (int p = static_cast<int>(threadIdx.x); p < args.pairs; p += blockDim.x)
    turns[p] = rotation(args.positions[t], args.inv_freq[p], args.inverse);
  __syncthreads();
  float* tail = args.x + t * args.heads * args.width + args.width - 2 * args.pairs;
  for (int i = static_cast<int>(threadIdx.x); i < args.heads * args.pairs; i += blockDim.x) {
    const int p = i % args.pairs;
    rotate_pair(tail + std::int64_t{i / args.pairs} * args.width + 2 * p, turns[p]);
  }
}

constexpr int kHeadsPerBlock = 4;

__global__ void __launch_bounds__(kHeadsPerBlock* kWarp)
    norm_rope_kernel(const __grid_constant__ NormRopeArgs args) {
  extern __shared__ float2 turns[];
  let_next_start();
  norm_rope_block(args, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x), turns);
}

__global__ void round_to_grid_kernel(RoundToGridArgs args) {
  let_next_start();
  wait_for_previous();
  extern __shared__ float row[];  // [width]
  float* x = args.x + std::int64_t{blockIdx.x} * args.width;
  for (int i = static_cast<int>(threadIdx.x); i < args.width; i += blockDim.x) row[i] = x[i];
  __syncthreads();
  round_row_to_grid(row, args.width, args.grid, args.rope_dim);
  for (int i = static_cast<int>(threadIdx.x); i < args.width; i += blockDim.x) x[i] = row[i];
}

}  // namespace

void rms_norm(const RmsNormArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return;
  launch(rms_norm_kernel,
         {.grid = static_cast<unsigned>(args.rows), .block = threads_for(args.width)}, stream,
         args);
}

void rope(const RopeArgs& args, cudaStream_t stream) {
  if (args.rows == 0 || args.pairs == 0) return;
  const int threads = args.heads * args.pairs <= 32 ? 32 : 256;
  const std::size_t shared = static_cast<std::size_t>(args.pairs) * sizeof(float2);
  launch(rope_kernel,
         {.grid = static_cast<unsigned>(args.rows), .block = threads, .shared = shared}, stream,
         args);
}

void norm_rope(const NormRopeArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return;
  launch(norm_rope_kernel,
         {.grid = dim3(norm_rope_blocks(args, kHeadsPerBlock), static_cast<unsigned>(args.rows)),
          .block = kHeadsPerBlock * kWarp,
          .shared = norm_rope_scratch(args)},
         stream, args);
}

void round_to_grid(const RoundToGridArgs& args, cudaStream_t stream) {
  if (args.rows == 0 || args.grid == Grid::kNone) return;
  const std::size_t shared = static_cast<std::size_t>(args.width) * sizeof(float);
  launch(round_to_grid_kernel,
         {.grid = static_cast<unsigned>(args.rows),
          .block = threads_for(args.width),
          .shared = shared},
         stream, args);
}

}  // namespace quatrain::cuda

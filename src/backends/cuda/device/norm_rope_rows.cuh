// SPDX-License-Identifier: Apache-2.0
// rms_norm and rope of rows that fit the registers of a warp, a warp per row: the body that several
// kernels share.
#pragma once

#include <algorithm>

#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/row_math.cuh"
#include "backends/cuda/device/scalar.cuh"
#include "backends/cuda/launch/elementwise.h"

namespace quatrain::cuda {

inline constexpr int kPairsPerLane = kMaxNormRopeWidth / 2 / kWarp;

inline int norm_rope_blocks(const NormRopeArgs::Array& array, int heads_per_block) {
  return (array.heads + heads_per_block - 1) / heads_per_block;
}
/// Blocks of that many warps that a token takes.
inline unsigned norm_rope_blocks(const NormRopeArgs& args, int heads_per_block) {
  int blocks = 0;
  for (int i = 0; i < args.count; ++i) blocks += norm_rope_blocks(args.arrays[i], heads_per_block);
  return static_cast<unsigned>(blocks);
}
/// Bytes of shared memory that a block needs.
inline std::size_t norm_rope_scratch(const NormRopeArgs& args) {
  return static_cast<std::size_t>(std::max(args.arrays[0].pairs, args.arrays[1].pairs)) *
         sizeof(float2);
}

/// Rows of token t by a block; blocks of the second array follow those of the first. Waits for the
/// kernel in front once it has its weights and rotations, which lie in `turns`.
__device__ inline void norm_rope_block(const NormRopeArgs& args, int t, int block, float2* turns) {
  const int first_blocks = (args.arrays[0].heads + warps_in_block() - 1) / warps_in_block();
  const bool is_first = block < first_blocks;
  const NormRopeArgs::Array& array = args.arrays[is_first ? 0 : 1];
  for (int p = static_cast<int>(threadIdx.x); p < array.pairs; p += blockDim.x)
    turns[p] = rotation(args.positions[t], array.inv_freq[p], false);
  const int head = (is_first ? block : block - first_blocks) * warps_in_block() + warp_id();
  const int count = head < array.heads ? array.width / 2 : 0;
  float2 weight[kPairsPerLane];
#pragma unroll
  for (int j = 0; j < kPairsPerLane; ++j) {
    const int i = lane_id() + j * kWarp;
    weight[j] = {1, 1};
    if (array.weight != nullptr && i < count)
      weight[j] = reinterpret_cast<const float2*>(array.weight)[i];
  }
  __syncthreads();
  wait_for_previous();
  auto* row =
      reinterpret_cast<float2*>(array.x + (std::int64_t{t} * array.heads + head) * array.width);
  float2 x[kPairsPerLane];
#pragma unroll
  for (int j = 0; j < kPairsPerLane; ++j) {
    const int i = lane_id() + j * kWarp;
    x[j] = {0, 0};
    if (i < count) x[j] = row[i];
  }
  float factor = 1;
  if (array.norm) {
    float squares = 0;
#pragma unroll
    for (int j = 0; j < kPairsPerLane; ++j)
      squares = fmaf(x[j].x, x[j].x, fmaf(x[j].y, x[j].y, squares));
    factor = rms_factor(warp_sum(squares), array.width, args.eps);
  }
#pragma unroll
  for (int j = 0; j < kPairsPerLane; ++j) {
    const int i = lane_id() + j * kWarp;
    if (i >= count) continue;
    float y[2] = {x[j].x * factor * weight[j].x, x[j].y * factor * weight[j].y};
    const int pair = i - (count - array.pairs);
    if (pair >= 0) rotate_pair(y, turns[pair]);
    row[i] = {y[0], y[1]};
  }
}

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// Results of attention over latents: what its kernels share. A Block is a kernel's shared memory,
// with `turns` of the output's trailing pairs and, of a block of a cluster, `part_largest`,
// `part_total` and `out` of its parts.
#pragma once

#include <cooperative_groups.h>

#include "backends/cuda/device/latent_keys.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/row_math.cuh"
#include "backends/cuda/launch/attention.h"

namespace quatrain::cuda::latent {

inline constexpr int kThreads = kWarps * kWarp;
inline constexpr int kGroupWarps = kWarps / 2;  // whose keys are summed up together
inline constexpr int kHeads = 64;               // of a block, at most
inline constexpr int kOutStride = kWidth + 8;
inline constexpr float kLog2e = 1.4426950408889634f;

/// 2^x, 0 where that would be subnormal: next to the largest weight, which is 1, it is nothing.
__device__ inline float weight_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Over the four lanes that have a row of sums together.
__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

/// The rotations of the row's queries and those that its output undoes; a barrier must follow
/// before they are used.
template <class Block>
__device__ void find_turns(const AttendArgs& args, int r, Block& shared) {
  for (int p = static_cast<int>(threadIdx.x); p < args.pairs; p += kThreads) {
    shared.turns[p] = rotation(args.batch.positions[r], args.inv_freq[p], true);
    shared.query_turns[p] = rotation(args.batch.positions[r], args.inv_freq[p], false);
  }
}

/// Columns column, column + 1 of the output; column is even.
template <class Block>
__device__ float2 turned(const AttendArgs& args, const Block& shared, int column, float a,
                         float b) {
  float pair[2] = {a, b};
  const int p = column / 2 - (kWidth / 2 - args.pairs);
  if (p >= 0) rotate_pair(pair, shared.turns[p]);
  return {pair[0], pair[1]};
}

/// Where the first part of a block of a cluster leaves its sums, as Shared::out.
__device__ inline float (*parked(const AttendArgs& args, int rank))[kOutStride] {
  const auto cluster = static_cast<int>(blockIdx.z * gridDim.y + blockIdx.y);
  return reinterpret_cast<float(*)[kOutStride]>(args.parked) +
         static_cast<std::int64_t>(cluster * 2 + rank) * kHeads;
}

/// out = the sums of all parts of this block's share of the heads; every block has kOwn of them.
/// kWarpsPerHead warps have a head at a time and ask for all that they need of the other blocks at
/// once: they answer slowly.
template <int kParts, int kOwn, int kWarpsPerHead, class Block>
__device__ void combine(const AttendArgs& args, Block& shared, int rank, int heads,
                        const float* sinks, float* out) {
  constexpr int kRanks = kParts / kOwn;
  constexpr int kFours = kWidth / (4 * kWarp * kWarpsPerHead);
  auto cluster = cooperative_groups::this_cluster();
  const int first_column = 4 * (warp_id() % kWarpsPerHead * kFours * kWarp + lane_id());
  for (int row = rank + warp_id() / kWarpsPerHead * kRanks; row < heads;
       row += latent::kWarps / kWarpsPerHead * kRanks) {
    float largest[kParts], total[kParts];
    float4 parts[kParts][kFours];
#pragma unroll
    for (int s = 0; s < kParts; ++s) {
      const Block& block = *cluster.map_shared_rank(&shared, s / kOwn);
      largest[s] = block.part_largest[s % kOwn][row];
      total[s] = block.part_total[s % kOwn][row];
#pragma unroll
      for (int p = 0; p < kFours; ++p) {
        const int column = first_column + 4 * kWarp * p;
        if (s % kOwn == kOwn - 1)
          parts[s][p] = *reinterpret_cast<const float4*>(&block.out[row][column]);
        else
          parts[s][p] =
              __ldcg(reinterpret_cast<const float4*>(&parked(args, s / kOwn)[row][column]));
      }
    }
    float best = sinks[row] * kLog2e;
#pragma unroll
    for (int s = 0; s < kParts; ++s) best = fmaxf(best, largest[s]);
    float divisor = exp2f(sinks[row] * kLog2e - best);
    float4 sum[kFours] = {};
#pragma unroll
    for (int s = 0; s < kParts; ++s) {
      const float weight = exp2f(largest[s] - best);
      divisor = fmaf(weight, total[s], divisor);
      if (total[s] == 0) continue;  // a part without keys has left no sums
#pragma unroll
      for (int p = 0; p < kFours; ++p) {
        sum[p].x = fmaf(weight, parts[s][p].x, sum[p].x);
        sum[p].y = fmaf(weight, parts[s][p].y, sum[p].y);
        sum[p].z = fmaf(weight, parts[s][p].z, sum[p].z);
        sum[p].w = fmaf(weight, parts[s][p].w, sum[p].w);
      }
    }
    const float factor = 1.0f / divisor;
#pragma unroll
    for (int p = 0; p < kFours; ++p) {
      const int column = first_column + 4 * kWarp * p;
      const float2 low = turned(args, shared, column, sum[p].x * factor, sum[p].y * factor);
      const float2 high = turned(args, shared, column + 2, sum[p].z * factor, sum[p].w * factor);
      *reinterpret_cast<float4*>(out + row * kWidth + column) = {low.x, low.y, high.x, high.y};
    }
  }
}

/// Zeros for padding: of `threads` threads, this block's are those from `first` on.
__device__ inline void clear(float* out, int heads, int first, int threads) {
  for (int i = first + static_cast<int>(threadIdx.x); i < heads * kWidth; i += threads) out[i] = 0;
}

/// The latent of row r, which is no padding, to its place in the ring.
__device__ inline void store_latent(const AttendArgs& args, int r) {
  const std::int64_t row =
      std::int64_t{args.batch.slots[r]} * args.window + args.batch.positions[r] % args.window;
  store_row(args.ring, row, args.latents + std::int64_t{r} * kWidth);
}

}  // namespace quatrain::cuda::latent

// SPDX-License-Identifier: Apache-2.0
// Warpgroup products (wgmma) of 64 rows by 32, 64 or 128 tokens for the linears, with sums as
// mma_bf16 has them.
//
// Sums have the same bits as those of mma.sync over the same 16 columns in the same order; the
// linears' test of rows in any company rests on it.
#pragma once

#include <cstdint>

#include "backends/cuda/device/linear_tile.cuh"
#include "backends/cuda/device/wgmma.cuh"

namespace quatrain::cuda {

/// Sums of 16 rows of a warp by 8 kTiles tokens: [n] as mma_bf16's d of tokens 8 n to 8 n + 7.
template <int kTiles>
using TileSums = float[kTiles][4];

/// Products run on after their instruction. Between it and the end of the wait the compiler must
/// neither read the sums nor reuse the operands: these two, after the wait, tell it so.
template <int kTiles>
__device__ inline void keep_sums(TileSums<kTiles>& d) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(d[n][i])::"memory");
}
__device__ inline void keep_operand(std::uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(a[i])::"memory");
}

/// Operands A of half a block of columns: two pairs of steps, as decode_pair() makes them.
using HalfOperands = std::uint32_t[2][2][4];
__device__ inline void keep_operands(HalfOperands& a) {
#pragma unroll
  for (auto& pair : a)
#pragma unroll
    for (auto& step : pair) keep_operand(step);
}

/// d [64, 8 kTiles] = a [64, 16] · b [8 kTiles, 16]ᵀ (+ d); warp w of the group has rows 16 w to
/// 16 w + 15.
template <LinearKind kKind, int kTiles>
__device__ inline void wgmma_tile(TileSums<kTiles>& d, const std::uint32_t (&a)[4], std::uint64_t b,
                                  bool add) {
  auto& flat = reinterpret_cast<float(&)[4 * kTiles]>(d);
  if constexpr (kIsFp8<kKind>)
    wgmma_f16<8 * kTiles>(flat, a, b, add);
  else
    wgmma_bf16<8 * kTiles>(flat, a, b, add);
}

template <int kTiles>
__device__ inline void clear_sums(TileSums<kTiles>& sums) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[n][i] = 0;
}

/// Adds up slices in order, of a block that has them all: `totals`, a thread's, kStride apart, hold
/// the sums of those before. After the last slice `sums` has all; after others the totals do.
template <int kTiles, int kStride>
__device__ inline void join_slices(float4* totals, bool has_before, bool is_last,
                                   TileSums<kTiles>& sums) {
  if (has_before)
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const float4 before = totals[n * kStride];
      sums[n][0] = before.x + sums[n][0];
      sums[n][1] = before.y + sums[n][1];
      sums[n][2] = before.z + sums[n][2];
      sums[n][3] = before.w + sums[n][3];
    }
  if (!is_last)
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
      totals[n * kStride] = {sums[n][0], sums[n][1], sums[n][2], sums[n][3]};
}

/// sums += the products of a block, scaled: by `scale`, that of all rows of the strip, and the
/// tokens' factors. FP32 instructions take their cycles from the tensor cores, so their products
/// are made once for both rows of a lane.
template <LinearKind kKind, int kTiles>
__device__ inline void add_products(const TileSums<kTiles>& products, float scale,
                                    const float* factors, TileSums<kTiles>& sums) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    if constexpr (kIsFp8<kKind>) {
      const float2 token = *reinterpret_cast<const float2*>(factors + 8 * n + lane_id() % 4 * 2);
      const float factor[2] = {scale * token.x, scale * token.y};
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] = fmaf(products[n][i], factor[i % 2], sums[n][i]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] += products[n][i];
    }
  }
}

}  // namespace quatrain::cuda

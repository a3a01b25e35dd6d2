// SPDX-License-Identifier: Apache-2.0
// Products of a unit of weights, 32 rows by 256 columns, with the inputs of one tile of tokens.
//
// A product of tensor cores has eight columns, and in decode few experts have eight tokens. So its
// columns are tokens by parts of the sum: the 16 blocks of a unit, 16 columns with one scale per
// row, make eight chains of two; a tile of 1, 2, 4 or 8 tokens, its width, has several chains
// beside each other. A token's inputs are zero but in the column of their chain, first or second
// blocks of chains have products of their own, and so every block has a sum of its own for each
// row. Its scale multiplies that sum: weights enter as bare codes, which takes neither four
// products per eight weights nor a scale for every lane that has some of them. Inputs of two BF16
// parts, for which there are no registers, take weights that carry their scales, and eight tokens
// beside each other.
//
// Whatever the width, blocks are added in the same order: four that follow each other, then these
// sums in pairs. So a token's sums have the same bits in a tile of any number.
#pragma once

#include <cstdint>

#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/fp8_fragments.cuh"
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/nvfp4_fragments.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/launch/experts_layout.h"

namespace quatrain::cuda {

/// Codes read w · 2^-126 and scales s · 2^119; inputs are multiplied by this, so that products stay
/// among the normal numbers (inputs of 2^63 and more overflow), and sums by kDecodeUnit in the end.
/// Weights that carry their scales are w · s · 2^-7, which comes to the same.
inline constexpr float kDecodeInputUnit = 0x1p64f;
inline constexpr float kDecodeUnit = 0x1p-57f;

/// Tokens beside each other that a tile of `tokens` takes; of more than 8, those of 8.
template <int kParts>
__device__ constexpr int tile_width(int tokens) {
  return kParts > 1 || tokens > 4 ? 8 : tokens > 2 ? 4 : tokens > 1 ? 2 : 1;
}
/// Sums of a slab's 16 rows and 8 tokens that a lane ends up with. Lane 4g + t has, by width:
///   1, 2: row g + 8 (t % 2) of token t / 2, of one token twice
///   4:    row g + 8 (t / 2) of tokens 2 (t % 2) and 2 (t % 2) + 1
///   8:    rows g and g + 8 of tokens 2t and 2t + 1, as mma_bf16() has them
template <int kWidth>
inline constexpr int kLaneSums = kWidth == 8   ? 4
                                 : kWidth == 4 ? 2
                                               : 1;

/// Slabs of columns are taken in this order: chains that differ in bit 0 lie beside each other.
template <int kWidth>
__device__ constexpr int slab_in_turn(int nth) {
  constexpr int kTurns = kWidth > 2 ? kWidth / 2 : 1;
  return nth % (4 / kTurns) * kTurns + nth / (4 / kTurns);
}

/// Inputs for one slab's 64 columns as a lane needs them: of kProducts products, of 8 tokens or
/// parts of them each, by pair of atoms, which is a chain.
template <int kWidth, int kProducts>
struct SlabInputs {
  uint4 values[kProducts][2];

  /// Slab `slab` of those at byte `at` of `rows`, of which lane 4n + t has that of token n %
  /// kWidth.
  template <int kRows>
  __device__ void load(const std::uint8_t* const (&rows)[kRows], int at, int slab) {
    static_assert(kProducts <= kRows);
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const bool is_lanes = (slab * 2 + pair) / kWidth == lane_id() / 4 / kWidth;
#pragma unroll
      for (int n = 0; n < kProducts; ++n)
        values[n][pair] =
            is_lanes ? *reinterpret_cast<const uint4*>(rows[n] + at + slab * 128 + pair * 64)
                     : uint4{0, 0, 0, 0};
    }
  }
};

/// sums[0] s[0] + ... + sums[3] s[3]: of four blocks that follow each other.
__device__ inline float scaled_sum(const float (&sums)[4], const float (&scales)[4]) {
  float sum = __fmul_rn(sums[0], scales[0]);
#pragma unroll
  for (int i = 1; i < 4; ++i) sum = fmaf(sums[i], scales[i], sum);
  return sum;
}

/// What a lane keeps of two numbers, plus that of the lane which keeps the other one.
__device__ inline float keep_half(bool keeps_second, int lanes_apart, float first, float second) {
  return (keeps_second ? second : first) +
         __shfl_xor_sync(kAllLanes, keeps_second ? first : second, lanes_apart);
}

/// Sums of a slab over the chains that other lanes have. values: of width 1 rows g and g + 8,
/// otherwise as mma_bf16() has them.
template <int kWidth>
__device__ inline void add_lanes(const float (&values)[4], float (&sums)[kLaneSums<kWidth>]) {
  const int quad = lane_id() % 4;
  const bool odd = quad % 2 != 0, upper = quad / 2 != 0;
  if constexpr (kWidth == 1) {
    sums[0] = keep_half(odd, 1, values[0], values[1]);
    sums[0] += __shfl_xor_sync(kAllLanes, sums[0], 2);
  } else if constexpr (kWidth == 2) {
    const float token0 = keep_half(odd, 1, values[0], values[2]);
    const float token1 = keep_half(odd, 1, values[1], values[3]);
    sums[0] = keep_half(upper, 2, token0, token1);
  } else if constexpr (kWidth == 4) {
    sums[0] = keep_half(upper, 2, values[0], values[2]);
    sums[1] = keep_half(upper, 2, values[1], values[3]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] = values[i];
  }
}

/// The sums of slab `slab` of the rows of the unit at `unit` in shared memory. inputs(nth) gives
/// SlabInputs of slab_in_turn(nth) of the columns. kFp8: weights are packed for FP8 inputs, which
/// BF16 holds, too. scale_place is kScaleFloatPlace.
template <bool kFp8, int kWidth, int kTokenGroups, class Inputs>
__device__ void multiply_slab(std::uint32_t unit, int slab, std::uint32_t scale_place,
                              const Inputs& inputs,
                              float (&sums)[kTokenGroups][kLaneSums<kWidth>]) {
  constexpr int kTurns = kWidth > 2 ? kWidth / 2 : 1, kColumnSlabs = 4 / kTurns;
  constexpr int kChains = kWidth > 1 ? 2 : 1;  // of a lane's columns, in a turn
  constexpr int kBias = kFp8 ? 105 : 231;      // codes for FP8 are w itself
  const int lane = lane_id(), quad = lane % 4;
  float tree[2][kTokenGroups][4];
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    float products[kChains][2][kTokenGroups][4] = {};
#pragma unroll
    for (int i = 0; i < kColumnSlabs; ++i) {
      const int nth = turn * kColumnSlabs + i;
      const auto& x = inputs(nth);
      const uint4 codes = load_shared_16(
          unit + (slab * 4 + slab_in_turn<kWidth>(nth)) * kSlabCodeBytes + lane * 16);
#pragma unroll
      for (int atom = 0; atom < 4; ++atom) {
        std::uint32_t a[4];
        if constexpr (kFp8)
          fp8_slab_atom_codes(codes, atom, a);
        else
          slab_atom_codes(codes, atom, a);
#pragma unroll
        for (int n = 0; n < kTokenGroups; ++n) {
          const uint4& b = x.values[n][atom / 2];
          mma_bf16(products[atom / 2 % kChains][atom % 2][n], a, atom % 2 == 0 ? b.x : b.z,
                   atom % 2 == 0 ? b.y : b.w);
        }
      }
    }
    // The lane's chains of the turn are two that follow each other: a word of scales for each row.
    const int word = kWidth <= 2 ? quad : kWidth == 4 ? quad / 2 * 2 + turn : turn;
    const uint2 words =
        load_shared_8(unit + kChunkCodeBytes + (slab * 4 + word) * kSlabScaleBytes + lane / 4 * 8);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float scale[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)  // FP8: one for both blocks of a chain
        scale[i] =
            scale_float<kBias>(half == 0 ? words.x : words.y, kFp8 ? i & ~1 : i, scale_place);
#pragma unroll
      for (int n = 0; n < kTokenGroups; ++n) {
        const auto block_sum = [&](int chain, int odd, int j) {
          return products[chain][odd][n][j];
        };
        if constexpr (kWidth == 1) {
          const int j = 2 * half;
          tree[0][n][half] = scaled_sum({block_sum(0, 0, j), block_sum(0, 1, j),
                                         block_sum(0, 0, j + 1), block_sum(0, 1, j + 1)},
                                        scale);
        } else {
#pragma unroll
          for (int j = 2 * half; j < 2 * half + 2; ++j) {
            const float sum = scaled_sum(
                {block_sum(0, 0, j), block_sum(0, 1, j), block_sum(1, 0, j), block_sum(1, 1, j)},
                scale);
            float& at = tree[turn / 2][n][j];
            at = turn % 2 == 0 ? sum : at + sum;
          }
        }
      }
    }
  }
  if constexpr (kWidth == 8)
#pragma unroll
    for (int i = 0; i < kTokenGroups * 4; ++i) tree[0][i / 4][i % 4] += tree[1][i / 4][i % 4];
#pragma unroll
  for (int n = 0; n < kTokenGroups; ++n) add_lanes<kWidth>(tree[0][n], sums[n]);
}

/// sums[slab] += both slabs of the rows of the unit at `unit`, slab `number` of its columns, times
/// the parts of 8 tokens' inputs, a product each.
template <int kParts>
__device__ void multiply_parts(std::uint32_t unit, int number, const SlabInputs<8, kParts>& inputs,
                               float (&sums)[2][1][4]) {
  const int lane = lane_id();
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    const Slab slab = {
        load_shared_16(unit + (s * 4 + number) * kSlabCodeBytes + lane * 16),
        load_shared_8(unit + kChunkCodeBytes + (s * 4 + number) * kSlabScaleBytes + lane / 4 * 8)};
#pragma unroll
    for (int atom = 0; atom < 4; ++atom) {
      std::uint32_t a[4];
      decode_slab_atom(slab, atom, a);
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        const uint4& b = inputs.values[p][atom / 2];
        mma_bf16(sums[s][0], a, atom % 2 == 0 ? b.x : b.z, atom % 2 == 0 ? b.y : b.w);
      }
    }
  }
}

}  // namespace quatrain::cuda

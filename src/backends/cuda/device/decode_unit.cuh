// SPDX-License-Identifier: Apache-2.0
// What the decode kernel computes, apart from who does it when: inputs as they enter the tensor
// cores, the products of a unit of weights, and the weighted sum of the results.
#pragma once

#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/bf16_parts.cuh"
#include "backends/cuda/device/fp8_fragments.cuh"
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/nvfp4_fragments.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/launch/experts.h"
#include "backends/cuda/launch/experts_decode_layout.h"

namespace quatrain::cuda {

/// F32 [rows, cols].
struct SourceRows {
  const float* values;
  int rows, cols;
};

template <int kParts>
__device__ void store_input_pair(std::uint16_t* at, float x, float y) {
  const std::uint32_t first = bf16_pair(x, y);
  *reinterpret_cast<std::uint32_t*>(at) = first;
  if constexpr (kParts == 2)
    *reinterpret_cast<std::uint32_t*>(at + kChunkCols) =
        bf16_pair(x - low_float(first), y - high_float(first));
}

/// Rows as BF16 parts in decode_input_place(), padded with zeros to whole chunks, by `threads`
/// threads.
template <int kParts>
__device__ void convert_inputs(const SourceRows& from, std::uint16_t* to, std::uint32_t thread,
                               std::uint32_t threads) {
  const std::uint32_t padded = padded_to(from.cols, kChunkCols);
  const std::uint32_t quads = from.rows * (padded / 4);
  for (std::uint32_t i = thread; i < quads; i += threads) {
    const std::uint32_t row = i / (padded / 4);
    const int col = static_cast<int>(i % (padded / 4)) * 4;
    float4 x = {};
    if (col < from.cols)
      x = *reinterpret_cast<const float4*>(from.values + std::int64_t{row} * from.cols + col);
    std::uint16_t* at = to + row * (kParts * padded);
    store_input_pair<kParts>(at + decode_input_place(col, kParts), x.x, x.y);
    store_input_pair<kParts>(at + decode_input_place(col + 2, kParts), x.z, x.w);
  }
}

/// sums[slab][group] += columns [128 half, 128 half + 128) of the unit at `unit` in shared memory
/// times the inputs at byte `at` of `rows`: lane 4n + t has those of token n. Of the groups of 8
/// tokens kUsed are multiplied. kFp8: weights are packed for FP8 inputs, which BF16 holds, too.
template <int kUsed, int kParts, bool kFp8, int kGroups>
__device__ void multiply_half(std::uint32_t unit, int half,
                              const std::uint8_t* const (&rows)[kGroups], int at,
                              float (&sums)[2][kGroups][4]) {
  const int lane = lane_id();
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    Slab slabs[2];
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const int number = s * 4 + half * 2 + k;
      slabs[s] = {load_shared_16(unit + number * kSlabCodeBytes + lane * 16),
                  load_shared_8(unit + kUnitCodeBytes + number * kSlabScaleBytes + lane / 4 * 8)};
    }
    uint4 b[kUsed][kParts][2];
#pragma unroll
    for (int n = 0; n < kUsed; ++n)
#pragma unroll
      for (int p = 0; p < kParts; ++p)
#pragma unroll
        for (int pair = 0; pair < 2; ++pair)
          b[n][p][pair] = *reinterpret_cast<const uint4*>(rows[n] + at + k * 128 + pair * 64 +
                                                          p * (kChunkCols * 2));
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int atom = 0; atom < 4; ++atom) {
        std::uint32_t a[4];
        if constexpr (kFp8)
          decode_fp8_slab_atom(slabs[s], atom, a);
        else
          decode_slab_atom(slabs[s], atom, a);
#pragma unroll
        for (int n = 0; n < kUsed; ++n)
#pragma unroll
          for (int p = 0; p < kParts; ++p) {
            const uint4& x = b[n][p][atom / 2];
            mma_bf16(sums[s][n], a, atom % 2 == 0 ? x.x : x.z, atom % 2 == 0 ? x.y : x.w);
          }
      }
  }
}

/// out[t] += Σ_i weights[t, i] outputs[t * k + i], in order of i; rows of padding stay as they are.
/// `thread` of `threads`.
__device__ inline void combine_outputs(const DecodeArgs& args, int thread, int threads) {
  constexpr int kAtOnce = 8;  // loads under way
  const RoutedTokens& routed = args.routed;
  const int hidden = args.w.hidden;
  const int all = routed.tokens * hidden;
  for (int i = thread; i < all; i += threads) {
    const int t = i / hidden;
    const bool is_padding = routed.batch_slots[t] < 0;
    float sum = args.out[i];
    for (int begin = 0; begin < routed.k; begin += kAtOnce) {
      float value[kAtOnce], weight[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int slot = t * routed.k + min(begin + j, routed.k - 1);
        value[j] = __ldcg(args.outputs + std::int64_t{slot} * hidden + (i - t * hidden));
        weight[j] = routed.weight_first ? 1.0f : routed.weights[slot];
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        if (begin + j < routed.k) sum += weight[j] * value[j];
    }
    if (!is_padding) args.out[i] = sum;
  }
}

}  // namespace quatrain::cuda

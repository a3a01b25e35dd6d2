// SPDX-License-Identifier: Apache-2.0
// What the decode kernel computes beside products: inputs as they enter the tensor cores, the sums
// of units, and the weighted sum of the results.
#pragma once

#include "backends/cuda/device/bf16_parts.cuh"
#include "backends/cuda/device/decode_products.cuh"
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

/// Rows times kDecodeInputUnit as BF16 parts in decode_input_place(), padded with zeros to whole
/// chunks, by `threads` threads.
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
    constexpr float kUnit = kDecodeInputUnit;
    std::uint16_t* at = to + row * (kParts * padded);
    store_input_pair<kParts>(at + decode_input_place(col, kParts), x.x * kUnit, x.y * kUnit);
    store_input_pair<kParts>(at + decode_input_place(col + 2, kParts), x.z * kUnit, x.w * kUnit);
  }
}

/// Of a group's rows, by slab and 8 tokens.
template <int kTokenGroups>
using UnitSums = float[kGroupSlabs][kTokenGroups][4];

/// Writes the sums of a unit, of which a lane has kLane for each slab and kUsed times 8 tokens.
template <int kTokenGroups, int kUsed, int kLane>
__device__ void store_unit(float4* to, const float (&sums)[kGroupSlabs][kUsed][kLane]) {
  const int lane = lane_id();
  if constexpr (kLane == 1) {
    reinterpret_cast<float2*>(to)[lane] = {sums[0][0][0], sums[1][0][0]};
  } else if constexpr (kLane == 2) {
    to[lane] = {sums[0][0][0], sums[0][0][1], sums[1][0][0], sums[1][0][1]};
  } else {
#pragma unroll
    for (int slab = 0; slab < kGroupSlabs; ++slab)
#pragma unroll
      for (int n = 0; n < kUsed; ++n) {
        const float(&s)[4] = sums[slab][n];
        to[(slab * kTokenGroups + n) * kWarp + lane] = {s[0], s[1], s[2], s[3]};
      }
  }
}

/// totals += the sums of `units` units that follow each other, in their order, of a tile of
/// `tokens` that is `width` wide.
template <int kTokenGroups>
__device__ void add_units(const float4* from, int units, int tokens, int width,
                          UnitSums<kTokenGroups>& totals) {
  constexpr int kUnit = kGroupSlabs * kTokenGroups * kWarp;
  const int lane = lane_id();
  if (width <= 2) {
#pragma unroll 2
    for (int i = 0; i < units; ++i) {
      const float2 sum = reinterpret_cast<const float2*>(from + i * kUnit)[lane];
      totals[0][0][0] += sum.x, totals[1][0][0] += sum.y;
    }
  } else if (width == 4) {
#pragma unroll 2
    for (int i = 0; i < units; ++i) {
      const float4 sum = from[i * kUnit + lane];
      totals[0][0][0] += sum.x, totals[0][0][1] += sum.y;
      totals[1][0][0] += sum.z, totals[1][0][1] += sum.w;
    }
  } else {
#pragma unroll
    for (int g = 0; g < kTokenGroups; ++g) {
      if (g > 0 && tokens <= 8 * g) break;
#pragma unroll 2
      for (int i = 0; i < units; ++i)
#pragma unroll
        for (int slab = 0; slab < kGroupSlabs; ++slab) {
          const float4 sum = from[i * kUnit + (slab * kTokenGroups + g) * kWarp + lane];
          float(&total)[4] = totals[slab][g];
          total[0] += sum.x, total[1] += sum.y, total[2] += sum.z, total[3] += sum.w;
        }
    }
  }
}

/// out[t] += Σ_i weights[t, i] outputs[t * k + i], in order of i; rows of padding stay as they are.
/// `thread` of `threads`; all of a warp call wait(), after which all outputs are there.
template <class Wait>
__device__ void combine_outputs(const DecodeArgs& args, int thread, int threads, const Wait& wait) {
  constexpr int kAtOnce = 8;  // loads under way
  const RoutedTokens& routed = args.routed;
  const int all = routed.tokens * args.w.hidden;
  float sum = 0;
  float weight[kAtOnce] = {};
  bool is_padding = true;
  const auto slot_of = [&](int t, int i) { return t * routed.k + min(i, routed.k - 1); };
  const auto load_weights = [&](int t, int begin) {
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      weight[j] = routed.weight_first ? 1.0f : routed.weights[slot_of(t, begin + j)];
  };
  // What is known before the outputs.
  const auto begin_sum = [&](int i) {
    const int t = args.columns.quotient(i);
    is_padding = routed.batch_slots[t] < 0;
    sum = args.out[i];
    load_weights(t, 0);
  };
  if (thread < all) begin_sum(thread);
  wait();
  for (int i = thread; i < all; i += threads) {
    if (i != thread) begin_sum(i);
    const int t = args.columns.quotient(i);
    for (int begin = 0; begin < routed.k; begin += kAtOnce) {
      float value[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        value[j] = __ldcg(args.outputs + std::int64_t{slot_of(t, begin + j)} * args.w.hidden +
                          args.columns.remainder(i));
      if (begin > 0) load_weights(t, begin);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        if (begin + j < routed.k) sum += weight[j] * value[j];
    }
    if (!is_padding) args.out[i] = sum;
  }
}

}  // namespace quatrain::cuda

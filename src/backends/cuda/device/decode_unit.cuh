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

/// The inputs of kTokenGroups times 8 tokens for one slab's 64 columns, as a lane needs them: by
/// token group, part and pair of atoms.
template <int kTokenGroups, int kParts>
struct SlabInputs {
  uint4 values[kTokenGroups][kParts][2];

  /// Slab `slab` of those at byte `at` of `rows`: lane 4n + t has those of token n.
  template <int kRows>
  __device__ void load(const std::uint8_t* const (&rows)[kRows], int at, int slab) {
#pragma unroll
    for (int n = 0; n < kTokenGroups; ++n)
#pragma unroll
      for (int p = 0; p < kParts; ++p)
#pragma unroll
        for (int pair = 0; pair < 2; ++pair)
          values[n][p][pair] = *reinterpret_cast<const uint4*>(rows[n] + at + p * (kChunkCols * 2) +
                                                               slab * 128 + pair * 64);
  }
};

/// sums[slab of rows][group] += slab `number` of the columns of the unit at `unit` in shared memory
/// times its inputs. kFp8: weights are packed for FP8 inputs, which BF16 holds, too.
template <bool kFp8, int kTokenGroups, int kParts>
__device__ void multiply_slab(std::uint32_t unit, int number,
                              const SlabInputs<kTokenGroups, kParts>& inputs,
                              float (&sums)[2][kTokenGroups][4]) {
  const int lane = lane_id();
  Slab slabs[2];
#pragma unroll
  for (int s = 0; s < 2; ++s)
    slabs[s] = {
        load_shared_16(unit + (s * 4 + number) * kSlabCodeBytes + lane * 16),
        load_shared_8(unit + kChunkCodeBytes + (s * 4 + number) * kSlabScaleBytes + lane / 4 * 8)};
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
      for (int n = 0; n < kTokenGroups; ++n)
#pragma unroll
        for (int p = 0; p < kParts; ++p) {
          const uint4& x = inputs.values[n][p][atom / 2];
          mma_bf16(sums[s][n], a, atom % 2 == 0 ? x.x : x.z, atom % 2 == 0 ? x.y : x.w);
        }
    }
}

/// totals[slab][g] += the sums of `units` units in their order, which lie as [units, slabs, token
/// groups, 32 lanes] from this lane's first on; of the first `groups` token groups.
template <int kGroups>
__device__ void add_units(const float4* from, int units, int groups,
                          float (&totals)[kGroupSlabs][kGroups][4]) {
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    if (g > 0 && g >= groups) break;
#pragma unroll 2
    for (int i = 0; i < units; ++i)
#pragma unroll
      for (int slab = 0; slab < kGroupSlabs; ++slab) {
        const float4 sum = from[((i * kGroupSlabs + slab) * kGroups + g) * kWarp];
        float(&total)[4] = totals[slab][g];
        total[0] += sum.x, total[1] += sum.y, total[2] += sum.z, total[3] += sum.w;
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

// SPDX-License-Identifier: Apache-2.0
// What the decode kernel does with finished sums: 16 packed rows of an expert times its tokens
// become hidden values of the first projection, or outputs of the second.
#pragma once

#include "backends/cuda/device/bf16_parts.cuh"
#include "backends/cuda/device/expert_tiles.cuh"
#include "backends/cuda/device/scalar.cuh"
#include "backends/cuda/launch/experts.h"
#include "backends/cuda/launch/experts_decode_layout.h"

namespace quatrain::cuda {

/// Of rows g and g + 8 of a slab, with the unit that packed products are in.
struct GlobalScales {
  float low, high;
};

template <int kParts>
class DecodeResults {
 public:
  __device__ DecodeResults(const DecodeArgs& args, const std::uint16_t* sorted)
      : args_(args), sorted_(sorted) {}

  __device__ GlobalScales scales_of(bool is_first, int expert) const {
    if (is_first) return {args_.w.gate_scales[expert], args_.w.up_scales[expert]};
    return {args_.w.down_scales[expert], args_.w.down_scales[expert]};
  }

  /// Scales the sums of a slab, of kGroups times 8 tokens as mma_bf16 has them, and stores what
  /// they become.
  template <int kGroups>
  __device__ void finish(bool is_first, int slab, const TokenTile& tile, const GlobalScales& scales,
                         const float (&totals)[kGroups][4]) const {
    const InputRows& inputs = is_first ? args_.inputs : args_.middle;
    const int lane = lane_id();
#pragma unroll
    for (int g = 0; g < kGroups; ++g)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = g * 8 + lane % 4 * 2 + i;
        if (token >= tile.count) continue;
        const int slot = sorted_[tile.first + token];
        float unit = kPackedUnit;
        if (inputs.row_scales != nullptr)
          unit *= inputs.row_scales[inputs.slots_per_row.quotient(slot)];
        const float low = totals[g][i] * (scales.low * unit);
        const float high = totals[g][2 + i] * (scales.high * unit);
        if (is_first)
          store_hidden(slab * 8 + lane / 4, slot, low, high);
        else
          store_output(slab * 16 + lane / 4, slot, low, high);
      }
  }

 private:
  // All scales are in before the clamp.
  __device__ void store_hidden(int col, int slot, float gate, float up) const {
    float h = swiglu_value(gate, up, args_.routed.limit);
    if (args_.routed.weight_first) h *= args_.routed.weights[slot];
    if (!args_.second) {
      if (col < args_.w.inner) args_.hidden[std::int64_t{slot} * args_.w.inner + col] = h;
      return;
    }
    const int padded = padded_to(args_.w.inner, kChunkCols);
    store_parts(args_.middle.values + std::int64_t{slot} * kParts * padded +
                    decode_input_place(col, kParts),
                kParts, kChunkCols, h);
  }

  __device__ void store_output(int row, int slot, float low, float high) const {
    float* at = args_.outputs + std::int64_t{slot} * args_.w.hidden + row;
    if (row < args_.w.hidden) __stcg(at, low);
    if (row + 8 < args_.w.hidden) __stcg(at + 8, high);
  }

  const DecodeArgs& args_;
  const std::uint16_t* sorted_;  // [T * k] slots by expert
};

}  // namespace quatrain::cuda

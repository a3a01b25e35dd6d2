// SPDX-License-Identifier: Apache-2.0
// What the decode kernel does with finished sums: 16 packed rows of an expert times its tokens
// become hidden values of the first projection, or outputs of the second.
#pragma once

#include "backends/cuda/device/bf16_parts.cuh"
#include "backends/cuda/device/decode_unit.cuh"
#include "backends/cuda/device/expert_tiles.cuh"
#include "backends/cuda/device/scalar.cuh"
#include "backends/cuda/launch/experts.h"
#include "backends/cuda/launch/experts_decode_layout.h"

namespace quatrain::cuda {

/// Of rows g and g + 8 of a slab.
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

  /// Scales the sums of group `group` of a tile's rows, which a lane has by the tile's width
  /// (kLaneSums), and stores what they become.
  template <int kTokenGroups>
  __device__ void finish(bool is_first, int group, const TokenTile& tile,
                         const GlobalScales& scales, const UnitSums<kTokenGroups>& totals) const {
    constexpr int kMost = kGroupSlabs * kTokenGroups * 2;
    float low[kMost], high[kMost];  // of rows g and g + 8
    const int quad = lane_id() % 4, width = tile_width<kParts>(tile.count);
    int first_token = quad * 2, count = kMost;
    if (width == 8) {
#pragma unroll
      for (int i = 0; i < kMost; ++i) {
        const float(&sums)[4] = totals[i / (2 * kTokenGroups)][i / 2 % kTokenGroups];
        low[i] = sums[i % 2], high[i] = sums[2 + i % 2];
      }
    } else {
      // Both rows meet in one lane.
      const int apart = width == 4 ? 2 : 1;
      const bool is_high = (quad & apart) != 0;
      first_token = width == 4 ? quad % 2 * 2 + (is_high ? 1 : 0) : is_high ? 8 : quad / 2;
      count = kGroupSlabs;
#pragma unroll
      for (int slab = 0; slab < kGroupSlabs; ++slab) {
        const float first = totals[slab][0][0], second = width == 4 ? totals[slab][0][1] : first;
        const float other = __shfl_xor_sync(kAllLanes, is_high ? first : second, apart);
        low[slab] = is_high ? other : first;
        high[slab] = is_high ? second : other;
      }
    }
    // In a loop, so that the code is there once.
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      const int slab = width == 8 ? i / (2 * kTokenGroups) : i;
      const int token = first_token + (width == 8 ? i / 2 % kTokenGroups * 8 + i % 2 : 0);
      if (token < tile.count)
        store(is_first, group * kGroupSlabs + slab, sorted_[tile.first + token], scales, low[0],
              high[0]);
#pragma unroll
      for (int j = 1; j < kMost; ++j) low[j - 1] = low[j], high[j - 1] = high[j];
    }
  }

 private:
  __device__ void store(bool is_first, int slab, int slot, const GlobalScales& scales, float low,
                        float high) const {
    const InputRows& inputs = is_first ? args_.inputs : args_.middle;
    float unit = kDecodeUnit;
    if (inputs.row_scales != nullptr)
      unit *= inputs.row_scales[inputs.slots_per_row.quotient(slot)];
    low *= scales.low * unit;
    high *= scales.high * unit;
    if (is_first)
      store_hidden(slab * 8 + lane_id() / 4, slot, low, high);
    else
      store_output(slab * 16 + lane_id() / 4, slot, low, high);
  }

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
                kParts, kChunkCols, h * kDecodeInputUnit);
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

// SPDX-License-Identifier: Apache-2.0
// The results of the experts' prefill kernel, from registers to memory.
#pragma once

#include "backends/cuda/device/bf16_parts.cuh"
#include "backends/cuda/device/exchange.cuh"
#include "backends/cuda/device/prefill_tiles.cuh"
#include "backends/cuda/device/scalar.cuh"

namespace quatrain::cuda::prefill {

/// Sums of one warp: those of packed rows row to row + 31 of an expert, in two blocks of 16, for
/// the tokens of a table. d[block] is as mma_bf16's: a lane has rows g and g + 8 of both blocks and
/// two tokens of each eight.
template <int kParts>
struct WarpResults {
  const PrefillArgs& args;
  const TokenTable& table;
  int expert;
  int row;

  struct Hidden {
    float gate_scale, up_scale, limit;
    __device__ float operator()(float gate, float up, float unit, float weight) const {
      // All scales are in before the clamp, each global scale in its own half.
      return swiglu_value<quick_sigmoid>(gate * (gate_scale * unit), up * (up_scale * unit),
                                         limit) *
             weight;
    }
  };
  __device__ Hidden hidden_of() const {
    return {args.w.gate_scales[expert], args.w.up_scales[expert], args.routed.limit};
  }
  template <class T>
  static __device__ T pair_of(const float (&values)[kWidestPass], int n) {
    return *reinterpret_cast<const T*>(values + n * 8 + lane_id() % 4 * 2);
  }

  template <int kWidth>
  __device__ __forceinline__ void store_hidden16(const float (&d)[kBlocks][kWidth / 2]) const {
    const Hidden hidden = hidden_of();
    const int padded = padded_to(args.w.inner, kChunkCols);
    // After the exchange a lane has one token of the eight and four columns of one block.
    const int lane = lane_id();
    std::uint16_t* to = args.hidden16 + row / 2 + lane % 2 * 8 + lane % 4 / 2 * 4;
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n) {
      const auto units = pair_of<float2>(table.units, n);
      const auto weights = pair_of<float2>(table.weights, n);
      const int slot = table.slots[n * 8 + lane / 4];
      float2 h[kBlocks];
#pragma unroll
      for (int block = 0; block < kBlocks; ++block)
        h[block] = {hidden(d[block][4 * n], d[block][4 * n + 2], units.x, weights.x),
                    hidden(d[block][4 * n + 1], d[block][4 * n + 3], units.y, weights.y)};
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        std::uint32_t columns[kBlocks];
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          const std::uint32_t pair = bf16_pair(h[block].x, h[block].y);
          columns[block] = transposed(pair);
          h[block] = {h[block].x - low_float(pair), h[block].y - high_float(pair)};
        }
        const bool odd = lane % 2 != 0;
        const std::uint32_t other = __shfl_xor_sync(kAllLanes, odd ? columns[0] : columns[1], 1);
        const uint2 four = odd ? uint2{other, columns[1]} : uint2{columns[0], other};
        if (slot >= 0)
          *reinterpret_cast<uint2*>(to + (std::int64_t{slot} * kParts + part) * padded) = four;
      }
    }
  }

  template <int kWidth>
  __device__ __forceinline__ void store_hidden(const float (&d)[kBlocks][kWidth / 2]) const {
    const Hidden hidden = hidden_of();
    const int col = row / 2 + lane_id() / 4;
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = n * 8 + lane_id() % 4 * 2 + i;
        const int slot = table.slots[token];
#pragma unroll
        for (int block = 0; block < kBlocks; ++block)
          if (slot >= 0 && col + block * 8 < args.w.inner)
            args.hidden[std::int64_t{slot} * args.w.inner + col + block * 8] =
                hidden(d[block][4 * n + i], d[block][4 * n + i + 2], table.units[token],
                       table.weights[token]);
      }
  }

  // After the exchange a lane has eight rows of one token of the eight.
  template <int kWidth>
  __device__ __forceinline__ void store_outputs16(const float (&d)[kBlocks][kWidth / 2]) const {
    const float down_scale = args.w.down_scales[expert];
    const int lane = lane_id();
    const int own = row + lane % 4 * 8;
    std::uint16_t* outputs = args.outputs16 + own;
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n) {
      const auto units = pair_of<float2>(table.units, n);
      const int slot = table.slots[n * 8 + lane / 4];
      std::uint32_t rows[2 * kBlocks];
#pragma unroll
      for (int i = 0; i < 2 * kBlocks; ++i)
        rows[i] = transposed(bf16_pair(d[i / 2][4 * n + i % 2 * 2] * (down_scale * units.x),
                                       d[i / 2][4 * n + i % 2 * 2 + 1] * (down_scale * units.y)));
      const uint4 eight = quad_transposed(rows);
      if (slot >= 0 && own < args.w.hidden)
        __stcs(reinterpret_cast<uint4*>(outputs + std::int64_t{slot} * args.w.hidden), eight);
    }
  }

  template <int kWidth>
  __device__ __forceinline__ void store_outputs(const float (&d)[kBlocks][kWidth / 2]) const {
    const float down_scale = args.w.down_scales[expert];
    float* outputs = args.outputs + row + lane_id() / 4;
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = n * 8 + lane_id() % 4 * 2 + i;
        const int slot = table.slots[token];
        const float scale = down_scale * table.units[token];
        float* to = outputs + std::int64_t{slot} * args.w.hidden;
#pragma unroll
        for (int block = 0; block < kBlocks; ++block)
          if (slot >= 0 && row + block * 16 < args.w.hidden) {
            to[block * 16] = d[block][4 * n + i] * scale;
            to[block * 16 + 8] = d[block][4 * n + i + 2] * scale;
          }
      }
  }
};

}  // namespace quatrain::cuda::prefill

// SPDX-License-Identifier: Apache-2.0
// The results of the experts' prefill kernel for FP8 inputs: hidden values on the FP8 grid, outputs
// as BF16.
#pragma once

#include "backends/cuda/device/fp8_activations.cuh"
#include "backends/cuda/device/prefill_results.cuh"

namespace quatrain::cuda::prefill {

/// The largest magnitudes of the hidden values that a block makes of its tokens, by their bits: of
/// three tiles in turns, zero before a tile's warps write them. While those of one tile are
/// written others may still be read, and the third are made zero.
struct HiddenPeaks {
  static constexpr int kTurns = 3;
  alignas(8) unsigned bits[kTurns][kWidestFp8Pass];
};
inline constexpr int kPeaksAreThere = 1;  // named barrier of the multiplying warps

/// As WarpResults; the sums of row g of a block are multiplied by factors[block].x, those of row
/// g + 8 by .y.
struct Fp8Results {
  const Fp8PrefillArgs& args;
  const TokenTable& table;
  HiddenPeaks& peaks;
  int turn;
  int expert;
  int row;
  float2 factors[kBlocks];

  // The tile's 256 packed rows are 128 hidden columns, which share a scale: warps tell each other
  // the largest of theirs. Sums are overwritten.
  template <int kWidth>
  __device__ __forceinline__ void store_hidden(float (&d)[kBlocks][kWidth / 2]) const {
    const PrefillArgs& common = args.common;
    const float gate_scale = common.w.gate_scales[expert], up_scale = common.w.up_scales[expert];
    const int lane = lane_id();
    unsigned(&mine)[kWidestFp8Pass] = peaks.bits[turn];
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n) {
      unsigned peak[2] = {};
#pragma unroll
      for (int block = 0; block < kBlocks; ++block)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& h = d[block][4 * n + i];
          h = swiglu_value<quick_sigmoid>(h * (factors[block].x * gate_scale),
                                          d[block][4 * n + i + 2] * (factors[block].y * up_scale),
                                          common.routed.limit);
          peak[i] = max(peak[i], __float_as_uint(h) & 0x7FFFFFFFu);
        }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int distance = 4; distance < kWarp; distance *= 2)
          peak[i] = max(peak[i], __shfl_xor_sync(kAllLanes, peak[i], distance));
        if (lane < 4) atomicMax(mine + n * 8 + lane * 2 + i, peak[i]);
      }
    }
    const int thread = static_cast<int>(threadIdx.x);
    if (thread < kWidestFp8Pass) peaks.bits[(turn + 1) % HiddenPeaks::kTurns][thread] = 0;
    named_sync(kPeaksAreThere, kMultiplyingGroups * kWarpgroup);
    store_codes<kWidth>(d, mine);
    if (thread < kWidth) store_scale(thread, mine[thread]);
  }

  template <int kWidth>
  __device__ __forceinline__ void store_outputs16(const float (&d)[kBlocks][kWidth / 2]) const {
    const PrefillArgs& common = args.common;
    const float down_scale = common.w.down_scales[expert];
    const int lane = lane_id();
    const int own = row + lane % 4 * 8;
    std::uint16_t* outputs = common.outputs16 + own;
    float scales[2 * kBlocks];
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      scales[2 * block] = down_scale * factors[block].x;
      scales[2 * block + 1] = down_scale * factors[block].y;
    }
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n) {
      const int slot = table.slots[n * 8 + lane / 4];
      std::uint32_t rows[2 * kBlocks];
#pragma unroll
      for (int i = 0; i < 2 * kBlocks; ++i)
        rows[i] = transposed(bf16_pair(d[i / 2][4 * n + i % 2 * 2] * scales[i],
                                       d[i / 2][4 * n + i % 2 * 2 + 1] * scales[i]));
      const uint4 eight = quad_transposed(rows);
      if (slot >= 0 && own < common.w.hidden)
        __stcs(reinterpret_cast<uint4*>(outputs + std::int64_t{slot} * common.w.hidden), eight);
    }
  }

 private:
  __device__ int padded() const { return padded_to(args.common.w.inner, kChunkCols); }

  // After the exchange a lane has a word of one token of the eight.
  template <int kWidth>
  __device__ __forceinline__ void store_codes(const float (&d)[kBlocks][kWidth / 2],
                                              const unsigned (&peak)[kWidestFp8Pass]) const {
    const int lane = lane_id();
    std::uint8_t* to = args.hidden.codes + row / 2 + lane % 4 * 4;
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n) {
      const uint2 peaks_of = *reinterpret_cast<const uint2*>(peak + n * 8 + lane % 4 * 2);
      const float x = fp8_activation_inverse(fp8_activation_scale(__uint_as_float(peaks_of.x)));
      const float y = fp8_activation_inverse(fp8_activation_scale(__uint_as_float(peaks_of.y)));
      const std::uint32_t word = transposed(
          e4m3_word({d[0][4 * n] * x, d[1][4 * n] * x, d[0][4 * n + 1] * y, d[1][4 * n + 1] * y}));
      const int slot = table.slots[n * 8 + lane / 4];
      if (slot >= 0) *reinterpret_cast<std::uint32_t*>(to + std::int64_t{slot} * padded()) = word;
    }
  }
  __device__ void store_scale(int token, unsigned peak) const {
    const int slot = table.slots[token];
    const std::int64_t blocks = padded() / kFp8ActivationBlock;
    if (slot >= 0)
      args.hidden.scales[slot * blocks + row / (2 * kFp8ActivationBlock)] =
          fp8_activation_scale(__uint_as_float(peak));
  }
};

}  // namespace quatrain::cuda::prefill

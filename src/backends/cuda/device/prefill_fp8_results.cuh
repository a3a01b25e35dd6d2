// SPDX-License-Identifier: Apache-2.0
// The results of the experts' prefill kernel for FP8 inputs: hidden values on the FP8 grid, outputs
// as BF16.
#pragma once

#include "backends/cuda/device/fp8_activations.cuh"
#include "backends/cuda/device/prefill_results.cuh"

namespace quatrain::cuda::prefill {

/// Of a tile's hidden values, by token: the largest magnitudes by their bits, zero before a tile's
/// warps write them, and what takes values to the range of their codes.
struct HiddenPeaks {
  alignas(8) unsigned bits[kWidestFp8Pass];
  alignas(8) float inverse[kWidestFp8Pass];
};
inline constexpr int kPeaksAreThere = 1;  // named barriers of the multiplying warps
inline constexpr int kScalesAreThere = 2;

/// Raises the peaks of kEights times eight tokens to the magnitudes of a warp's values, of which a
/// lane has magnitude(n, i) of tokens 8 n + 2 (lane % 4) + i. Four eights are looked at together.
template <int kEights, class Magnitude>
__device__ __forceinline__ void raise_peaks(unsigned* peaks, const Magnitude& magnitude) {
  const int lane = lane_id();
#pragma unroll
  for (int first = 0; first < kEights; first += 4) {
    unsigned magnitudes[8];
#pragma unroll
    for (int i = 0; i < 8; ++i)
      magnitudes[i] = first + i / 2 < kEights ? magnitude(first + i / 2, i % 2) : 0;
    const unsigned peak = eight_maxima(magnitudes);
    const int token = (first + lane / 8) * 8 + lane % 4 * 2 + lane / 4 % 2;
    if (token < kEights * 8) atomicMax(peaks + token, peak);
  }
}
__device__ inline unsigned magnitude_bits(float x) { return __float_as_uint(x) & 0x7FFFFFFFu; }

/// As WarpResults; the sums of row g of a block are multiplied by factors[block].x, those of row
/// g + 8 by .y.
struct Fp8Results {
  const Fp8PrefillArgs& args;
  const TokenTable& table;
  HiddenPeaks& peaks;
  int expert;
  int row;
  float2 factors[kBlocks];

  // The tile's 256 packed rows are 128 hidden columns, which share a scale: warps tell each other
  // the largest of theirs. Sums are overwritten.
  template <int kWidth>
  __device__ __forceinline__ void store_hidden(float (&d)[kBlocks][kWidth / 2]) const {
    const PrefillArgs& common = args.common;
    const float gate_scale = common.w.gate_scales[expert], up_scale = common.w.up_scales[expert];
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n)
#pragma unroll
      for (int block = 0; block < kBlocks; ++block)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& h = d[block][4 * n + i];
          h = swiglu_value<quick_sigmoid>(h * (factors[block].x * gate_scale),
                                          d[block][4 * n + i + 2] * (factors[block].y * up_scale),
                                          common.routed.limit);
        }
    raise_peaks<kWidth / 8>(peaks.bits, [&](int n, int i) {
      return max(magnitude_bits(d[0][4 * n + i]), magnitude_bits(d[1][4 * n + i]));
    });
    named_sync(kPeaksAreThere, kMultiplyingGroups * kWarpgroup);
    find_scales(kWidth);
    named_sync(kScalesAreThere, kMultiplyingGroups * kWarpgroup);
    store_codes<kWidth>(d);
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

  // A thread per token.
  __device__ __forceinline__ void find_scales(int tokens) const {
    const int thread = static_cast<int>(threadIdx.x);
    if (thread >= tokens) return;
    const float scale = fp8_activation_scale(__uint_as_float(peaks.bits[thread]));
    peaks.bits[thread] = 0;
    peaks.inverse[thread] = fp8_activation_inverse(scale);
    const int slot = table.slots[thread];
    const std::int64_t blocks = padded() / kFp8ActivationBlock;
    if (slot >= 0) args.hidden.scales[slot * blocks + row / (2 * kFp8ActivationBlock)] = scale;
  }
  // After the exchange a lane has a word of one token of the eight.
  template <int kWidth>
  __device__ __forceinline__ void store_codes(const float (&d)[kBlocks][kWidth / 2]) const {
    const int lane = lane_id();
    std::uint8_t* to = args.hidden.codes + row / 2 + lane % 4 * 4;
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n) {
      const float2 inverse = *reinterpret_cast<const float2*>(peaks.inverse + n * 8 + lane % 4 * 2);
      const std::uint32_t word =
          transposed(e4m3_word({d[0][4 * n] * inverse.x, d[1][4 * n] * inverse.x,
                                d[0][4 * n + 1] * inverse.y, d[1][4 * n + 1] * inverse.y}));
      const int slot = table.slots[n * 8 + lane / 4];
      if (slot >= 0) *reinterpret_cast<std::uint32_t*>(to + std::int64_t{slot} * padded()) = word;
    }
  }
};

}  // namespace quatrain::cuda::prefill

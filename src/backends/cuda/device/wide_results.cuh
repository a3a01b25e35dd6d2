// SPDX-License-Identifier: Apache-2.0
// The results of the experts' prefill kernel for wide tiles: hidden values on the FP8 grid, outputs
// as BF16.
#pragma once

#include "backends/cuda/device/prefill_fp8_results.cuh"
#include "backends/cuda/device/wide_tiles.cuh"

namespace quatrain::cuda::prefill::wide {

inline constexpr int kMultiplyingThreads = kMultiplyingGroups * kWarpgroup;
inline constexpr int kCodesAreThere = kScalesAreThere + 1;  // a named barrier of theirs

/// Sums of one warp: those of 16 packed rows from `row` on of an expert, for the tokens of a table
/// in two halves. The sums of row g are multiplied by factors.x, those of row g + 8 by .y.
struct Results {
  const Fp8PrefillArgs& args;
  const TokenTable& table;
  Shared& shared;
  int tile;  // number of this block's tiles before
  int expert;
  int row;
  float2 factors;

  // The 256 packed rows of a cluster's tiles are 128 hidden columns, which share a scale: warps
  // tell each other the largest of theirs, and so do the blocks. Sums are overwritten.
  template <int kHalf>
  __device__ __forceinline__ void store_hidden(float (&d)[kHalves][kHalf / 2]) const {
    multiply_gates<kHalf>(d);
    constexpr int kEights = kHalf / 8;  // both halves' follow each other
    raise_peaks<kHalves * kEights>(shared.peaks.mine, [&](int n, int i) {
      return magnitude_bits(d[n / kEights][n % kEights * 4 + i]);
    });
    named_sync(kPeaksAreThere, kMultiplyingThreads);
    find_scales(kHalves * kHalf);
    named_sync(kScalesAreThere, kMultiplyingThreads);
    stage_codes<kHalf>(d);
    named_sync(kCodesAreThere, kMultiplyingThreads);
    store_codes<kHalf>();
  }

  template <int kHalf>
  __device__ __forceinline__ void store_outputs16(const float (&d)[kHalves][kHalf / 2]) const {
    const PrefillArgs& common = args.common;
    const float down_scale = common.w.down_scales[expert];
    const float scales[2] = {down_scale * factors.x, down_scale * factors.y};
    const int lane = lane_id();
    // After the exchange a lane has eight rows of one token of a half's eight.
    const int own = row + lane % 2 * 8, half = lane % 4 / 2;
    std::uint16_t* outputs = common.outputs16 + own;
#pragma unroll
    for (int n = 0; n < kHalf / 8; ++n) {
      const int slot = table.slots[half * kHalf + n * 8 + lane / 4];
      std::uint32_t rows[2 * kHalves];
#pragma unroll
      for (int i = 0; i < 2 * kHalves; ++i)
        rows[i] = transposed(bf16_pair(d[i / 2][4 * n + i % 2 * 2] * scales[i % 2],
                                       d[i / 2][4 * n + i % 2 * 2 + 1] * scales[i % 2]));
      const uint4 eight = quad_transposed(rows);
      if (slot >= 0 && own < common.w.hidden)
        __stcs(reinterpret_cast<uint4*>(outputs + std::int64_t{slot} * common.w.hidden), eight);
    }
  }

 private:
  __device__ int padded() const { return padded_to(args.common.w.inner, kChunkCols); }

  template <int kHalf>
  __device__ __forceinline__ void multiply_gates(float (&d)[kHalves][kHalf / 2]) const {
    const PackedExpertsView& w = args.common.w;
    const float gate_scale = w.gate_scales[expert] * factors.x;
    const float up_scale = w.up_scales[expert] * factors.y;
    const float limit = args.common.routed.limit;
#pragma unroll
    for (int half = 0; half < kHalves; ++half)
#pragma unroll
      for (int n = 0; n < kHalf / 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& h = d[half][4 * n + i];
          h = swiglu_value<quick_sigmoid>(h * gate_scale, d[half][4 * n + i + 2] * up_scale, limit);
        }
  }

  // A thread per token tells the other block the peak of this one's columns.
  __device__ __forceinline__ void find_scales(int tokens) const {
    Peaks& peaks = shared.peaks;
    unsigned* theirs = peaks.theirs[tile % 2];
    const int thread = static_cast<int>(threadIdx.x);
    if (thread >= tokens) return;
    if (thread == 0) barrier_expect(&shared.peaks_full, tokens * 4);
    const unsigned mine = peaks.mine[thread];
    peaks.mine[thread] = 0;
    send_to_rank(reinterpret_cast<float*>(theirs + thread), __uint_as_float(mine),
                 &shared.peaks_full, cluster_rank() ^ 1u);
    wait_for_ranks(&shared.peaks_full, static_cast<std::uint32_t>(tile % 2));
    const float scale = fp8_activation_scale(__uint_as_float(max(mine, theirs[thread])));
    peaks.inverse[thread] = fp8_activation_inverse(scale);
    const int slot = table.slots[thread];
    const std::int64_t blocks = padded() / kFp8ActivationBlock;
    if (cluster_rank() == 0 && slot >= 0)
      args.hidden.scales[slot * blocks + row / (2 * kFp8ActivationBlock)] = scale;
  }

  template <int kHalf>
  __device__ __forceinline__ void stage_codes(const float (&d)[kHalves][kHalf / 2]) const {
    const int lane = lane_id();
    const float* inverses = shared.peaks.inverse + lane % 4 * 2;
    std::uint8_t* to = &shared.codes[lane % 4 * 2][fp8_input_place(row / 2 % 64 + lane / 4)];
#pragma unroll
    for (int half = 0; half < kHalves; ++half)
#pragma unroll
      for (int n = 0; n < kHalf / 8; ++n) {
        const int token = half * kHalf + n * 8;
        const float2 inverse = *reinterpret_cast<const float2*>(inverses + token);
        const std::uint32_t codes =
            e4m3_word({d[half][4 * n] * inverse.x, d[half][4 * n + 1] * inverse.y, 0, 0});
        to[token * kCodeRow] = static_cast<std::uint8_t>(codes);
        to[(token + 1) * kCodeRow] = static_cast<std::uint8_t>(codes >> 8);
      }
  }

  template <int kHalf>
  __device__ __forceinline__ void store_codes() const {
    constexpr int kPieces = 64 / 16;
    const int thread = static_cast<int>(threadIdx.x);
    const int piece = thread % kPieces;
    const int column = row / kTileRows * (kTileRows / 2) + piece * 16;
    for (int token = thread / kPieces; token < kHalves * kHalf;
         token += kMultiplyingThreads / kPieces) {
      const int slot = table.slots[token];
      if (slot >= 0)
        *reinterpret_cast<uint4*>(args.hidden.codes + std::int64_t{slot} * padded() + column) =
            *reinterpret_cast<const uint4*>(&shared.codes[token][piece * 16]);
    }
  }
};

}  // namespace quatrain::cuda::prefill::wide

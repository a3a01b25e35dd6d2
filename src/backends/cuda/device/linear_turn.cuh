// SPDX-License-Identifier: Apache-2.0
// What a warp of linear_stream.cu multiplies at once: a turn of its ring by the inputs of the same
// columns.
#pragma once

#include <cstdint>

#include "backends/cuda/device/linear_inputs.cuh"
#include "backends/cuda/device/linear_ring.cuh"
#include "backends/cuda/device/linear_tile.cuh"
#include "backends/cuda/device/reduce.cuh"

namespace quatrain::cuda::stream {

/// Tiles of 8 tokens, which is what products take.
template <int kTokens>
inline constexpr int kTokenTiles = kTokens > 8 ? kTokens / 8 : 1;

/// Blocks of columns of a turn, so that products need not wait for each other.
template <LinearKind kKind>
inline constexpr int kTurnBlocks = kKind == LinearKind::kBf16 ? 1 : 2;
/// Of a warp.
inline constexpr int kRingBytes = 4 * kRingSlotBytes;
template <LinearKind kKind>
inline constexpr int kTurnSlots = kTurnBlocks<kKind>* kPieces<kKind> / 2;
template <LinearKind kKind>
inline constexpr int kRingTurns = kRingBytes / kRingSlotBytes / kTurnSlots<kKind>;
template <LinearKind kKind>
using Ring = StripRing<kTurnSlots<kKind>>;

template <LinearKind kKind, int kTokens>
class Turn {
  static constexpr int kTiles = kTokenTiles<kTokens>;
  static constexpr int kBlocks = kTurnBlocks<kKind>;
  static constexpr int kParts = cuda::kParts<kKind>;
  using Inputs = SplitInputs<kTokens, kParts>;

 public:
  /// Of a strip: a lane has two rows, ring_row() and the one 8 further, of two tokens of each tile.
  using Sums = float[kTiles][4];
  /// FP8: of the unit's first row (lanes 0 to 7) or last (8 to 15), a lane of block lane % 8. FP4:
  /// of a turn, as WeightBlock has them.
  struct Scales {
    float of_lane;
    std::uint32_t of[kIsFp4<kKind> ? kBlocks : 1][2];
  };

  /// Block `first` of `inputs` and those behind it, with `tokens` tokens.
  __device__ Turn(const Inputs& inputs, int first, int tokens)
      : inputs_(inputs), first_(first), tokens_(tokens) {}

  /// FP8: asks for what products are multiplied by; the turn begins at block `block` of its slice,
  /// and the scales of the lane's rows are those of lanes `from` and those behind.
  __device__ void load_factors(const Scales& scales, int block, const int (&from)[2]) {
    if constexpr (kIsFp8<kKind>) {
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
        for (int half = 0; half < 2; ++half)
          rows_[b][half] = __shfl_sync(kAllLanes, scales.of_lane, from[half] + block + b);
        const float* factors = inputs_.factors + (first_ + b) * kTokens;
#pragma unroll
        for (int t = 0; t < kTiles; ++t)  // of tokens that are not there any will do
          tokens_of_[b][t] = *reinterpret_cast<const float2*>(
              factors + min(8 * t + lane_id() % 4 * 2, kTokens - 2));
      }
    }
  }

  /// The turn that `ring` has waited for.
  __device__ void multiply(const Ring<kKind>& ring, const Scales& scales) {
    constexpr int kPiecePairs = Inputs::kPairs / kPieces<kKind>;
    WeightBlock<kKind> w[kBlocks];
    // What goes with tokens that are not there is not used.
    const uint4* inputs[kTiles][2];  // of pairs of steps by their parity
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int parity = 0; parity < 2; ++parity)
        inputs[t][parity] =
            inputs_.at(first_, parity, min(8 * t + lane_id() / 4, tokens_ - 1), lane_id() % 4);
#pragma unroll
    for (int pair = 0; pair < Inputs::kPairs; ++pair) {
      std::uint32_t a[kBlocks][2][4];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        if (pair % kPiecePairs == 0)
#pragma unroll
          for (int row = 0; row < 2; ++row)
            w[b].piece[pair / kPiecePairs][row] =
                ring.read(b * kPieces<kKind> + pair / kPiecePairs, row);
        if constexpr (kIsFp4<kKind>) {
          w[b].scale[0] = scales.of[b][0];
          w[b].scale[1] = scales.of[b][1];
        }
        decode_pair<kKind>(w[b], pair, a[b]);
      }
      uint4 x[kBlocks][kTiles][kParts];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b)
#pragma unroll
        for (int t = 0; t < kTiles; ++t)
#pragma unroll
          for (int part = 0; part < kParts; ++part)
            x[b][t][part] = inputs[t][pair % 2][b * Inputs::kBlockShares +
                                                (pair / 2 * 2 * kParts + part) * kTokens * 4];
#pragma unroll
      for (int step = 0; step < 2; ++step)
#pragma unroll
        for (int part = 0; part < kParts; ++part)
#pragma unroll
          for (int b = 0; b < kBlocks; ++b)
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
              const uint4& share = x[b][t][part];
              mma_of<kKind>(products_[b][t], a[b][step], step == 0 ? share.x : share.z,
                            step == 0 ? share.y : share.w);
            }
    }
  }

  /// Adds the products to the sums of their strip, scaled. Those of blocks that are not there are
  /// zero.
  __device__ void add_to(Sums& sums) const {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float* sum = sums[t] + 2 * half;
          const float* product = products_[b][t] + 2 * half;
          if constexpr (kIsFp8<kKind>) {
            sum[0] = fmaf(product[0], rows_[b][half] * tokens_of_[b][t].x, sum[0]);
            sum[1] = fmaf(product[1], rows_[b][half] * tokens_of_[b][t].y, sum[1]);
          } else {
            sum[0] += product[0];
            sum[1] += product[1];
          }
        }
  }

 private:
  const Inputs inputs_;
  const int first_, tokens_;
  float rows_[kBlocks][2];  // FP8: factors of the lane's rows
  float2 tokens_of_[kBlocks][kTiles];
  Sums products_[kBlocks] = {};
};

}  // namespace quatrain::cuda::stream

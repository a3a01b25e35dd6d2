// SPDX-License-Identifier: Apache-2.0
// The queries of a row at the width of DeepSeek-V4's latents, on their way into shared memory as
// F16, in panels as wgmma_f16.cuh multiplies them.
#pragma once

#include "backends/cuda/device/latent_keys.cuh"
#include "backends/cuda/device/latent_results.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/row_math.cuh"
#include "backends/cuda/device/scalar.cuh"

namespace quatrain::cuda::latent {

/// Heads begin, begin + kStep, … of a row on their way through registers of a warp, kBatch of
/// them; the tile that they go to has kRows rows. The L2 cache lets go of queries that are kOnce:
/// those of many rows would drive out keys.
template <int kBatch, int kRows, int kStep = latent::kWarps, bool kOnce = false>
class QueryBatch {
 public:
  /// Asks for those of them that are less than `heads`; q is head 0.
  __device__ QueryBatch(const float* q, int begin, int heads) : begin_(begin), heads_(heads) {
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      if (head(j) >= heads_) continue;
      const auto* from = reinterpret_cast<const float2*>(q + head(j) * kWidth) + lane_id();
#pragma unroll
      for (int i = 0; i < kPairs; ++i)
        x_[j][i] = kOnce ? __ldcs(from + i * kWarp) : from[i * kWarp];
    }
  }

  /// Normalised and rotated if they are not yet: sums and bits are those of norm_rope_rows.cuh. The
  /// other rows of the tile stay as they are: a row of the products depends on no other row of the
  /// queries.
  __device__ void store(const AttendArgs& args, const float2* turns, unsigned char* tile) {
    const int turn = lane_id() - (kWarp - args.pairs);
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      if (head(j) >= heads_) continue;
      float2(&x)[kPairs] = x_[j];
      if (args.norms_queries) {
        float squares = 0;
#pragma unroll
        for (int i = 0; i < kPairs; ++i)
          squares = fmaf(x[i].x, x[i].x, fmaf(x[i].y, x[i].y, squares));
        const float factor = rms_factor(warp_sum(squares), kWidth, args.query_eps);
#pragma unroll
        for (int i = 0; i < kPairs; ++i) x[i] = {x[i].x * factor, x[i].y * factor};
        float last[2] = {x[kPairs - 1].x, x[kPairs - 1].y};
        if (turn >= 0) rotate_pair(last, turns[turn]);
        x[kPairs - 1] = {last[0], last[1]};
      }
      unsigned char* to = tile + panel_offset(head(j), lane_id() / 4) + lane_id() % 4 * 4;
#pragma unroll
      for (int i = 0; i < kPairs; ++i)
        *reinterpret_cast<std::uint32_t*>(to + i * kRows * kPanelRowBytes) =
            f16_pair(x[i].x, x[i].y);
    }
  }

 private:
  static constexpr int kPairs = kWidth / 2 / kWarp;  // of a lane: one in each panel
  static_assert(2 * kWarp == kPanelColumns && kMostPairs == kWarp, "the last pair may turn");

  __device__ int head(int j) const { return begin_ + j * kStep; }

  int begin_, heads_;
  float2 x_[kBatch][kPairs] = {};  // which saves the compiler from spilling
};

/// Queries of `heads` heads at q into a tile of kHeads rows.
__device__ inline void load_queries(const AttendArgs& args, const float* q, int heads,
                                    const float2* turns, unsigned char* tile) {
  constexpr int kBatch = 4;
#pragma unroll 1
  for (int begin = warp_id(); begin < heads; begin += kBatch * latent::kWarps)
    QueryBatch<kBatch, kHeads>(q, begin, heads).store(args, turns, tile);
}

}  // namespace quatrain::cuda::latent

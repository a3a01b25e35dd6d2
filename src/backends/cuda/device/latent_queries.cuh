// SPDX-License-Identifier: Apache-2.0
// The queries of up to 64 heads of a row at the width of DeepSeek-V4's latents, on their way into
// shared memory as F16, as wgmma_f16.cuh multiplies them.
#pragma once

#include "backends/cuda/device/latent_keys.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/row_math.cuh"
#include "backends/cuda/device/scalar.cuh"

namespace quatrain::cuda::latent {

inline constexpr int kHeads = 64;  // of a block

// Queries of `heads` heads at q, normalised and rotated if they are not yet: sums and bits are
// those of norm_rope_rows.cuh. A warp takes a head at a time. The other rows of the tile stay as
// they are: a row of the products depends on no other row of the queries.
__device__ inline void load_queries(const AttendArgs& args, const float* q, int heads,
                                    const float2* turns, unsigned char* tile) {
  constexpr int kBatch = 4;                   // heads on their way
  constexpr int kPairs = kWidth / 2 / kWarp;  // of a lane: one in each panel
  static_assert(2 * kWarp == kPanelColumns && kMostPairs == kWarp, "the last pair may turn");
  const int turn = lane_id() - (kWarp - args.pairs);
#pragma unroll 1
  for (int begin = warp_id(); begin < heads; begin += kBatch * latent::kWarps) {
    float2 x[kBatch][kPairs] = {};  // which saves the compiler from spilling
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int head = begin + j * latent::kWarps;
      if (head >= heads) continue;
      const auto* from = reinterpret_cast<const float2*>(q + head * kWidth) + lane_id();
#pragma unroll
      for (int i = 0; i < kPairs; ++i) x[j][i] = from[i * kWarp];
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int row = begin + j * latent::kWarps;
      if (row >= heads) continue;
      if (args.norms_queries) {
        float squares = 0;
#pragma unroll
        for (int i = 0; i < kPairs; ++i)
          squares = fmaf(x[j][i].x, x[j][i].x, fmaf(x[j][i].y, x[j][i].y, squares));
        const float factor = rms_factor(warp_sum(squares), kWidth, args.query_eps);
#pragma unroll
        for (int i = 0; i < kPairs; ++i) x[j][i] = {x[j][i].x * factor, x[j][i].y * factor};
        float last[2] = {x[j][kPairs - 1].x, x[j][kPairs - 1].y};
        if (turn >= 0) rotate_pair(last, turns[turn]);
        x[j][kPairs - 1] = {last[0], last[1]};
      }
      unsigned char* to = tile + panel_offset(row, lane_id() / 4) + lane_id() % 4 * 4;
#pragma unroll
      for (int i = 0; i < kPairs; ++i)
        *reinterpret_cast<std::uint32_t*>(to + i * kPanelBytes) = f16_pair(x[j][i].x, x[j][i].y);
    }
  }
}

}  // namespace quatrain::cuda::latent

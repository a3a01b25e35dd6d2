// SPDX-License-Identifier: Apache-2.0
// How linear_stream.cu shares its work out and lays out the shared memory of a block.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/cluster.cuh"
#include "backends/cuda/device/linear_strip.cuh"
#include "backends/cuda/launch/linear_stream.h"

namespace quatrain::cuda::stream {

inline constexpr int kWarps = kSliceBlocks;  // a warp per block of columns
inline constexpr int kThreads = kWarps * kWarp;

/// Strips of a turn: enough products that do not wait for each other.
template <LinearKind kKind, int kTokenTiles>
inline constexpr int kTurn = kKind == LinearKind::kBf16 || kTokenTiles == 2 ? 1 : 2;
/// Turns whose products are kept, and turns after which they are added up: by then most warps have
/// come that far.
inline constexpr int kBuffers = 2, kLag = 1;
/// Strips that a warp has in its ring.
template <LinearKind kKind, int kTokenTiles>
inline constexpr int kRing = kKind == LinearKind::kBf16  ? 2
                             : kKind == LinearKind::kFp8 ? 4
                                                         : 8;
/// Strips after which the sums of slices meet.
template <int kTokenTiles>
inline constexpr int kRound = 16 / kTokenTiles;

/// Dynamic shared memory of a block.
template <LinearKind kKind, int kTokenTiles>
struct Shared {
  static constexpr int kTokens = 8 * kTokenTiles;
  static constexpr int kStrips = kTurn<kKind, kTokenTiles>;
  static constexpr int kStripPartials = kWarps * kStripRows * kTokens;
  static constexpr int kScales = 2 * kStrips * kWarps;
  char* ring;          // [kWarps][kRing] strips
  float* ring_scales;  // [kWarps][kRing][2]: FP8, of the first and the last row of a strip
  float* partials;     // [kBuffers][kStrips][kWarps][kStripRows][kTokens]: products
  Barrier* full;       // [kBuffers]: all warps have stored their products
  Barrier* empty;      // [kBuffers]: they have been added up
  Barrier* complete;   // [2]: all sums of a round have come
  Barrier* taken;      // [2]: all blocks have taken them
  float* factors;      // [kBuffers][kWarps][kTokens]: of the inputs
  float* scales;       // [kBuffers][kStrips][2][kWarps]: as ring_scales, of a turn
  float* received;     // [2][slices][rows_per_block][kTokens]: sums of a round

  static constexpr std::size_t kRingBytes = static_cast<std::size_t>(kWarps) *
                                            kRing<kKind, kTokenTiles> *
                                            (kStripBytes<kKind> + 2 * sizeof(float));
  static constexpr std::size_t kPartialBytes = std::size_t{4} * kBuffers * kStrips * kStripPartials;
  static constexpr int kBarriers = 2 * kBuffers + 4;
  static constexpr std::size_t kBytes = kRingBytes + kPartialBytes + kBarriers * sizeof(Barrier) +
                                        std::size_t{4} * kBuffers * (kWarps * kTokens + kScales);

  __device__ explicit Shared(char* memory) {
    ring = memory;
    ring_scales =
        reinterpret_cast<float*>(ring + kWarps * kRing<kKind, kTokenTiles> * kStripBytes<kKind>);
    partials = reinterpret_cast<float*>(ring + kRingBytes);
    full = reinterpret_cast<Barrier*>(ring + kRingBytes + kPartialBytes);
    empty = full + kBuffers;
    complete = empty + kBuffers;
    taken = complete + 2;
    factors = reinterpret_cast<float*>(full + kBarriers);
    scales = factors + kBuffers * kWarps * kTokens;
    received = scales + kBuffers * kScales;
  }
};

/// What a block works on: a part of a launch's weights, one group and one slice of columns or more.
struct Share {
  int group;
  int first, end;              // strips
  int first_slice, end_slice;  // of the columns
  int token0, tokens;
};

__device__ inline Share share_of(const LinearStream& args, const StreamPart& part, int most) {
  const int local = static_cast<int>(cluster_index()) - part.first_cluster;
  const int nth = local % part.clusters;
  Share share;
  share.group = local / part.clusters;
  share.first = part.strips * nth / part.clusters;
  share.end = part.strips * (nth + 1) / part.clusters;
  share.first_slice = static_cast<int>(cluster_rank()) * args.slices_per_block;
  share.end_slice = min(share.first_slice + args.slices_per_block, args.slices);
  share.token0 = static_cast<int>(blockIdx.y) * most;
  share.tokens = min(most, args.tokens - share.token0);
  return share;
}

/// The product that has a strip of a part.
__device__ inline int product_at(const LinearStream& args, const StreamPart& part, int strip) {
  int p = part.first_product;
  while (p + 1 < part.first_product + part.count && strip >= args.products[p + 1].first_strip) ++p;
  return p;
}

__device__ inline Strip strip_of(const StreamProduct& product, int group, int strip) {
  const int first = group * product.group_rows;
  return {.row = first + (strip - product.first_strip) * kStripRows,
          .end = first + product.group_rows};
}

/// The order in which a block meets its strips: in rounds, each of them once per slice.
template <int kTokenTiles>
struct Walk {
  int round, slice, strip;

  __device__ explicit Walk(const Share& share)
      : round(share.first), slice(share.first_slice), strip(share.first) {}
  __device__ bool ended(const Share& share) const { return round >= share.end; }
  __device__ int round_end(const Share& share) const {
    return min(round + kRound<kTokenTiles>, share.end);
  }
  __device__ void advance(const Share& share, int strips) {
    strip += strips;
    if (strip < round_end(share)) return;
    if (++slice == share.end_slice) {
      slice = share.first_slice;
      round += kRound<kTokenTiles>;
    }
    strip = round;
  }
};

}  // namespace quatrain::cuda::stream

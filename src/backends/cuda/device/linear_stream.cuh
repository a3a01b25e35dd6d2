// SPDX-License-Identifier: Apache-2.0
// How linear_stream.cu shares its work out and lays out the shared memory of a block.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/cluster.cuh"
#include "backends/cuda/device/linear_inputs.cuh"
#include "backends/cuda/device/linear_strip.cuh"
#include "backends/cuda/launch/linear_stream.h"

namespace quatrain::cuda::stream {

inline constexpr int kMaxClusterBlocks = 8;  // what every chip schedules

/// Inputs of 8 tokens are read so fast from shared memory that every warp may take one strip at a
/// time; with 16 tokens half as many warps take two, which share what they read.
template <int kTokenTiles>
inline constexpr int kWarps = 16 / kTokenTiles;
template <int kTokenTiles>
inline constexpr int kThreads = kWarps<kTokenTiles>* kWarp;
template <LinearKind kKind, int kTokenTiles>
inline constexpr int kUnitStrips = kTokenTiles == 2 && kKind != LinearKind::kBf16 ? 2 : 1;
/// Blocks of columns that a warp multiplies at once, so that products need not wait for each other.
template <LinearKind kKind, int kTokenTiles>
inline constexpr int kTurn = kTokenTiles == 1 && kKind != LinearKind::kBf16 ? 2 : 1;

/// Bytes of a unit's block of columns, and how many of those a warp has under way.
template <LinearKind kKind, int kTokenTiles>
inline constexpr int kSlotBytes = kUnitStrips<kKind, kTokenTiles>* kStripBytes<kKind>;
template <int kTokenTiles>
inline constexpr int kWarpRingBytes = kTokenTiles == 1 ? 8192 : 12288;
template <LinearKind kKind, int kTokenTiles>
inline constexpr int kSlots = kWarpRingBytes<kTokenTiles> / kSlotBytes<kKind, kTokenTiles>;

/// Strips after which the sums of slices meet. Fewer where there are many slices, whose sums would
/// not find room.
template <LinearKind kKind, int kTokenTiles>
__host__ __device__ constexpr int round_strips(int slices) {
  const int all = kWarps<kTokenTiles> * kUnitStrips<kKind, kTokenTiles>;
  return slices > 2 * kMaxClusterBlocks ? all / 4 : slices > kMaxClusterBlocks ? all / 2 : all;
}
/// As many of them as a block of the cluster collects, at most.
template <LinearKind kKind, int kTokenTiles>
__host__ __device__ constexpr int owned_strips(int slices, int cluster_blocks) {
  return (round_strips<kKind, kTokenTiles>(slices) + cluster_blocks - 1) / cluster_blocks;
}

/// Dynamic shared memory of a block.
template <int kTokenTiles>
struct Shared {
  static constexpr int kTokens = 8 * kTokenTiles;
  SplitInputs<kTokens> inputs;
  char* ring;         // [kWarps][kSlots][kSlotBytes]
  float4* received;   // [2][slices][owned strips][kTokenTiles][lanes]: sums of a round
  Barrier* complete;  // [2]: all sums of a round have come
  Barrier* taken;     // [2]: all blocks have taken them

  static constexpr int kRingBytes = kWarps<kTokenTiles> * kWarpRingBytes<kTokenTiles>;
  static constexpr std::size_t kBytes = SplitInputs<kTokens>::kBytes + kRingBytes +
                                        4 * SplitInputs<kTokens>::kFactors + 4 * sizeof(Barrier);

  __device__ explicit Shared(char* memory) {
    inputs.parts = reinterpret_cast<uint4*>(memory);
    ring = memory + SplitInputs<kTokens>::kBytes;
    inputs.factors = reinterpret_cast<float*>(ring + kRingBytes);
    complete = reinterpret_cast<Barrier*>(inputs.factors + SplitInputs<kTokens>::kFactors);
    taken = complete + 2;
    received = reinterpret_cast<float4*>(taken + 2);
  }
  /// With room for what is received.
  static constexpr std::size_t bytes(int slices, int owned) {
    return kBytes + static_cast<std::size_t>(slices > 1 ? 2 * slices * owned : 0) * kTokenTiles *
                        kWarp * sizeof(float4);
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

}  // namespace quatrain::cuda::stream

// SPDX-License-Identifier: Apache-2.0
// How linear_stream.cu shares its work out and lays out the shared memory of a block.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/cluster.cuh"
#include "backends/cuda/device/linear_inputs.cuh"
#include "backends/cuda/device/linear_ring.cuh"
#include "backends/cuda/device/linear_strip.cuh"
#include "backends/cuda/device/linear_turn.cuh"
#include "backends/cuda/launch/linear_stream.h"

namespace quatrain::cuda::stream {

inline constexpr int kMaxClusterBlocks = 8;  // what every chip schedules

inline constexpr int kWarps = 16;
inline constexpr int kThreads = kWarps * kWarp;
/// FP8: scales of a unit, a row of blocks for its first row and one for its last.
inline constexpr int kUnitScales = 2 * kSliceBlocks;
/// Slices whose inputs fit shared memory at once, by how many tokens a kernel has room for.
template <int kTokens, int kParts>
inline constexpr int kMostHeld = 32 / (kTokens * kParts);

/// Dynamic shared memory of a block.
template <int kTokens, int kParts>
struct Shared {
  using Inputs = SplitInputs<kTokens, kParts>;
  char* ring;         // [kWarps][kRingBytes]
  Barrier* full;      // [kWarps][kMostTurns]: of the rings
  Barrier* complete;  // [2]: all sums of a round have come
  Barrier* taken;     // [2]: all blocks have taken them
  float* scales;      // [kWarps][kUnitScales]: on their way to the lanes of a unit
  Inputs inputs;      // of the held slices
  float4* received;   // [2][slices][owned strips][token tiles][lanes]: sums of a round

  static constexpr int kMostTurns = kRingBytes / kRingSlotBytes;
  static constexpr int kBarrierBytes = (kWarps * kMostTurns + 4) * 8 / 128 * 128 + 128;
  static constexpr int kScaleBytes = kWarps * kUnitScales * 4;
  static constexpr int kHeldBytes = kSliceBlocks * Inputs::kBlockBytes;  // for each slice

  __device__ Shared(char* memory, int held_slices) {
    const int blocks = held_slices * kSliceBlocks;
    ring = memory;
    full = reinterpret_cast<Barrier*>(ring + kWarps * kRingBytes);
    complete = full + kWarps * kMostTurns;
    taken = complete + 2;
    scales = reinterpret_cast<float*>(ring + kWarps * kRingBytes + kBarrierBytes);
    inputs.shares = reinterpret_cast<uint4*>(scales + kWarps * kUnitScales);
    inputs.factors = reinterpret_cast<float*>(inputs.shares + blocks * Inputs::kBlockShares);
    received = reinterpret_cast<float4*>(inputs.factors + blocks * kTokens);
  }
  static constexpr std::size_t bytes(int held_slices, int received_strips) {
    return kWarps * kRingBytes + kBarrierBytes + kScaleBytes +
           static_cast<std::size_t>(held_slices) * kHeldBytes +
           static_cast<std::size_t>(received_strips) * kTokenTiles<kTokens> * kWarp *
               sizeof(float4);
  }
};

/// How the slices of a launch are shared out. Large ones have small clusters, with which the chip
/// is full; in small ones that would only mean more inputs to read for every block. kParts is the
/// most that inputs have.
template <int kTokens, int kParts>
struct Cut {
  static constexpr std::size_t kMaxShared = 227 * 1024;
  int cluster_blocks, slices_per_block, held_slices;
  int round_strips;  // after which the sums of slices meet: fewer where they are many
  std::size_t shared_bytes;

  constexpr Cut(int slices, bool is_large) {
    const int held = is_large ? kMostHeld<kTokens, kParts> : 1;
    const int least = std::min(slices, 2);  // sums of slices are sent by clusters alone
    slices_per_block =
        ceil_div(slices, std::clamp(ceil_div(slices, held), least, kMaxClusterBlocks));
    cluster_blocks = ceil_div(slices, slices_per_block);
    held_slices = std::min(slices_per_block, held);
    round_strips = kWarps / held_slices;
    while (bytes(slices) > kMaxShared && round_strips > 1) --round_strips;
    shared_bytes = bytes(slices);
  }
  constexpr bool fits() const { return shared_bytes <= kMaxShared; }

 private:
  constexpr std::size_t bytes(int slices) const {
    const int owned = ceil_div(round_strips, cluster_blocks);
    return Shared<kTokens, kParts>::bytes(held_slices, slices > 1 ? 2 * slices * owned : 0);
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
  const int nth = part.clusters.remainder(local);
  Share share;
  share.group = part.clusters.quotient(local);
  share.first = part.clusters.quotient(part.strips * nth);
  share.end = part.clusters.quotient(part.strips * (nth + 1));
  share.first_slice = static_cast<int>(cluster_rank()) * args.slices_per_block;
  share.end_slice = min(share.first_slice + args.slices_per_block, args.slices);
  share.token0 = static_cast<int>(blockIdx.y) * most;
  share.tokens = min(most, args.tokens - share.token0);
  return share;
}

__device__ inline Strip strip_of(const MappedProduct& product, int group, int strip) {
  const int first = group * product.group_rows;
  return {.row = first + (strip - product.first) * kStripRows, .end = first + product.group_rows};
}

}  // namespace quatrain::cuda::stream

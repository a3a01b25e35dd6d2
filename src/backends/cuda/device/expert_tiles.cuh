// SPDX-License-Identifier: Apache-2.0
// The passes over experts' weights that a batch needs, made by one warp in shared memory.
//
// Every block of a grid makes the same list, because it depends on the routing alone.
#pragma once

#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/launch/experts.h"

namespace quatrain::cuda {

/// Up to tile_tokens slots of one expert: sorted[first, first + count).
struct TokenTile {
  std::uint16_t expert;
  std::uint16_t count;
  std::int32_t first;
};

struct TileTables {
  TokenTile* tiles;
  std::uint16_t* sorted;  // [T * k] slots by expert, in ascending order within one
  std::uint16_t* ranks;   // [T * k] scratch
  int* offsets;           // [E] scratch
};

/// The expert of a slot, or −1 for padding and slots past the end.
__device__ inline int expert_of(const RoutedTokens& routed, int slot) {
  if (slot >= routed.tokens * routed.k || routed.batch_slots[slot / routed.k] < 0) return -1;
  return routed.ids[slot];
}

/// Fills the tables and returns the number of tiles. All lanes of one warp call it.
template <int kTileTokens>
__device__ int list_token_tiles(const RoutedTokens& routed, int experts, const TileTables& t) {
  const int lane = lane_id();
  const int slots = routed.tokens * routed.k;
  for (int e = lane; e < experts; e += kWarp) t.offsets[e] = 0;
  __syncwarp();
  // Rank of each slot within its expert, and counts of experts.
  for (int begin = 0; begin < slots; begin += kWarp) {
    const int e = expert_of(routed, begin + lane);
    const unsigned same = __match_any_sync(kAllLanes, e);
    const int before = e >= 0 ? t.offsets[e] : 0;
    __syncwarp();  // counts are read before they are raised
    if (e >= 0) {
      const int rank = __popc(same & ((1u << lane) - 1u));
      t.ranks[begin + lane] = static_cast<std::uint16_t>(before + rank);
      if (rank == 0) t.offsets[e] = before + __popc(same);
    }
    __syncwarp();
  }
  int first = 0, tiles = 0;
  for (int begin = 0; begin < experts; begin += kWarp) {
    const int e = begin + lane;
    const int count = e < experts ? t.offsets[e] : 0;
    const int passes = (count + kTileTokens - 1) / kTileTokens;
    const int last = first + warp_scan(count);
    const int last_tile = tiles + warp_scan(passes);
    if (e < experts) t.offsets[e] = last - count;
    for (int i = 0; i < passes; ++i)
      t.tiles[last_tile - passes + i] = {
          static_cast<std::uint16_t>(e),
          static_cast<std::uint16_t>(min(kTileTokens, count - i * kTileTokens)),
          last - count + i * kTileTokens};
    first = __shfl_sync(kAllLanes, last, kWarp - 1);
    tiles = __shfl_sync(kAllLanes, last_tile, kWarp - 1);
  }
  __syncwarp();
  for (int slot = lane; slot < slots; slot += kWarp) {
    const int e = expert_of(routed, slot);
    if (e >= 0) t.sorted[t.offsets[e] + t.ranks[slot]] = static_cast<std::uint16_t>(slot);
  }
  return tiles;
}

}  // namespace quatrain::cuda

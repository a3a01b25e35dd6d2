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
  std::int16_t* ids;      // [T * k] experts of slots, −1 for padding
  std::uint16_t* ranks;   // [T * k] scratch
  int* offsets;           // [E] scratch
};

/// Fills `ids`; `thread` of `threads`, which meet before the list is made.
__device__ inline void load_ids(const RoutedTokens& routed, const TileTables& t, int thread,
                                int threads) {
  for (int slot = thread; slot < routed.tokens * routed.k; slot += threads) {
    const int id = routed.ids[slot];
    t.ids[slot] = static_cast<std::int16_t>(routed.batch_slots[slot / routed.k] < 0 ? -1 : id);
  }
}

/// As list_token_tiles, for up to 32 slots of which no expert has more than a tile holds; tiles are
/// in the order of their first slot. Returns −1, with nothing done, when an expert has more.
template <int kTileTokens>
__device__ int list_few_tiles(int slots, const TileTables& t) {
  const int lane = lane_id();
  const unsigned before = (1u << lane) - 1u;
  const int e = lane < slots ? t.ids[lane] : -1;
  const unsigned same = __match_any_sync(kAllLanes, e);
  const int count = e >= 0 ? __popc(same) : 0;
  if (__any_sync(kAllLanes, count > kTileTokens)) return -1;
  const bool leads = e >= 0 && (same & before) == 0;
  const unsigned leaders = __ballot_sync(kAllLanes, leads);
  const int first = warp_scan(leads ? count : 0) - (leads ? count : 0);
  const int start = __shfl_sync(kAllLanes, first, __ffs(static_cast<int>(same)) - 1);
  if (leads)
    t.tiles[__popc(leaders & before)] = {static_cast<std::uint16_t>(e),
                                         static_cast<std::uint16_t>(count), first};
  if (e >= 0) t.sorted[start + __popc(same & before)] = static_cast<std::uint16_t>(lane);
  return __popc(leaders);
}

/// Fills the tables from `ids` and returns the number of tiles. All lanes of one warp call it.
template <int kTileTokens>
__device__ int list_token_tiles(const RoutedTokens& routed, int experts, const TileTables& t) {
  const int lane = lane_id();
  const int slots = routed.tokens * routed.k;
  if (slots <= kWarp) {
    const int few = list_few_tiles<kTileTokens>(slots, t);
    if (few >= 0) return few;
  }
  for (int e = lane; e < experts; e += kWarp) t.offsets[e] = 0;
  __syncwarp();
  // Rank of each slot within its expert, and counts of experts.
  for (int begin = 0; begin < slots; begin += kWarp) {
    const int e = begin + lane < slots ? t.ids[begin + lane] : -1;
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
  // Each lane lists a run of experts.
  const int share = (experts + kWarp - 1) / kWarp;
  const int begin = min(lane * share, experts), end = min(begin + share, experts);
  int count = 0, passes = 0;
  for (int e = begin; e < end; ++e) {
    count += t.offsets[e];
    passes += (t.offsets[e] + kTileTokens - 1) / kTileTokens;
  }
  int first = warp_scan(count) - count;
  int tile = warp_scan(passes);
  const int tiles = __shfl_sync(kAllLanes, tile, kWarp - 1);
  tile -= passes;
  for (int e = begin; e < end; ++e) {
    const int slots_of_e = t.offsets[e];
    t.offsets[e] = first;
    for (int i = 0; i < slots_of_e; i += kTileTokens)
      t.tiles[tile++] = {static_cast<std::uint16_t>(e),
                         static_cast<std::uint16_t>(min(kTileTokens, slots_of_e - i)), first + i};
    first += slots_of_e;
  }
  __syncwarp();
  for (int slot = lane; slot < slots; slot += kWarp) {
    const int e = t.ids[slot];
    if (e >= 0) t.sorted[t.offsets[e] + t.ranks[slot]] = static_cast<std::uint16_t>(slot);
  }
  return tiles;
}

}  // namespace quatrain::cuda

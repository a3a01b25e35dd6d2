// SPDX-License-Identifier: Apache-2.0
// How linear_wave.cu lays out the shared memory of a block, what a block works on, and how blocks
// meet.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backends/cuda/device/acquire.cuh"
#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/linear_blobs.cuh"
#include "backends/cuda/device/linear_ring.cuh"
#include "backends/cuda/device/linear_strip.cuh"
#include "backends/cuda/launch/linear_wave.h"

namespace quatrain::cuda::wave {

inline constexpr int kGroupWarps = 4;
inline constexpr int kGroupThreads = kGroupWarps * kWarp;
inline constexpr int kWarps = kWaveGroups * kGroupWarps;
inline constexpr int kThreads = kWarps * kWarp;
/// 128-byte pieces of a row that a block of columns takes.
template <LinearKind kKind>
inline constexpr int kBlockSlots = kPieces<kKind> / 2;

inline constexpr int kSharedBytes = 227 << 10;
inline constexpr int kSliceHalves = 2 * kSliceBlocks;

/// Dynamic shared memory of a block.
template <LinearKind kKind, int kTokens>
struct Shared {
  using Blob = InputBlob<kTokens, kParts<kKind>>;
  /// Of half a block of columns each; all of a slice, where there is room for them.
  static constexpr int kStages = std::min(kSliceHalves, (128 << 10) / Blob::kHalfBytes);
  static constexpr bool kHoldsAll = kStages == kSliceHalves;
  static_assert(kStages % 2 == 0);
  static constexpr int kBarrierBytes = static_cast<int>(sizeof(Barrier));
  static constexpr int kSlots = (kSharedBytes - kStages * (Blob::kHalfBytes + 2 * kBarrierBytes) -
                                 kStages / 2 * Blob::kFactorBytes - kMostUnits * kSliceBlocks * 4) /
                                (kRingSlotBytes + kBarrierBytes);

  char* stages;    // [kStages]: inputs of halves of blocks of columns
  char* ring;      // [kSlots]: of all warps
  float* factors;  // [kStages / 2][kTokens]
  float* scales;   // [kMostUnits][kSliceBlocks]: FP8
  Barrier* there;  // [kStages]: inputs have come
  Barrier* empty;  // [kStages]: they have been read, where there are more to come
  Barrier* full;   // [kSlots]

  __device__ explicit Shared(char* memory) {
    stages = memory;
    ring = stages + kStages * Blob::kHalfBytes;
    factors = reinterpret_cast<float*>(ring + kSlots * kRingSlotBytes);
    scales = factors + kStages / 2 * kTokens;
    there = reinterpret_cast<Barrier*>(scales + kMostUnits * kSliceBlocks);
    empty = there + kStages;
    full = empty + kStages;
  }
};

/// What a block works on: a tile, which is some units of a part and a group, and one slice of the
/// columns.
struct Share {
  int first, end;  // units
  int group;
  int tile, slice;  // tile of the group's, of all parts
  int blocks;       // of columns in the slice

  __device__ Share(const LinearWave& args, const WavePart& part) {
    const int tile_of_all = args.slice_of.quotient(static_cast<int>(blockIdx.x));
    slice = static_cast<int>(blockIdx.x) - tile_of_all * args.slices;
    blocks = min(kSliceBlocks, ceil_div(args.cols, kLinearBlock) - slice * kSliceBlocks);
    const int tile_of_part = tile_of_all - part.first_tile;
    group = part.tiles.quotient(tile_of_part);
    const int own = tile_of_part - group * part.tiles.value();
    first = part.tiles.quotient(part.units * own);
    end = part.tiles.quotient(part.units * (own + 1));
    tile = own + (part.first_tile > 0 ? args.tiles - part.tiles.value() : 0);
  }
  __device__ int units() const { return end - first; }
};

/// 64 rows of a product and a group.
struct Unit {
  int product;
  int row, end;  // the first, and the end of the group's

  __device__ Unit(const LinearWave& args, const WavePart& part, int group, int unit)
      : product(product_at(args, part, unit)) {
    const MappedProduct& found = args.products[product];
    row = group * found.group_rows + (unit - found.first) * kUnitRows;
    end = (group + 1) * found.group_rows;
  }
};

/// Where blocks meet that run at the same time. Every meeting turns over the highest bit of the
/// count: one block adds what is left of half the range, so that all others are zero again.
class MeetingPlace {
 public:
  /// One thread, before its block arrives.
  __device__ explicit MeetingPlace(LinearMeeting* at)
      : arrivals_(&at->arrivals), before_(load_relaxed(arrivals_)) {}

  /// Of `count` blocks the `nth`, after a barrier behind the block's writes.
  __device__ void arrive(int nth, int count) const {
    const auto last = static_cast<std::uint32_t>(count - 1);
    __threadfence();
    atomicAdd(arrivals_, nth == 0 ? kTurned - last : 1u);
  }
  /// Until all have arrived; what they wrote before is visible then.
  __device__ void wait() const {
    while (((load_acquire(arrivals_) ^ before_) & kTurned) == 0) {
    }
  }

 private:
  static constexpr std::uint32_t kTurned = 1u << 31;
  std::uint32_t* arrivals_;
  std::uint32_t before_;
};

/// A block's share of splitting the inputs of its group and slice, which it has with the blocks of
/// the other tiles, for all parts. Calls `meanwhile` when the first are on their way.
template <int kTokens, class F>
__device__ inline void split_share(const LinearWave& args, const Share& share, int warp,
                                   const F& meanwhile) {
  constexpr int kAtOnce = 4;
  const int first_block = share.slice * kSliceBlocks,
            all_blocks = ceil_div(args.cols, kLinearBlock);
  const int items = share.blocks * kTokens;  // tokens of a block of columns
  const auto item = [&](int i) { return (warp + i * kWarps) * args.tiles + share.tile; };
  const auto block_of = [&](int i) { return first_block + item(i) / kTokens; };
  float4 x[kAtOnce];
  const auto load = [&](int first) {
#pragma unroll
    for (int i = first; i < first + kAtOnce; ++i)
      if (item(i) < items)
        x[i - first] = load_inputs(args, share.group, item(i) % kTokens,
                                   block_of(i) * kLinearBlock + 4 * lane_id());
  };
  const auto split = [&]<LinearKind kKind>(const WavePart& part, int i, const float4& of) {
    using Blob = InputBlob<kTokens, kParts<kKind>>;
    Blob::template split<kKind>(
        of, item(i) % kTokens,
        part.blobs + Blob::offset(0, share.group, args.groups, block_of(i), all_blocks));
  };
  // Loops, so that there is one copy of the code for each kind.
#pragma unroll 1
  for (int first = 0; first == 0 || item(first) < items; first += kAtOnce) {
    load(first);
    if (first == 0) meanwhile();
#pragma unroll 1
    for (int i = first; i < first + kAtOnce && item(i) < items; ++i) {
#pragma unroll 1
      for (int p = 0; p < args.parts; ++p) {
        if (args.part[p].kind == LinearKind::kBf16)
          split.template operator()<LinearKind::kBf16>(args.part[p], i, x[0]);
        else
          split.template operator()<LinearKind::kFp8Rounded>(args.part[p], i, x[0]);
      }
#pragma unroll
      for (int j = 0; j + 1 < kAtOnce; ++j) x[j] = x[j + 1];
    }
  }
}

}  // namespace quatrain::cuda::wave

// SPDX-License-Identifier: Apache-2.0
// How linear_narrow.cu shares its work out, lays out the shared memory of a block, feeds it with
// inputs and writes its results.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/linear_blobs.cuh"
#include "backends/cuda/launch/linear_narrow.h"

namespace quatrain::cuda::narrow {

inline constexpr int kCopyThreads = 128;  // of which one copies
/// Of kGroups groups, of 64 rows each.
template <int kGroups>
inline constexpr int kProductThreads = kGroups * 128;
// Registers per thread once the groups have shared them out:
// 128 · 40 + 256 · 232 ≤ 384 · 168 and 128 · 24 + 512 · 112 ≤ 640 · 96, what they start with.
template <int kGroups>
inline constexpr int kCopyRegisters = kGroups == 2 ? 40 : 24;
template <int kGroups>
inline constexpr int kProductRegisters = kGroups == 2 ? 232 : 112;
template <int kGroups>
inline constexpr int kRingBytes = (24 << 10) / kGroups;  // of a warp
inline constexpr int kInputBytes = 64 << 10;             // of all stages

/// Dynamic shared memory of a block.
template <LinearKind kKind, int kTokens, int kGroups>
struct Shared {
  using Blob = InputBlob<kTokens, kParts<kKind>>;
  // A slot holds half a block of columns of a strip, or all where a lane's 16 bytes span it.
  static constexpr int kHalves = kPieces<kKind> == 1 ? 1 : 2;
  static constexpr int kSlotBytes = kStripBytes<kKind> / kHalves;
  static constexpr int kSlots = kRingBytes<kGroups> / kSlotBytes;
  static constexpr int kScaleSlots = kGroups == 2 ? 8 : 5;  // blocks; slots do not run so far ahead
  static_assert(kSlots / kHalves + 1 < kScaleSlots || !kIsFp8<kKind>);
  static constexpr int kStages = kInputBytes / Blob::kHalfBytes;
  static constexpr int kQuads = kTokens / 8;  // of a thread's sums
  static constexpr int kProductThreads = narrow::kProductThreads<kGroups>;
  static constexpr int kWarps = kProductThreads / kWarp;
  char* stages;        // [kStages] half blobs
  char* ring;          // [kWarps][kSlots]
  float4* totals;      // [kQuads][kProductThreads]: of the slices so far, where a block has all
  float* factors;      // [kStages / 2][kTokens]
  float* ring_scales;  // [kWarps][kScaleSlots]: FP8
  Barrier* full;       // [kStages]
  Barrier* empty;      // [kStages]

  static constexpr std::size_t kTotalBytes = std::size_t{16} * kQuads * kProductThreads;
  static constexpr std::size_t kBytes = 1024 + kInputBytes + kWarps * kRingBytes<kGroups> +
                                        kTotalBytes + kStages / 2 * kTokens * 4 +
                                        kWarps * kScaleSlots * 4 + 2 * kStages * sizeof(Barrier);
  static_assert(kBytes <= 227 << 10);
  static_assert(kWarps * kScaleSlots % 2 == 0);  // barriers follow

  __device__ explicit Shared(char* memory) {
    stages = memory + (1024 - shared_address(memory) % 1024) % 1024;
    ring = stages + kInputBytes;
    totals = reinterpret_cast<float4*>(ring + kWarps * kRingBytes<kGroups>);
    factors = reinterpret_cast<float*>(totals + kQuads * kProductThreads);
    ring_scales = factors + kStages / 2 * kTokens;
    full = reinterpret_cast<Barrier*>(ring_scales + kWarps * kScaleSlots);
    empty = full + kStages;
  }
};

/// Where blocks that share a tile meet.
struct Meeting {
  int ranks = 1;                      // blocks that share a tile, one per slice
  float4* sums = nullptr;             // [2][blocks][quads][product threads]
  std::uint32_t* arrivals = nullptr;  // [units]; zeros at first
};

/// The products of one kind, by blocks of their own.
struct Part {
  LinearTiles args;
  Meeting meeting;
  char* blobs = nullptr;
  int first_block = 0, blocks = 0;

  __device__ int block() const { return static_cast<int>(blockIdx.x) - first_block; }
};
struct Parts {
  int count = 0;
  Part part[kMostNarrowParts] = {};
};

/// What a block works on: units of a tile of rows and a tile of tokens, one slice of the columns of
/// each, or all in order where it is alone.
template <int kTokens>
struct Walk {
  int unit, units, step;
  int token_tiles;
  int first_block, end_block;  // of columns

  int rank;  // among the blocks that share units

  __device__ explicit Walk(const Part& part)
      : unit(part.block() / part.meeting.ranks),
        step(part.blocks / part.meeting.ranks),
        token_tiles(ceil_div(part.args.tokens, kTokens)),
        rank(part.block() % part.meeting.ranks) {
    const LinearTiles& args = part.args;
    const int ranks = part.meeting.ranks;
    units = args.tiles * token_tiles;
    const int blocks = ceil_div(args.cols, kLinearBlock);
    first_block = ranks == 1 ? 0 : rank * kSliceBlocks;
    end_block = ranks == 1 ? blocks : min(first_block + kSliceBlocks, blocks);
  }
};

/// One thread: half blobs to stages as they fall empty.
template <class Memory, int kTokens>
__device__ void copy_inputs(const Part& part, int rows_of_tile, const Memory& shared) {
  const LinearTiles& args = part.args;
  const Walk<kTokens> walk(part);
  const char* blobs = part.blobs;
  using Blob = typename Memory::Blob;
  const int blocks = ceil_div(args.cols, kLinearBlock);
  RingPosition ring;
  bool is_first_round = true;
  for (int unit = walk.unit; unit < walk.units; unit += walk.step) {
    const int group = strip_of_tile(args, unit / walk.token_tiles, rows_of_tile, 0).group;
    for (int half = 2 * walk.first_block; half < 2 * walk.end_block; ++half) {
      if (!is_first_round) barrier_wait(shared.empty + ring.at, ring.parity ^ 1u);
      const char* from =
          blobs + Blob::offset(unit % walk.token_tiles, group, args.groups, half / 2, blocks);
      constexpr int kBytes = Blob::kHalfBytes, kFactorBytes = Blob::kFactorBytes;
      const bool has_factors = half % 2 == 1;  // the last that is read
      barrier_expect(shared.full + ring.at, has_factors ? kBytes + kFactorBytes : kBytes);
      bulk_copy(shared.stages + ring.at * kBytes, from + half % 2 * kBytes, kBytes,
                shared.full + ring.at);
      if (has_factors)
        bulk_copy(shared.factors + ring.at / 2 * kTokens, from + 2 * kBytes, kFactorBytes,
                  shared.full + ring.at);
      ring.next(Memory::kStages);
      if (ring.at == 0) is_first_round = false;
    }
  }
}

}  // namespace quatrain::cuda::narrow

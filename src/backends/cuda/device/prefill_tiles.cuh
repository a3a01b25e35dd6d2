// SPDX-License-Identifier: Apache-2.0
// What the two halves of the experts' prefill kernel share: its shape, its shared memory, and the
// order of its tiles.
#pragma once

#include <cstdint>

#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/launch/experts.h"

namespace quatrain::cuda::prefill {

inline constexpr int kWarpgroup = 128;
inline constexpr int kMultiplyingGroups = 2;
inline constexpr int kThreads = (kMultiplyingGroups + 1) * kWarpgroup;  // the last one feeds
inline constexpr int kMultiplyingWarps = 4 * kMultiplyingGroups;
inline constexpr int kRowTiles =
    kMultiplyingGroups;            // packed row tiles that a block takes together
inline constexpr int kBlocks = 2;  // of 64 rows, which a warpgroup takes together
inline constexpr int kGatherThreads = 96;
inline constexpr int kGatherStep = kGatherThreads / 8;  // tokens of which they copy a piece at once
inline constexpr int kGatherSteps = 12;                 // at most, and one for a multiple of four
inline constexpr int kWarpRows = kWarp / 8;

inline constexpr int kWeightStages = 3;
inline constexpr int kTokenStages = 6;
inline constexpr int kTableStages = 2;
inline constexpr int kTokenStageBytes = kWidestPass * kSlabCols * 2;

// What the sums of a tile's columns need when they are stored.
struct TokenTable {
  // Of token first + step * kGatherStep, its row's offset in pieces of 16 bytes.
  alignas(16) unsigned offsets[kGatherStep][kGatherSteps];
  int slots[kWidestPass];      // -1 past the count
  float units[kWidestPass];    // multiply a token's sums
  float weights[kWidestPass];  // multiply its hidden values
};

inline constexpr int kTokensAt = 0;  // 1024-byte aligned, for the swizzle
inline constexpr int kWeightsAt = kTokensAt + kTokenStages * kTokenStageBytes;
inline constexpr int kWeightStageBytes = kRowTiles * kTileBytes;
inline constexpr int kTablesAt = kWeightsAt + kWeightStages * kWeightStageBytes;
inline constexpr int kBarriersAt = kTablesAt + kTableStages * int{sizeof(TokenTable)};
inline constexpr int kSharedBytes =
    kBarriersAt + 2 * 8 * (kWeightStages + kTokenStages + kTableStages) + 1024;

// Slabs of 64 columns that a stage holds. With four the compiler moves decoding across whole chunks
// and then waits for every product (C7513).
__device__ constexpr int slabs_per_stage(int width) { return width <= 64 ? 2 : 1; }

// The widths that products have, each with code of its own, in the order of the list of tiles.
template <int... kWidths>
struct WidthList {};
using Widths = WidthList<128, 120, 112, 104, 96, 88, 80, 72, 64, 56, 48, 40, 32, 16>;
__device__ inline int width_of(const PassTile& tile) {
  return tile.width <= 32 ? padded_to(tile.width, 16) : tile.width;
}

struct Projection {
  const std::uint8_t* weights;
  int row_tiles;
  int chunks;
  std::int64_t expert_bytes;
};

__device__ inline Projection projection_of(const PrefillArgs& args) {
  const PackedShape shape = args.first ? first_projection(args.w.hidden, args.w.inner)
                                       : second_projection(args.w.hidden, args.w.inner);
  return {args.first ? args.w.first : args.w.second, shape.row_tiles(), shape.col_chunks(),
          shape.bytes()};
}

struct Shared {
  std::uint8_t* base;
  Barrier* weights_full;
  Barrier* weights_empty;
  Barrier* tokens_full;
  Barrier* tokens_empty;
  Barrier* table_full;
  Barrier* table_empty;
  __device__ std::uint32_t tokens(int stage) const {  // a shared address
    return shared_address(base + kTokensAt + stage * kTokenStageBytes);
  }
  __device__ TokenTable& table(int stage) const {
    return reinterpret_cast<TokenTable*>(base + kTablesAt)[stage];
  }
};

__device__ inline Shared shared_at(std::uint8_t* base) {
  auto* barriers = reinterpret_cast<Barrier*>(base + kBarriersAt);
  Barrier* tokens = barriers + 2 * kWeightStages;
  Barrier* tables = tokens + 2 * kTokenStages;
  return {base,
          barriers,
          barriers + kWeightStages,
          tokens,
          tokens + kTokenStages,
          tables,
          tables + kTableStages};
}

// This block's tiles: it strides over them, row tiles of one expert beside each other.
class TileWalk {
 public:
  __device__ TileWalk(const PrefillArgs& args, const Projection& p)
      : TileWalk(args, p, blockIdx.x, gridDim.x) {}
  __device__ TileWalk(const PrefillArgs& args, const Projection& p, unsigned first, unsigned step)
      : tiles_(args.tiles),
        per_expert_((p.row_tiles + kRowTiles - 1) / kRowTiles),
        count_(*args.tile_count * per_expert_),
        at_(static_cast<int>(first)),
        step_(static_cast<int>(step)) {}
  __device__ bool more() const { return at_ < count_; }
  __device__ void next() { at_ += step_; }
  __device__ PassTile tile() const { return tiles_[at_ / per_expert_]; }
  __device__ int row_tile() const { return at_ % per_expert_ * kRowTiles; }

 private:
  const PassTile* tiles_;
  int per_expert_;
  int count_;
  int at_;
  int step_;
};

}  // namespace quatrain::cuda::prefill

// SPDX-License-Identifier: Apache-2.0
// The order in which one block of the decode kernel meets the weights.
//
// A tile of tokens, that is an expert, has groups of 32 packed rows, and a group has chunks of 256
// columns. A block takes whole groups, one after the other; a group's chunks in order are its
// units, which the block's warps take in turns. The first projection's units come before the
// second's, without a gap.
#pragma once

#include <cstdint>

#include "backends/cuda/launch/experts_decode_layout.h"

namespace quatrain::cuda {

/// This block's share of one projection: every step-th group from the first one on, counted through
/// all tiles.
struct Pass {
  const std::uint8_t* weights;
  std::int64_t expert_bytes;
  int chunks;
  int groups;  // of a tile
  int step;
  int count;
  int first_tile, first_group;
  int last_tile;
};

/// Up to this many tiles, groups are dealt out in turns: tiles end one after the other, so the
/// second projection's first ones find their inputs, and every block has its share of tiles of many
/// tokens, which take longer. With more, a block takes a run of groups, because it then meets few
/// tokens.
inline constexpr int kDealtTiles = 72;

/// `blocks` are those of the grid, `groups` those of an expert.
__device__ inline Pass make_pass(const std::uint8_t* weights, const PackedShape& shape, int tiles,
                                 const Divisor& blocks, const Divisor& groups) {
  Pass pass = {weights, shape.bytes(), shape.col_chunks(), groups.value()};
  const int all = tiles * pass.groups;
  const int block = static_cast<int>(blockIdx.x);
  const int share = blocks.quotient(all), left = all - share * blocks.value();
  int first = block;
  pass.step = blocks.value();
  pass.count = share + (block < left ? 1 : 0);
  if (tiles > kDealtTiles) {
    first = share * block + min(block, left);
    pass.step = 1;
  }
  pass.first_tile = groups.quotient(first);
  pass.first_group = groups.remainder(first);
  pass.last_tile = groups.quotient(max(first + (pass.count - 1) * pass.step, 0));
  return pass;
}

/// A place in a block's units. Passes lie in shared memory.
class Walk {
 public:
  __device__ Walk(const Pass* passes, int count) : passes_(passes), count_(count) { enter(0); }

  __device__ bool ended() const { return pass_ == count_; }
  __device__ const Pass& pass() const { return passes_[pass_]; }
  __device__ int pass_number() const { return pass_; }
  __device__ int tile() const { return tile_; }
  __device__ int group() const { return group_; }
  __device__ int chunk() const { return chunk_; }
  __device__ int chunks() const { return chunks_; }

  /// Goes on by `units`. Returns whether that led to another tile or pass.
  __device__ bool advance(int units) {
    bool changed = false;
    chunk_ += units;
    while (!ended() && chunk_ >= chunks_) {
      chunk_ -= chunks_;
      if (--left_ == 0) {
        enter(pass_ + 1);
        changed = true;
        continue;
      }
      group_ += step_;
      while (group_ >= groups_) {
        group_ -= groups_;
        ++tile_;
        changed = true;
      }
    }
    return changed;
  }

  /// Byte offset within the expert's matrix.
  __device__ std::uint32_t chunk_offset() const {
    constexpr int kTileGroups = kTileRows / kGroupRows;
    return static_cast<std::uint32_t>(group_ / kTileGroups * chunks_ + chunk_) * kTileBytes +
           group_ % kTileGroups * kChunkBytes;
  }

 private:
  __device__ void enter(int pass) {
    while (pass < count_ && passes_[pass].count <= 0) ++pass;
    pass_ = pass;
    if (pass == count_) return;
    const Pass& at = passes_[pass];
    left_ = at.count;
    chunks_ = at.chunks;
    groups_ = at.groups;
    step_ = at.step;
    tile_ = at.first_tile;
    group_ = at.first_group;
  }

  const Pass* passes_;
  int count_;
  int pass_ = 0, tile_ = 0, group_ = 0, chunk_ = 0;
  int left_ = 0, chunks_ = 1, groups_ = 1, step_ = 1;  // of the pass
};

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// How a launch of linear_narrow.cu is cut into the work of blocks: a function of the problem and
// the chip alone.
#pragma once

#include <span>

#include "backends/cuda/launch/linear_tiles.h"

namespace quatrain::cuda {

/// Rows of a tile for each group of warps.
inline constexpr int kGroupRows = 64;
/// Kinds of weights in a launch.
inline constexpr int kMostNarrowParts = 2;

struct NarrowCut {
  int groups = 2;  ///< of warps, 2 or 4
  /// Of each kind: blocks that share a tile, a slice of its columns each (1 or all slices), and
  /// blocks in all.
  int ranks[kMostNarrowParts] = {};
  int blocks[kMostNarrowParts] = {};
};

/// Tiles of `rows` weight rows in all products and groups.
int row_tiles(const LinearTiles& args, int rows);

/// The cut of least estimated time, with `tokens` tokens to a tile.
NarrowCut narrow_cut(std::span<const LinearTiles> kinds, int tokens, int multiprocessors);

}  // namespace quatrain::cuda

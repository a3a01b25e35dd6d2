// SPDX-License-Identifier: Apache-2.0
// How a launch of linear_narrow.cu is cut into the work of blocks: a function of the problem and
// the chip alone.
#pragma once

#include "backends/cuda/launch/linear_tiles.h"

namespace quatrain::cuda {

/// Rows of a tile for each group of warps.
inline constexpr int kGroupRows = 64;

struct NarrowCut {
  int groups = 2;  ///< of warps, 2 or 4
  int ranks = 1;   ///< blocks that share a tile, a slice of its columns each; 1 or all slices
};

/// Tiles of `rows` weight rows in all products and groups.
int row_tiles(const LinearTiles& args, int rows);

/// The cut of least estimated time, with `tokens` tokens to a tile.
NarrowCut narrow_cut(const LinearTiles& args, int tokens, int multiprocessors);

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// How a launch of linear_narrow.cu is cut into the work of blocks: a function of the problem and
// the chip alone.
#pragma once

#include "backends/cuda/launch/linear_tiles.h"

namespace quatrain::cuda {

/// Rows of a tile: 64 to each of two groups of warps and each strip of a warp.
inline constexpr int kRowsPerStrip = 128;

struct NarrowCut {
  int strips = 1;  ///< of a warp, 1 or 2
  int ranks = 1;   ///< blocks that share a tile, a slice of its columns each; 1 or all slices
};

/// Tiles of `rows` weight rows in all products and groups.
int row_tiles(const LinearTiles& args, int rows);

/// The cut of least estimated time, with `tokens` tokens to a tile.
NarrowCut narrow_cut(const LinearTiles& args, int tokens, int multiprocessors);

}  // namespace quatrain::cuda

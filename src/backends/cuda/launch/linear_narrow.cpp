// SPDX-License-Identifier: Apache-2.0
#include "backends/cuda/launch/linear_narrow.h"

#include <limits>

namespace quatrain::cuda {
namespace {

// Blocks' time in units of what two of four groups take for a block of columns.
double time_of(const LinearTiles& args, int tokens, int multiprocessors, const NarrowCut& cut) {
  constexpr double kMeeting = 3;  // for each tile
  const int blocks = ceil_div(args.cols, kLinearBlock);
  const int units = row_tiles(args, kGroupRows * cut.groups) * ceil_div(args.tokens, tokens);
  const int waves = ceil_div(units, multiprocessors / cut.ranks);
  const int own = cut.ranks > 1 ? kSliceBlocks : blocks;
  // Two groups alone leave gaps between their products.
  const double work = cut.groups == 2 ? 1.25 : 2.0;
  return waves * (own * work + (cut.ranks > 1 ? kMeeting : 0));
}

}  // namespace

int row_tiles(const LinearTiles& args, int rows) {
  int tiles = 0;
  for (int i = 0; i < args.count; ++i)
    tiles += args.groups * ceil_div(args.products[i].w.rows / args.groups, rows);
  return tiles;
}

NarrowCut narrow_cut(const LinearTiles& args, int tokens, int multiprocessors) {
  NarrowCut best;
  double least = std::numeric_limits<double>::infinity();
  for (const int groups : {4, 2})
    for (const int ranks : {1, args.slices}) {
      if (ranks > multiprocessors) continue;
      const NarrowCut cut{.groups = groups, .ranks = ranks};
      const double time = time_of(args, tokens, multiprocessors, cut);
      if (time < least) {
        least = time;
        best = cut;
      }
    }
  return best;
}

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
#include "backends/cuda/launch/linear_narrow.h"

#include <algorithm>
#include <limits>

namespace quatrain::cuda {
namespace {

int units_of(const LinearTiles& args, int tokens, int groups) {
  return row_tiles(args, kGroupRows * groups) * ceil_div(args.tokens, tokens);
}

// Of `blocks` blocks, in units of what two of four groups take for a block of columns.
double time_of(const LinearTiles& args, int tokens, int blocks, int groups, int ranks) {
  constexpr double kMeeting = 3;  // for each tile
  const int waves = ceil_div(units_of(args, tokens, groups), blocks / ranks);
  const int own = ranks > 1 ? kSliceBlocks : ceil_div(args.cols, kLinearBlock);
  // Two groups alone leave gaps between their products.
  const double work = groups == 2 ? 1.25 : 2.0;
  return waves * (own * work + (ranks > 1 ? kMeeting : 0));
}

}  // namespace

int row_tiles(const LinearTiles& args, int rows) {
  int tiles = 0;
  for (int i = 0; i < args.count; ++i) tiles += tiles_of(args, args.products[i], rows);
  return tiles;
}

// Kinds share the chip by their tiles.
NarrowCut narrow_cut(std::span<const LinearTiles> kinds, int tokens, int multiprocessors) {
  NarrowCut best;
  double least = std::numeric_limits<double>::infinity();
  for (const int groups : {4, 2}) {
    NarrowCut cut{.groups = groups};
    int tiles_left = 0, left = multiprocessors;
    for (const LinearTiles& args : kinds) tiles_left += row_tiles(args, kGroupRows * groups);
    double time = 0;
    for (std::size_t k = 0; k < kinds.size(); ++k) {
      const LinearTiles& args = kinds[k];
      const int tiles = row_tiles(args, kGroupRows * groups);
      const int others = static_cast<int>(kinds.size() - 1 - k);
      const int share = std::clamp((left * tiles + tiles_left / 2) / tiles_left, 1, left - others);
      double least_of_kind = std::numeric_limits<double>::infinity();
      for (const int ranks : {1, args.slices}) {
        if (ranks > share) continue;
        const double of_kind = time_of(args, tokens, share, groups, ranks);
        if (of_kind >= least_of_kind) continue;
        least_of_kind = of_kind;
        cut.ranks[k] = ranks;
        cut.blocks[k] = std::min(units_of(args, tokens, groups), share / ranks) * ranks;
      }
      time = std::max(time, least_of_kind);
      left -= share;
      tiles_left -= tiles;
    }
    if (time < least) {
      least = time;
      best = cut;
    }
  }
  return best;
}

}  // namespace quatrain::cuda

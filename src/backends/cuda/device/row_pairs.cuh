// SPDX-License-Identifier: Apache-2.0
// Which tiles the blocks of launch/row_pairs.h work on, and how their warps share the work.
#pragma once

#include "backends/cuda/device/cluster.cuh"
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/warp_arrival.cuh"
#include "backends/cuda/device/wgmma.cuh"
#include "backends/cuda/launch/row_pairs.h"

namespace quatrain::cuda {

/// Tiles of tokens whose inputs the L2 keeps while all rows pass.
inline constexpr int kTokenTilesTogether = 8;

/// Rows of a block: every block of a pair has some, of which the last may not exist.
struct RowTile {
  int product = 0;
  int group = 0;
  int row = 0;
  bool exists = false;
};

/// Of the launch's pairs.
__device__ inline RowTile row_tile(const RowPairs& args, int nth_pair, int rank) {
  const int pair = args.first_pair + nth_pair;
  RowTile tile;
  while (tile.product + 1 < args.count && pair >= args.products[tile.product + 1].first_pair)
    ++tile.product;
  const PairedProduct& product = args.products[tile.product];
  const int group_rows = product.rows / args.groups;
  const int group_tiles = ceil_div(group_rows, kPairRows);
  const int group_pairs = ceil_div(group_tiles, kBlocksOfPair);
  const int nth = pair - product.first_pair;
  const int of_group = nth % group_pairs * kBlocksOfPair + rank;
  tile.group = nth / group_pairs;
  tile.exists = of_group < group_tiles;
  tile.row = tile.group * group_rows + min(of_group, group_tiles - 1) * kPairRows;
  return tile;
}

/// A tile of rows by kTokens tokens.
struct PairTile : RowTile {
  int token = 0;
  int pair = 0;
};

/// Units are pairs of row tiles by a tile of tokens, so ordered that blocks at work share inputs.
template <int kTokens>
__device__ PairTile pair_tile(const RowPairs& args, int unit) {
  const int token_tiles = ceil_div(args.tokens, kTokens);
  const int first = unit / (args.pairs * kTokenTilesTogether) * kTokenTilesTogether;
  const int together = min(kTokenTilesTogether, token_tiles - first);
  const int local = unit - first * args.pairs;
  const int pair = local / together;
  return {row_tile(args, pair, static_cast<int>(cluster_rank())),
          (first + local % together) * kTokens, pair};
}

template <int kTokens>
struct PairUnits {
  int first = static_cast<int>(cluster_index());
  int step = static_cast<int>(cluster_count());
  int count;
  __device__ explicit PairUnits(const RowPairs& args)
      : count(args.pairs * ceil_div(args.tokens, kTokens)) {}
};

/// A block of a pair: one thread of the first warpgroup calls copy_all(args, shared), kProductWarps
/// warps behind it multiply_all(args, shared). Both blocks fill and use `full` and `empty` of
/// kStages stages.
template <int kStages, int kProductWarps, int kCopyRegisters, int kProductRegisters, class Args,
          class Shared>
__device__ __forceinline__ void run_pair(const Args& args, const Shared& shared) {
  if (threadIdx.x == 0) {
    init_ring(shared.full, 1, shared.empty, kBlocksOfPair * kProductWarps * kWarpArrivals, kStages);
    barrier_init_fence();
  }
  cluster_sync();
  wait_for_previous();
  if (threadIdx.x < 4 * kWarp) {
    lower_registers<kCopyRegisters>();
    if (threadIdx.x == 0) copy_all(args, shared);
    __syncwarp();
  } else {
    raise_registers<kProductRegisters>();
    multiply_all(args, shared);
  }
  cluster_sync();  // none ends while the other sends to it
}

}  // namespace quatrain::cuda

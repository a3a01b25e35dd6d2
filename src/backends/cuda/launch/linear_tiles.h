// SPDX-License-Identifier: Apache-2.0
// Several products of one input and one kind of weight by many tokens, cut into tiles: what
// linears() hands to the kernels of linear_narrow.cu, for some dozens of tokens, and of
// linear_tiles.cu.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "backends/cuda/launch/linear.h"

namespace quatrain::cuda {

inline constexpr int kLinearTileRows = 128;

/// One product of the launch, in tiles of rows that do not straddle groups.
struct TiledProduct {
  Matrix w;
  float* out = nullptr;
  int first_tile = 0;
};

struct LinearTiles : LinearInputs {
  LinearKind kind = LinearKind::kBf16;
  int tiles = 0;  ///< set by cut_into_tiles(), as is the products' first_tile
  int count = 0;
  TiledProduct products[kMaxProducts] = {};
};

/// Tiles of `rows` weight rows of a product.
inline int tiles_of(const LinearTiles& args, const TiledProduct& product, int rows) {
  return args.groups * ceil_div(product.w.rows / args.groups, rows);
}
/// Cuts the products into such tiles.
inline void cut_into_tiles(LinearTiles& args, int rows) {
  args.tiles = 0;
  for (int i = 0; i < args.count; ++i) {
    args.products[i].first_tile = args.tiles;
    args.tiles += tiles_of(args, args.products[i], rows);
  }
}

/// The rows of a strip share the scales of FP8 blocks: groups are whole strips.
///
/// Products of several kinds and one input; two kinds share a launch. The scratch has room for
/// narrow_scratch_bytes(). Cuts the products into tiles of its own.
void multiply_narrow(std::span<const LinearTiles> kinds, const LinearScratch& scratch,
                     cudaStream_t stream);
std::int64_t narrow_scratch_bytes(std::span<const LinearTiles> kinds);

/// The scratch has room for one tile of tokens at least.
void multiply_tiles(const LinearTiles& args, const LinearScratch& scratch, cudaStream_t stream);
/// Scratch for the split inputs of one tile of tokens.
std::int64_t tile_scratch_bytes(int cols, int groups);

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// Several products of one input and one kind of weight, cut into tiles: what linears() hands to its
// two kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backends/cuda/launch/linear.h"

namespace quatrain::cuda {

inline constexpr int kTileRows = 128;

enum class LinearKind : std::uint8_t { kFp8, kBf16, kNvfp4, kMxfp4 };

/// One product of the launch, in tiles of 128 rows that do not straddle groups.
struct TiledProduct {
  Matrix w;
  float* out = nullptr;
  int first_tile = 0;
};

struct LinearTiles {
  const float* x = nullptr;
  const float* up = nullptr;
  float limit = 0;
  int tokens = 0;
  int groups = 1;
  int cols = 0;
  int tiles = 0;
  int slices = 0;            // of the matrix
  int slices_per_block = 1;  // of stream_tiles' blocks
  int count = 0;
  TiledProduct products[kMaxProducts] = {};
};

/// Whether stream_tiles() takes rows of this many columns.
bool stream_takes(int cols);
/// For few tokens: weights stream through the chip once per 32 of them.
void stream_tiles(LinearKind kind, const LinearTiles& args, cudaStream_t stream);
/// For many; the scratch has room for one tile of tokens at least.
void multiply_tiles(LinearKind kind, const LinearTiles& args, const LinearScratch& scratch,
                    cudaStream_t stream);
/// Scratch for the split inputs of one tile of tokens.
std::int64_t tile_scratch_bytes(int cols, int groups);

}  // namespace quatrain::cuda

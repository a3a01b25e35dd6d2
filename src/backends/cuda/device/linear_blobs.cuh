// SPDX-License-Identifier: Apache-2.0
// Inputs of the tiled linear kernels: split into 16-bit parts once, and laid out in memory as
// shared memory holds them, so that 64 columns of a tile of tokens are one bulk copy.
#pragma once

#include <cstdint>

#include "backends/cuda/device/linear_strip.cuh"
#include "backends/cuda/device/linear_tile.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/scalar.cuh"
#include "backends/cuda/launch/linear_tiles.h"

namespace quatrain::cuda {

/// A block of 128 columns of `kTokens` tokens: [2 halves][kParts][kTokens][128 bytes], each half
/// with the 128-byte swizzle, and a factor per token.
template <int kTokens, int kParts>
struct InputBlob {
  static constexpr int kPartBytes = kTokens * 128;  // 64 columns of one part
  static constexpr int kHalfBytes = kParts * kPartBytes;
  static constexpr int kFactorBytes = kTokens * 4;  // after the second half
  static constexpr int kBytes = 2 * kHalfBytes + kFactorBytes;

  /// Of one block of columns of a tile of tokens and a group.
  __device__ static std::int64_t offset(int token_tile, int group, int groups, int block,
                                        int blocks) {
    return ((std::int64_t{token_tile} * groups + group) * blocks + block) * kBytes;
  }

  /// Where element i of the inputs' order of a block (place_of_column) belongs in part 0.
  __device__ static int place(int i, int token) {
    const int step = (i >> 5) * 2 + ((i >> 2) & 1);
    const int lane = (i >> 3) & 3, element = i & 3;
    const int chunk = (step % 4 * 2 + (element >> 1)) ^ (token % 8);  // of 16 bytes
    return step / 4 * kHalfBytes + token * 128 + chunk * 16 + lane * 4 + (element & 1) * 2;
  }

  /// Splits four columns of a token, a lane's, into a blob. All lanes of a warp have one token.
  template <LinearKind kKind>
  __device__ static void split(const float4& x, int token, char* blob) {
    const int lane = lane_id();
    float amax = 0;
    if constexpr (kIsFp8<kKind>)
      amax = warp_max(fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)), fmaxf(fabsf(x.z), fabsf(x.w))));
    const F16ActivationRange range = input_range<kKind>(amax);
    std::uint32_t word[2][2];
    split_pair<kKind>(x.x, x.y, range.up, word[0]);
    split_pair<kKind>(x.z, x.w, range.up, word[1]);
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      char* to = blob + p * kPartBytes;
      if constexpr (kIsFp4<kKind>) {
#pragma unroll
        for (int j = 0; j < 4; ++j)
          *reinterpret_cast<std::uint16_t*>(to +
                                            place(place_of_column<kKind>(4 * lane + j), token)) =
              static_cast<std::uint16_t>(word[j / 2][p] >> (j % 2 * 16));
      } else {  // a lane's four columns are its four elements
        const int first = place_of_column<kKind>(4 * lane);
        *reinterpret_cast<std::uint32_t*>(to + place(first, token)) = word[0][p];
        *reinterpret_cast<std::uint32_t*>(to + place(first + 2, token)) = word[1][p];
      }
    }
    if (lane == 0) reinterpret_cast<float*>(blob + 2 * kHalfBytes)[token] = range.down;
  }
};

/// Four columns of a token's inputs; zeros outside the matrix.
__device__ inline float4 load_inputs(const LinearInputs& args, int group, int token, int column) {
  if (token >= args.tokens || column >= args.cols) return {0, 0, 0, 0};
  const std::int64_t at = (std::int64_t{token} * args.groups + group) * args.cols + column;
  float4 x = *reinterpret_cast<const float4*>(args.x + at);
  if (args.up != nullptr) {
    const float4 up = *reinterpret_cast<const float4*>(args.up + at);
    x = swiglu_inputs(x, up, args.limit);
  }
  return x;
}

inline constexpr int kSplitWarps = 8;

/// What a kernel of kSplitWarps warps does for a group, whose grid is [blocks of columns, tiles of
/// tokens, …].
template <LinearKind kKind, int kTokens>
__device__ void split_all(const LinearTiles& args, int group, char* blobs) {
  using Blob = InputBlob<kTokens, kParts<kKind>>;
  const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
  const int token_tile = static_cast<int>(blockIdx.y);
  char* blob = blobs + Blob::offset(token_tile, group, args.groups, block, blocks);
  const int column = block * kLinearBlock + 4 * lane_id();
  constexpr int kAtOnce = 4;
  for (int first = warp_id() * kAtOnce; first < kTokens; first += kSplitWarps * kAtOnce) {
    float4 x[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      x[i] = load_inputs(args, group, token_tile * kTokens + first + i, column);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) Blob::template split<kKind>(x[i], first + i, blob);
  }
}

/// 16 rows of a product and of a group, by one warp.
struct TileStrip : Strip {
  int product = 0;
  int group = 0;
};

/// The strip of a tile of `tile_rows` rows that begins `first` rows after the tile.
__device__ inline TileStrip strip_of_tile(const LinearTiles& args, int tile, int tile_rows,
                                          int first) {
  TileStrip strip;
  while (strip.product + 1 < args.count && tile >= args.products[strip.product + 1].first_tile)
    ++strip.product;
  const TiledProduct& product = args.products[strip.product];
  const int group_rows = product.w.rows / args.groups;
  const int group_tiles = ceil_div(group_rows, tile_rows);
  const int local = tile - product.first_tile;
  strip.group = local / group_tiles;
  strip.row = strip.group * group_rows + local % group_tiles * tile_rows + first;
  strip.end = (strip.group + 1) * group_rows;
  return strip;
}

}  // namespace quatrain::cuda

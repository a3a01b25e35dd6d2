// SPDX-License-Identifier: Apache-2.0
// How the linear kernels cut weights into tiles of 128 rows and strips of 16, and read a strip.
#pragma once

#include <cstdint>

#include "backends/cuda/device/linear_tile.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/launch/linear_tiles.h"

namespace quatrain::cuda {

/// 16 rows of a product, by one warp.
struct Strip {
  int product = 0;
  int group = 0;
  int row = 0;  // first of the strip
  int end = 0;  // of the group
};

__device__ inline Strip strip_of(const LinearTiles& args, int tile, int warp) {
  Strip strip;
  while (strip.product + 1 < args.count && tile >= args.products[strip.product + 1].first_tile)
    ++strip.product;
  const TiledProduct& product = args.products[strip.product];
  const int group_rows = product.w.rows / args.groups;
  const int group_tiles = (group_rows + kTileRows - 1) / kTileRows;
  const int local = tile - product.first_tile;
  strip.group = local / group_tiles;
  strip.row = strip.group * group_rows + local % group_tiles * kTileRows + warp * 16;
  strip.end = (strip.group + 1) * group_rows;
  return strip;
}

/// Reads a strip's weights, a block of columns at a time. Few registers: the second row of a lane
/// is a distance from its first.
template <LinearKind kKind>
class StripReader {
 public:
  __device__ StripReader(const LinearTiles& args, int tile, int warp, int first_block) {
    const Strip strip = strip_of(args, tile, warp);
    const Matrix& w = args.products[strip.product].w;
    const int quad = lane_id() % 4;
    const int row = min(strip.row + lane_id() / 4, strip.end - 1);
    const int rows_on = min(row + 8, strip.end - 1) - row;
    const int column = first_block * kLinearBlock + quad * kPieceColumns<kKind>;
    values_ = static_cast<const char*>(w.values) +
              bytes_of_columns<kKind>(std::int64_t{row} * args.cols + column);
    values_on_ = static_cast<int>(bytes_of_columns<kKind>(std::int64_t{rows_on} * args.cols));
    valid_ = strip.row < strip.end;
    columns_ = valid_ ? args.cols - column : 0;
    if constexpr (kKind == LinearKind::kFp8) {
      const int scale_columns = (args.cols + kLinearBlock - 1) / kLinearBlock;
      const int scale_row = row / kLinearBlock;
      if (w.format == WeightFormat::kFp8Block)
        scales_ = static_cast<const char*>(w.scales) +
                  4 * (std::int64_t{scale_row} * scale_columns + first_block);
      scales_on_ = 4 * ((row + rows_on) / kLinearBlock - scale_row) * scale_columns;
    } else if constexpr (kIsFp4<kKind>) {
      constexpr int kScaleColumns = kKind == LinearKind::kNvfp4 ? 16 : 32;
      const int scale_columns = args.cols / kScaleColumns;
      scales_ = static_cast<const char*>(w.scales) + std::int64_t{row} * scale_columns +
                column / kScaleColumns;
      scales_on_ = rows_on * scale_columns;
    }
  }

  /// Whether the warp has rows of this tile; the same in all lanes.
  __device__ bool valid() const { return valid_; }

  /// Block `block` of this thread block's columns; zeros beyond the matrix.
  __device__ void load(int block, WeightBlock<kKind>& out) const {
    const char* from = values_ + bytes_of_columns<kKind>(block * kLinearBlock);
    const int left = columns_ - block * kLinearBlock;
#pragma unroll
    for (int i = 0; i < kPieces<kKind>; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        out.piece[i][half] = 4 * i * kPieceColumns<kKind> < left
                                 ? load_streamed(from + half * values_on_ + 64 * i)
                                 : uint4{0, 0, 0, 0};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const char* scale = scales_ + half * scales_on_;
      if constexpr (kKind == LinearKind::kFp8)
        out.scale[half] = left + 16 * (lane_id() % 4) > 0 && scales_ != nullptr  // any lane's
                              ? reinterpret_cast<const std::uint32_t*>(scale)[block]
                              : 0x3F800000u;
      else if constexpr (kKind == LinearKind::kNvfp4)
        out.scale[half] = left > 0 ? reinterpret_cast<const std::uint16_t*>(scale)[4 * block] : 0u;
      else if constexpr (kKind == LinearKind::kMxfp4)
        out.scale[half] = left > 0 ? static_cast<std::uint8_t>(scale[4 * block]) : 0u;
    }
  }

 private:
  const char* values_;             // of the lane's first row, at its quarter of 64 bytes
  const char* scales_ = nullptr;   // of the same
  int values_on_, scales_on_ = 0;  // bytes from there to the row 8 further
  int columns_;                    // from there to the end of the row; may be negative
  bool valid_;
};

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// How the linear kernels read a strip of 16 weight rows: straight into registers, or through shared
// memory that the same lane reads back.
#pragma once

#include <cstdint>

#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/linear_tile.cuh"
#include "backends/cuda/device/reduce.cuh"

namespace quatrain::cuda {

/// Rows of a matrix, by one warp.
struct Strip {
  int row = 0;  // the first
  int end = 0;  // of the rows that belong together; the strip may reach beyond
};

/// The product of a part that has its strip or unit `at`.
template <class Launch, class Part>
__device__ inline int product_at(const Launch& args, const Part& part, int at) {
  int p = part.first_product;
  while (p + 1 < part.first_product + part.count && at >= args.products[p + 1].first) ++p;
  return p;
}

/// Bytes of a lane's part of a strip between its 16-byte pieces in shared memory.
inline constexpr int kPieceStride = 16 * kWarp;
/// Bytes that a warp's block of a strip takes there.
template <LinearKind kKind>
inline constexpr int kStripBytes = 2 * kPieces<kKind>* kPieceStride;

/// Reads a strip's weights, a block of columns at a time. Few registers: the second row of a lane
/// is a distance from its first.
template <LinearKind kKind>
class StripReader {
 public:
  /// Blocks are counted from `first_block` on; the lane has row `lane_row` of the strip, and the
  /// one 8 further.
  __device__ StripReader(const Matrix& w, const Strip& strip, int first_block,
                         int lane_row = lane_id() / 4) {
    const int quad = lane_id() % 4;
    const int row = min(strip.row + lane_row, strip.end - 1);
    const int rows_on = min(row + 8, strip.end - 1) - row;
    const int column = first_block * kLinearBlock + quad * kPieceColumns<kKind>;
    values_ = static_cast<const char*>(w.values) +
              bytes_of_columns<kKind>(std::int64_t{row} * w.cols + column);
    values_on_ = static_cast<int>(bytes_of_columns<kKind>(std::int64_t{rows_on} * w.cols));
    columns_ = strip.row < strip.end ? w.cols - column : 0;
    if constexpr (kIsFp8<kKind>) {
      const int scale_columns = ceil_div(w.cols, kLinearBlock);
      const int scale_row = row / kLinearBlock;
      if (w.format == WeightFormat::kFp8Block)
        scales_ = static_cast<const char*>(w.scales) +
                  4 * (std::int64_t{scale_row} * scale_columns + first_block);
    } else if constexpr (kIsFp4<kKind>) {
      constexpr int kScaleColumns = kKind == LinearKind::kNvfp4 ? 16 : 32;
      const int scale_columns = w.cols / kScaleColumns;
      scales_ = static_cast<const char*>(w.scales) + std::int64_t{row} * scale_columns +
                column / kScaleColumns;
      scales_on_ = rows_on * scale_columns;
    }
  }

  /// Block `block`; zeros beyond the matrix.
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
    load_scales(block, out.scale);
  }

  /// The scales that go with block `block`, of both rows of the lane. Of FP8 the first, which all
  /// rows of the strip share.
  __device__ void load_scales(int block, std::uint32_t (&out)[2]) const {
    const int left = columns_ - block * kLinearBlock;
    if constexpr (kIsFp8<kKind>)
      out[0] = left + 16 * (lane_id() % 4) > 0 && scales_ != nullptr  // any lane's
                   ? reinterpret_cast<const std::uint32_t*>(scales_)[block]
                   : 0x3F800000u;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const char* scale = scales_ + half * scales_on_;
      if constexpr (kKind == LinearKind::kNvfp4)
        out[half] = left > 0 ? reinterpret_cast<const std::uint16_t*>(scale)[4 * block] : 0u;
      else if constexpr (kKind == LinearKind::kMxfp4)
        out[half] = left > 0 ? static_cast<std::uint8_t>(scale[4 * block]) : 0u;
    }
  }

 private:
  const char* values_;             // of the lane's first row, at its quarter of 64 bytes
  const char* scales_ = nullptr;   // of the same
  int values_on_, scales_on_ = 0;  // bytes from there to the row 8 further
  int columns_;                    // from there to the end of the row; may be negative
};

/// Copies one block of columns of a strip to shared memory, a lane what it reads back itself.
template <LinearKind kKind>
class StripCopier {
 public:
  /// The strip begins at row `first_row`.
  __device__ StripCopier(const Matrix& w, int first_row, int end, int block) {
    const int row = first_row + lane_id() / 4;
    const int column = block * kLinearBlock + lane_id() % 4 * kPieceColumns<kKind>;
    row_bytes_ = static_cast<int>(bytes_of_columns<kKind>(w.cols));
    from_ = static_cast<const char*>(w.values) + std::int64_t{row} * row_bytes_ +
            bytes_of_columns<kKind>(column);
    rows_ = end - row;
    columns_ = w.cols - column;
  }

  /// Of the block's pieces kCount from kFirst on; zeros where the matrix ends.
  template <int kFirst, int kCount>
  __device__ void copy_pieces(char* lane_slot) const {
    const char* from = from_ + 64 * kFirst;
    const char* from8 = from + 8 * row_bytes_;
    const std::uint32_t to = shared_address(lane_slot);
    if (8 < rows_ && kLinearBlock - 4 * kPieceColumns<kKind> < columns_) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        copy16_streamed(to + 2 * i * kPieceStride, from + 64 * i);
        copy16_streamed(to + (2 * i + 1) * kPieceStride, from8 + 64 * i);
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const bool in_row = 4 * (kFirst + i) * kPieceColumns<kKind> < columns_;
      copy16_or_zeros(to + 2 * i * kPieceStride, from + 64 * i, in_row && 0 < rows_);
      copy16_or_zeros(to + (2 * i + 1) * kPieceStride, from8 + 64 * i, in_row && 8 < rows_);
    }
  }
  /// Moves on to the next block of columns.
  __device__ void next_block() {
    from_ += bytes_of_columns<kKind>(kLinearBlock);
    columns_ -= kLinearBlock;
  }
  __device__ static uint4 read_piece(const char* lane_slot, int piece, int half) {
    return *reinterpret_cast<const uint4*>(lane_slot + (2 * piece + half) * kPieceStride);
  }

 private:
  const char* from_;  // of the lane's first row, at its quarter of 64 bytes
  int row_bytes_;
  int rows_, columns_;  // from there to the end
};

}  // namespace quatrain::cuda

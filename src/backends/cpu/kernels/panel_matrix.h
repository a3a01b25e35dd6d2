// SPDX-License-Identifier: Apache-2.0
// PanelMatrix: a weight matrix in the layout that the vector kernels stream.
//
// Panels of 32 output rows follow each other; a lane of a vector is a row, so that no sum runs
// across lanes. Inside a panel:
//   F32, F16   per column: the values of the 32 rows
//   BF16       per column: rows 0, 16, 1, 17, …: a 32-bit lane holds two rows
//   FP8        per column: rows 0–7, 16–23, 8–15, 24–31; an odd last column is followed by zeros
//   NVFP4      per 32 columns: two blocks of codes, then 2 · 32 E4M3 scales: 9 cache lines
//   MXFP4      per 64 columns: two blocks of codes, then 2 · 32 UE8M0 scales: 17 cache lines
// A block of 4-bit codes holds rows 0–15, then rows 16–31; for 16 rows, 8 columns at a time, each
// row has 4 bytes: byte j is column j in the low nibble and column 4 + j in the high one. So the
// low (high) nibbles of a cache line are four consecutive columns of 16 rows, the operand of an
// 8-bit dot product. Missing rows and columns are zeros.
#pragma once

#include <memory>
#include <vector>

#include "backends/cpu/kernels/kernels.h"
#include "core/quant_matrix.h"
#include "core/thread_pool.h"

namespace quatrain {

class PanelMatrix {
 public:
  /// The format and size that `w` will have, without data. FP8 that holds NaN codes becomes BF16,
  /// because the FP8 decoder has no NaN.
  explicit PanelMatrix(const QuantMatrix& w);

  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  PanelFormat format() const { return format_; }
  bool is_4bit() const { return format_ == PanelFormat::kNvfp4 || format_ == PanelFormat::kMxfp4; }
  std::int64_t panels() const { return (rows_ + kPanelRows - 1) / kPanelRows; }
  std::int64_t panel_bytes() const { return panel_bytes_; }

  /// Are the sums of 32 columns of this panel, for any int8 activations, exact in FP32? Then their
  /// order does not matter. Always false for formats of more than 4 bits.
  bool has_exact_chunks(std::int64_t p) const {
    return is_4bit() && exact_chunks_[static_cast<std::size_t>(p)] != 0;
  }

  /// Can BF16 hold the weights times the scales of their blocks? Always true without such scales.
  bool has_exact_block_scales() const { return exact_block_scales_; }

  /// Packs `w` into memory at `data`, panel p at p · stride; `stride` is at least panel_bytes().
  void pack(const QuantMatrix& w, std::byte* data, std::int64_t stride, ThreadPool& pool);

  Panel panel(std::int64_t p) const {
    return {.data = data_ + p * stride_,
            .cols = cols_,
            .block_scales = block_scales_.empty() ? nullptr : block_scales_.data() + p * blocks_,
            .row_scales = row_scales_.empty() ? nullptr : row_scales_.data() + p * kPanelRows};
  }

 private:
  void set_scales(const QuantMatrix& w);
  bool exact_panel(const QuantMatrix& w, std::int64_t first) const;

  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
  std::int64_t blocks_ = 0;  // of 128 columns
  PanelFormat format_ = PanelFormat::kF32;
  std::int64_t panel_bytes_ = 0;
  const std::byte* data_ = nullptr;
  std::int64_t stride_ = 0;
  std::vector<float> block_scales_;         // [panels, blocks_]
  std::vector<float> row_scales_;           // [panels, 32]
  std::vector<std::uint8_t> exact_chunks_;  // [panels], of the 4-bit formats
  bool exact_block_scales_ = true;
};

}  // namespace quatrain

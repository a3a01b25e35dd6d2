// SPDX-License-Identifier: Apache-2.0
// Products of many tokens by blocks that work in pairs: on the same tokens and neighbouring tiles
// of weight rows, so that each brings half of the tokens' inputs to both.
#pragma once

#include "backends/cuda/launch/launch.h"
#include "backends/cuda/launch/linear.h"

namespace quatrain::cuda {

/// Weight rows of a tile, which share their scales.
inline constexpr int kPairRows = 128;
inline constexpr int kBlocksOfPair = 2;

struct PairedProduct {
  const float* scales = nullptr;  // [row blocks, column blocks]
  float* out = nullptr;           // [tokens, rows]
  int rows = 0;
  int first_pair = 0;  // of tiles of rows, those of one group each
};

struct RowPairs {
  int tokens = 0;
  int groups = 1;
  int blocks = 0;      // of 128 columns
  int pairs = 0;       // of a launch, from first_pair on
  int first_pair = 0;  // where one after the other has some of them
  int count = 0;
  PairedProduct products[kMaxProducts] = {};

  void add(const Matrix& w, float* out) {
    products[count++] = {.scales = static_cast<const float*>(w.scales),
                         .out = out,
                         .rows = w.rows,
                         .first_pair = pairs};
    pairs += groups * ceil_div(w.rows / groups, kBlocksOfPair * kPairRows);
  }
};

/// Whether such blocks take the matrix: FP8 in whole 128x128 blocks, but for the last rows where
/// there is one group.
inline bool fits_row_pairs(const Matrix& w, int groups) {
  return w.format == WeightFormat::kFp8Block && w.scale_dtype == DType::kF32 &&
         w.cols % kLinearBlock == 0 && w.rows % 8 == 0 &&
         (groups == 1 || w.rows / groups % kPairRows == 0);
}

/// Pairs that the chip holds of a kernel whose blocks have `shape`; allows it its shared memory.
template <class... Params>
int resident_pairs(void (*kernel)(Params...), LaunchShape shape) {
  allow_shared(kernel, shape.shared);
  shape.grid = kBlocksOfPair;
  return resident_clusters(kernel, shape);
}

}  // namespace quatrain::cuda

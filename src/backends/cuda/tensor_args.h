// SPDX-License-Identifier: Apache-2.0
// From the seam's tensors to what kernels take: pointers of contiguous arrays, and ints.
#pragma once

#include <cstdint>
#include <limits>

#include "backends/cuda/launch/batch.h"
#include "backends/cuda/launch/elementwise.h"
#include "ops/op_args.h"

namespace quatrain {

inline int as_int(std::int64_t n) {
  QT_CHECK(n >= 0 && n <= std::numeric_limits<int>::max(), "an extent of {} does not fit a kernel",
           n);
  return static_cast<int>(n);
}
inline int extent(const Tensor& t, int i) { return as_int(t.dim(i)); }
/// Of the innermost dimension.
inline int width_of(const Tensor& t) { return extent(t, t.rank() - 1); }

inline const Tensor& contiguous(const Tensor& t) {
  QT_CHECK(t.contiguous(), "expected a contiguous tensor, found the strided view {}", t.describe());
  return t;
}
inline float* f32(const Tensor& t) { return contiguous(t).f32(); }
inline int* i32(const Tensor& t) { return contiguous(t).i32(); }
inline cuda::CacheRows cache_rows(const Tensor& t) {
  QT_CHECK(t.dtype() == DType::kBF16 || t.dtype() == DType::kF32,
           "expected a cache in BF16 or F32, found {}", t.describe());
  return {.data = contiguous(t).data(), .is_bf16 = t.dtype() == DType::kBF16};
}

inline cuda::BatchView view_of(const Batch& batch) {
  return {.positions = i32(batch.positions),
          .slots = i32(batch.slots),
          .first_rows = i32(batch.first_rows),
          .block_table = i32(batch.block_table),
          .blocks_per_slot = extent(batch.block_table, 1),
          .rows = as_int(batch.rows())};
}

inline cuda::PoolView view_of(const RowPool& pool) {
  if (!pool.rows) return {};
  return {.rows = cache_rows(pool.rows),
          .ratio = as_int(pool.ratio),
          .per_block = as_int(kBlockTokens / pool.ratio)};
}

inline cuda::Grid kernel_grid(CacheGrid grid) {
  switch (grid) {
    case CacheGrid::kLatent:
      return cuda::Grid::kFp8;
    case CacheGrid::kIndex:
      return cuda::Grid::kHadamardFp4;
    case CacheGrid::kNone:
      break;
  }
  return cuda::Grid::kNone;
}

}  // namespace quatrain

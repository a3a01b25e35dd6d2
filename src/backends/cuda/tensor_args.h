// SPDX-License-Identifier: Apache-2.0
// From the seam's tensors to what kernels take: pointers of contiguous arrays, and ints.
#pragma once

#include <cstdint>
#include <limits>

#include "backends/cuda/launch/batch.h"
#include "backends/cuda/launch/elementwise.h"
#include "core/packed_row.h"
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

enum class CacheContent { kLatents, kIndexKeys };

/// The rows of a cache of `width` columns; U8 holds packed rows.
inline cuda::CacheRows cache_rows(const Tensor& t, CacheContent content, int width) {
  const bool is_latent = content == CacheContent::kLatents;
  cuda::CacheRows rows = {.data = contiguous(t).data(), .width = width};
  rows.row_bytes = as_int(bytes_of(t.dtype()) * t.dim(t.rank() - 1));
  int expected = width * as_int(bytes_of(t.dtype()));
  if (t.dtype() == DType::kF32) {
    rows.format = cuda::CacheFormat::kF32;
  } else if (t.dtype() == DType::kF16) {
    rows.format = cuda::CacheFormat::kF16;
  } else if (t.dtype() == DType::kBF16) {
    rows.format = cuda::CacheFormat::kBf16;
  } else if (t.dtype() == DType::kU8) {
    rows.format = is_latent ? cuda::CacheFormat::kPackedLatent : cuda::CacheFormat::kPackedIndexKey;
    expected = is_latent ? PackedLatent(width).bytes : PackedIndexKey(width).bytes;
  } else {
    fail("{}: expected a cache in F32, F16, BF16 or U8", t.describe());
  }
  QT_CHECK_EQ(rows.row_bytes, expected, "bytes of a cache row");
  return rows;
}

inline cuda::BatchView view_of(const Batch& batch) {
  return {.positions = i32(batch.positions),
          .slots = i32(batch.slots),
          .first_rows = i32(batch.first_rows),
          .block_table = i32(batch.block_table),
          .blocks_per_slot = extent(batch.block_table, 1),
          .rows = as_int(batch.rows()),
          .is_decode = batch.is_decode};
}

inline cuda::PoolView view_of(const RowPool& pool, CacheContent content, int width) {
  if (!pool.rows) return {};
  return {.rows = cache_rows(pool.rows, content, width),
          .ratio = as_int(pool.ratio),
          .per_block = cuda::Divisor(as_int(kBlockTokens / pool.ratio))};
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

// SPDX-License-Identifier: Apache-2.0
// The rows of a step and the paged pools, as kernels see them.
#pragma once

#include <cstdint>

#include "backends/cuda/launch/divisor.h"

namespace quatrain::cuda {

/// A row with slot −1 is padding: only its slot may be read.
struct BatchView {
  const int* positions = nullptr;    // [rows]
  const int* slots = nullptr;        // [rows]
  const int* first_rows = nullptr;   // [rows] first row of the same sequence in this step
  const int* block_table = nullptr;  // [slots, blocks_per_slot]
  int blocks_per_slot = 0;
  int rows = 0;
  bool is_decode = false;  // no sequence has more than one row
};

enum class CacheFormat : std::uint8_t {
  kF32,
  kF16,
  kBf16,
  kPackedLatent,    ///< core/packed_row.h
  kPackedIndexKey,  ///< core/packed_row.h
};

/// Calls f<format>() for a cache that is not FP32: kF16, kBf16, or kPacked, the packed one of its
/// kind.
template <CacheFormat kPacked, class F>
void with_format(CacheFormat format, const F& f) {
  switch (format) {
    case CacheFormat::kBf16:
      return f.template operator()<CacheFormat::kBf16>();
    case kPacked:
      return f.template operator()<kPacked>();
    default:
      return f.template operator()<CacheFormat::kF16>();
  }
}

/// Rows that outlive a step. device/cache_rows.cuh reads and writes them.
struct CacheRows {
  void* data = nullptr;
  CacheFormat format = CacheFormat::kF32;
  int width = 0;  // columns
  int row_bytes = 0;
};

/// Row w of a sequence is rows[table[slot][w / per_block] * per_block + w % per_block].
struct PoolView {
  CacheRows rows;  // [blocks * per_block, width]; null when there are none
  int ratio = 0;   // tokens per row
  Divisor per_block{};
};

}  // namespace quatrain::cuda

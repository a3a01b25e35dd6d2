// SPDX-License-Identifier: Apache-2.0
// How kernels find the rows of one sequence: this step's, the ring's, the pools'. The device twin
// of backends/cpu/sequence_view.h, in row numbers rather than pointers.
#pragma once

#include <cstdint>

#include "backends/cuda/launch/batch.h"

namespace quatrain::cuda {

/// Rows of a paged pool that belong to one sequence slot.
class PagedRows {
 public:
  __device__ PagedRows(const BatchView& batch, const PoolView& pool, int slot)
      : table_(batch.block_table + std::int64_t{slot} * batch.blocks_per_slot),
        per_block_(pool.per_block) {}

  /// Row of the pool that holds row w of the sequence.
  __device__ std::int64_t row(int w) const {
    const int block = per_block_.quotient(w);
    return (std::int64_t{table_[block]} - block) * per_block_.value() + w;
  }

 private:
  const int* table_;
  const Divisor& per_block_;
};

/// Rows by absolute position of the sequence of batch row `row`, which is no padding: this step's
/// rows from `first_position` on, the ring's for earlier ones.
class RecentRows {
 public:
  __device__ RecentRows(const BatchView& batch, int row, int capacity)
      : first_row_(batch.first_rows[row]),
        first_position_(batch.positions[row] - (row - first_row_)),
        ring_row_(std::int64_t{batch.slots[row]} * capacity),
        capacity_(capacity) {}

  __device__ bool in_step(int position) const { return position >= first_position_; }
  /// Row of this step's tensors.
  __device__ std::int64_t step_row(int position) const {
    return first_row_ + (position - first_position_);
  }
  /// Row of the ring viewed as [slots * capacity, width].
  __device__ std::int64_t ring_row(int position) const { return ring_row_ + position % capacity_; }

 private:
  int first_row_;
  int first_position_;
  std::int64_t ring_row_;
  int capacity_;
};

/// Is row r, which is no padding, the only one of its sequence in this step?
__device__ inline bool is_alone(const BatchView& batch, int r) {
  return batch.first_rows[r] == r && (r + 1 >= batch.rows || batch.slots[r + 1] != batch.slots[r] ||
                                      batch.first_rows[r + 1] != r);
}

/// Is batch row r among the last `capacity` rows of its sequence in this step? Only those are
/// stored, so no two rows of a step write to the same place.
__device__ inline bool is_recent(const BatchView& batch, int r, int capacity) {
  const int after = r + capacity;
  return after >= batch.rows || batch.first_rows[after] != batch.first_rows[r] ||
         batch.slots[after] != batch.slots[r];
}

}  // namespace quatrain::cuda

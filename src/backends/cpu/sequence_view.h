// SPDX-License-Identifier: Apache-2.0
// How the reference bodies find the rows of one sequence: this step's, the ring's, the pools'.
#pragma once

#include <cstdint>

#include "ops/op_args.h"

namespace quatrain {

/// Rows of a paged pool that belong to one sequence slot.
class PagedRows {
 public:
  PagedRows(const RowPool& pool, const Tensor& block_table, std::int64_t slot)
      : rows_(pool.rows.f32()),
        width_(pool.rows.dim(1)),
        per_block_(kBlockTokens / pool.ratio),
        table_(block_table.i32() + slot * block_table.dim(1)) {}

  float* row(std::int64_t w) const {
    const std::int64_t block = table_[w / per_block_];
    return rows_ + (block * per_block_ + w % per_block_) * width_;
  }

 private:
  float* rows_;
  std::int64_t width_;
  std::int64_t per_block_;
  const std::int32_t* table_;
};

/// Rows [.., width] by absolute position: this step's rows for positions from `first_position` on,
/// the ring's for earlier ones.
class RecentRows {
 public:
  /// Row `r` of the batch is the view's sequence; `step` [T, width], `ring` [slots, capacity,
  /// width].
  RecentRows(const Batch& batch, std::int64_t r, const Tensor& step, const Tensor& ring)
      : width_(step.dim(1)), capacity_(ring.dim(1)) {
    const std::int64_t first_row = batch.first_rows.i32()[r];
    first_position_ = batch.positions.i32()[r] - (r - first_row);
    step_ = step.f32() + first_row * width_;
    ring_ = ring.f32() + batch.slots.i32()[r] * capacity_ * width_;
  }

  const float* row(std::int64_t position) const {
    return position >= first_position_ ? step_ + (position - first_position_) * width_
                                       : ring_ + position % capacity_ * width_;
  }

 private:
  std::int64_t width_;
  std::int64_t capacity_;
  std::int64_t first_position_;
  const float* step_;
  const float* ring_;
};

/// Copies the rows of each sequence's last `capacity` positions of this step into its ring.
void store_recent(const Batch& batch, std::int64_t r, const Tensor& step, const Tensor& ring);

}  // namespace quatrain

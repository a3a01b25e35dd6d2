// SPDX-License-Identifier: Apache-2.0
#include "core/arena.h"

#include <algorithm>

namespace quatrain {

Arena::Arena(void* base, std::int64_t capacity)
    : base_(static_cast<char*>(base)), capacity_(capacity) {
  QT_CHECK(base != nullptr, "an arena needs memory");
}

Tensor Arena::make(DType dtype, std::initializer_list<std::int64_t> shape) {
  Tensor t(nullptr, dtype, shape);
  const std::int64_t begin = used_;
  const std::int64_t end = begin + (t.bytes() + kAlignment - 1) / kAlignment * kAlignment;
  QT_CHECK(is_measuring() || end <= capacity_,
           "scratch arena is full: {} needs bytes up to {}, the dry run measured {}", t.describe(),
           end, capacity_);
  used_ = end;
  high_water_ = std::max(high_water_, end);
  // A measuring arena hands out distinct non-null addresses that nobody may read.
  char* data = is_measuring() ? reinterpret_cast<char*>(begin + kAlignment) : base_ + begin;
  return Tensor(data, dtype, shape);
}

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
#include "core/tensor.h"

namespace quatrain {

Tensor::Tensor(void* data, DType dtype, std::initializer_list<std::int64_t> shape)
    : data_(data), dtype_(dtype), rank_(static_cast<int>(shape.size())) {
  QT_CHECK(rank_ >= 1 && rank_ <= kMaxRank, "tensor rank {} is outside 1..{}", rank_, kMaxRank);
  std::size_t i = 0;
  for (const std::int64_t extent : shape) {
    QT_CHECK(extent >= 0, "tensor extent {} is negative", extent);
    shape_[i++] = extent;
  }
  std::int64_t stride = 1;
  for (int d = rank_ - 1; d >= 0; --d) {
    stride_[static_cast<std::size_t>(d)] = stride;
    QT_CHECK(!__builtin_mul_overflow(stride, dim(d), &stride), "{} is too large", describe());
  }
  std::int64_t bits = 0;
  QT_CHECK(!__builtin_mul_overflow(stride, bits_of(dtype), &bits), "{} is too large", describe());
}

std::int64_t Tensor::elements() const {
  if (rank_ == 0) return 0;
  std::int64_t n = 1;
  for (int d = 0; d < rank_; ++d) n *= dim(d);
  return n;
}

bool Tensor::contiguous() const {
  std::int64_t expected = 1;
  for (int d = rank_ - 1; d >= 0; --d) {
    if (dim(d) != 1 && stride(d) != expected) return false;
    expected *= dim(d);
  }
  return true;
}

Tensor Tensor::rows(std::int64_t begin, std::int64_t count) const {
  QT_CHECK(begin >= 0 && count >= 0 && begin <= dim(0) && count <= dim(0) - begin,
           "rows {} + {} of {}", begin, count, describe());
  Tensor t = *this;
  t.data_ = static_cast<char*>(data_) + begin * stride(0) * bytes_of(dtype_);
  t.shape_[0] = count;
  return t;
}

Tensor Tensor::operator[](std::int64_t i) const {
  QT_CHECK(rank_ >= 2, "indexing {} leaves no dimension", describe());
  Tensor t = rows(i, 1);
  t.rank_ = rank_ - 1;
  for (int d = 0; d < t.rank_; ++d) {
    t.shape_[static_cast<std::size_t>(d)] = dim(d + 1);
    t.stride_[static_cast<std::size_t>(d)] = stride(d + 1);
  }
  return t;
}

Tensor Tensor::reshaped(std::initializer_list<std::int64_t> shape) const {
  QT_CHECK(contiguous(), "reshaping a strided view of {}", describe());
  Tensor t(data_, dtype_, shape);
  QT_CHECK(t.elements() == elements(), "reshaping {} to {}", describe(), t.describe());
  return t;
}

Tensor Tensor::columns(std::int64_t begin, std::int64_t count) const {
  QT_CHECK(rank_ >= 1, "an empty tensor has no columns");
  const std::int64_t width = dim(rank_ - 1);
  QT_CHECK(begin >= 0 && count >= 0 && begin <= width && count <= width - begin,
           "columns {} + {} of {}", begin, count, describe());
  Tensor t = *this;
  t.data_ = static_cast<char*>(data_) + begin * stride(rank_ - 1) * bytes_of(dtype_);
  t.shape_[static_cast<std::size_t>(rank_ - 1)] = count;
  return t;
}

std::string Tensor::describe() const {
  std::string text = fmt::format("{} [", name_of(dtype_));
  for (int d = 0; d < rank_; ++d) text += fmt::format("{}{}", d ? ", " : "", dim(d));
  return text + "]";
}

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// Tensor: a non-owning view of an array (pointer, element type, shape, strides).
//
// The memory may belong to a device; only a backend may dereference it. Copying a Tensor copies the
// view. Shapes are listed outermost first; strides count elements.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/dtype.h"
#include "core/error.h"

namespace quatrain {

class Tensor {
 public:
  static constexpr int kMaxRank = 4;

  Tensor() = default;

  /// A contiguous (row-major) view of `shape` at `data`.
  Tensor(void* data, DType dtype, std::initializer_list<std::int64_t> shape);

  explicit operator bool() const { return rank_ > 0; }
  void* data() const { return data_; }
  DType dtype() const { return dtype_; }
  int rank() const { return rank_; }
  std::int64_t dim(int i) const { return shape_[static_cast<std::size_t>(i)]; }
  std::int64_t stride(int i) const { return stride_[static_cast<std::size_t>(i)]; }
  std::int64_t elements() const;
  std::int64_t bytes() const { return elements() * bytes_of(dtype_); }
  bool contiguous() const;

  /// Rows [begin, begin + count) of the outermost dimension.
  Tensor rows(std::int64_t begin, std::int64_t count) const;
  /// Entry i of the outermost dimension: a view of one rank less.
  Tensor operator[](std::int64_t i) const;
  /// The same elements under another shape; the view must be contiguous.
  Tensor reshaped(std::initializer_list<std::int64_t> shape) const;
  /// Columns [begin, begin + count) of the innermost dimension; the result is strided.
  Tensor columns(std::int64_t begin, std::int64_t count) const;

  /// Typed pointer; T must have the element's size.
  template <class T>
  T* as() const {
    QT_CHECK(static_cast<std::int64_t>(sizeof(T)) == bytes_of(dtype_),
             "tensor of {} read as elements of {} bytes", name_of(dtype_), sizeof(T));
    return static_cast<T*>(data_);
  }
  /// Pointer to the elements of an FP32 tensor.
  float* f32() const {
    QT_CHECK(dtype_ == DType::kF32, "expected an F32 tensor, found {}", name_of(dtype_));
    return static_cast<float*>(data_);
  }
  std::int32_t* i32() const {
    QT_CHECK(dtype_ == DType::kI32, "expected an I32 tensor, found {}", name_of(dtype_));
    return static_cast<std::int32_t*>(data_);
  }

  /// "BF16 [4, 128]"
  std::string describe() const;

 private:
  void* data_ = nullptr;
  DType dtype_ = DType::kF32;
  int rank_ = 0;
  std::array<std::int64_t, kMaxRank> shape_{};
  std::array<std::int64_t, kMaxRank> stride_{};
};

}  // namespace quatrain

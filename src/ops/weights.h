// SPDX-License-Identifier: Apache-2.0
// Opaque handles of packed weights, and the device memory that plain tensors live in.
//
// A backend packs each weight once into a layout of its own. Above the seam only names, shapes and
// byte counts are visible.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "core/quant_matrix.h"
#include "core/tensor.h"

namespace quatrain {

/// A linear y = W x with W [rows, cols], packed by a backend.
class PackedLinear {
 public:
  virtual ~PackedLinear() = default;
  std::string name;  ///< base name of the tensors it came from
  WeightFormat format = WeightFormat::kDense;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t bytes = 0;  ///< that one use of the whole matrix reads
};

/// The routed experts of one layer: w1 (gate) and w3 (up) [I, D], w2 (down) [D, I] each.
class PackedExperts {
 public:
  virtual ~PackedExperts() = default;
  std::string name;
  std::int64_t count = 0;         ///< E
  std::int64_t hidden = 0;        ///< D
  std::int64_t intermediate = 0;  ///< I
  std::int64_t bytes = 0;         ///< of all experts
  bool has_input_scales = true;   ///< every projection came with a calibrated input_scale
  /// Inputs will be FP8 (ExpertActivations::kFp8), and nothing else. Set before anything is packed:
  /// it may choose the layout, and pack_expert() refuses weights that core/fp8_window.h does.
  bool fp8_inputs = false;
};

/// Owned memory of a device; freed with the object.
class Buffer {
 public:
  Buffer() = default;
  Buffer(void* data, std::int64_t bytes, std::function<void(void*)> release)
      : data_(data), bytes_(bytes), release_(std::move(release)) {}
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(release_, other.release_);
    return *this;
  }
  ~Buffer() {
    if (data_ != nullptr) release_(data_);
  }

  void* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  std::int64_t bytes_ = 0;
  std::function<void(void*)> release_;
};

}  // namespace quatrain

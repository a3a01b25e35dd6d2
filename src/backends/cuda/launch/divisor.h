// SPDX-License-Identifier: Apache-2.0
// Divisions by numbers that the host knows.
#pragma once

#include <cstdint>

#include "core/codec.h"

namespace quatrain::cuda {

/// Divides by a product and a shift. A division proper takes a kernel about thirty instructions,
/// which count where they run once. Exact: the multiplier is 2^shift / value, rounded up by less
/// than 1, so the product is too large by less than n / 2^shift · value < 1 / value.
class Divisor {
 public:
  constexpr Divisor() : Divisor(1) {}
  /// value ≥ 1
  constexpr explicit Divisor(int value) : value_(static_cast<std::uint32_t>(value)) {
    while ((std::uint64_t{1} << (shift_ - 31)) < value_) ++shift_;
    multiplier_ = static_cast<std::uint32_t>(((std::uint64_t{1} << shift_) + value_ - 1) / value_);
  }
  QT_HOST_DEVICE constexpr int value() const { return static_cast<int>(value_); }
  /// Of n ≥ 0.
  QT_HOST_DEVICE constexpr int quotient(int n) const {
    const auto product = static_cast<std::uint64_t>(static_cast<std::uint32_t>(n)) * multiplier_;
    return static_cast<int>(product >> shift_);
  }
  QT_HOST_DEVICE constexpr int remainder(int n) const { return n - quotient(n) * value(); }

 private:
  std::uint32_t value_;
  std::uint32_t multiplier_ = 0;
  std::uint32_t shift_ = 31;
};

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// Activations as F16 with a power of two per row and 128 columns: 11 bits, whatever their range.
#pragma once

#include <cstdint>

#include "core/codec.h"

namespace quatrain {

/// Columns that share a power of two; the last block of a row may be short.
inline constexpr int kF16ActivationBlock = 128;

/// What takes the values of a block to the range of F16, and what takes them back; powers of two.
struct F16ActivationRange {
  float up = 1;
  float down = 1;  ///< 1 / up
};

/// Of a block whose largest magnitude is amax, which goes to [2^14, 2^15). Below 2^-100 nothing is
/// gained. Infinity and NaN stay what they are.
QT_HOST_DEVICE inline F16ActivationRange f16_activation_range(float amax) {
  const int found = static_cast<int>((bits_from_float(amax) >> 23) & 255u) - 127;
  const int exponent = found < -100 ? -100 : found;
  return {.up = float_from_bits(static_cast<std::uint32_t>(14 - exponent + 127) << 23),
          .down = float_from_bits(static_cast<std::uint32_t>(exponent - 14 + 127) << 23)};
}

}  // namespace quatrain

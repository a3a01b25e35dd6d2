// SPDX-License-Identifier: Apache-2.0
// FP8 activations as the official model has them: E4M3 codes with a power of two per row and 128
// columns.
#pragma once

#include <cstdint>

#include "core/codec.h"

namespace quatrain {

/// Columns that share a scale; the last block of a row may be short.
inline constexpr int kFp8ActivationBlock = 128;

/// The scale of a block whose largest magnitude is amax: the power of two at or above amax / 448,
/// amax being 1e-4 at least; NaN where amax is infinite or NaN, so that the row does not end up
/// finite.
QT_HOST_DEVICE inline float fp8_activation_scale(float amax) {
  if (!(amax < float_from_bits(0x7F800000u))) return float_from_bits(0x7FC00000u);
  constexpr float kUnit = 1.0f / kE4M3Max;
  return ue8m0_decode(ue8m0_encode_up((amax > 1e-4f ? amax : 1e-4f) * kUnit));
}

/// What takes values to the range of their codes: exactly 1 / scale.
QT_HOST_DEVICE inline float fp8_activation_inverse(float scale) {
  return float_from_bits((254u << 23) - bits_from_float(scale));
}

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// Activations to FP8 on the grid of core/fp8_activations.h, by a warp per block of 128 columns.
#pragma once

#include <cstdint>

#include "backends/cuda/device/reduce.cuh"
#include "core/fp8_activations.h"

namespace quatrain::cuda {

/// Four values, saturating, to a word of E4M3 codes.
__device__ inline std::uint32_t e4m3_word(const float4& x) {
  std::uint32_t word;
  asm("{ .reg .b16 low, high; cvt.rn.satfinite.e4m3x2.f32 low, %2, %1; "
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3; mov.b32 %0, {low, high}; }"
      : "=r"(word)
      : "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w));
  return word;
}

/// The scale of a block of which every lane has four columns; NaN counts as the largest.
__device__ inline float fp8_scale_of(const float4& x) {
  const auto magnitude = [](float v) { return __float_as_uint(v) & 0x7FFFFFFFu; };
  const std::uint32_t mine =
      max(max(magnitude(x.x), magnitude(x.y)), max(magnitude(x.z), magnitude(x.w)));
  return fp8_activation_scale(__uint_as_float(__reduce_max_sync(kAllLanes, mine)));
}

/// The codes of a lane's four columns.
__device__ inline std::uint32_t fp8_codes(const float4& x, float scale) {
  const float up = fp8_activation_inverse(scale);
  return e4m3_word({x.x * up, x.y * up, x.z * up, x.w * up});
}

}  // namespace quatrain::cuda

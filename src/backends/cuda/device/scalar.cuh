// SPDX-License-Identifier: Apache-2.0
// Scalar functions that several kernels share; the device twins of backends/cpu/scalar.h.
#pragma once

#include <cstdint>

namespace quatrain::cuda {

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/// Without the branches of a division that rounds right: off by about 2^-21 of the value at most.
__device__ inline float close_sigmoid(float x) { return __fdividef(1.0f, 1.0f + expf(-x)); }

/// In a third of the instructions. By the bounds of its two functions it is off by no more than
/// about 2^-19 of the value where |x| ≤ 10, and more below, where the value is next to nothing.
__device__ inline float quick_sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

/// silu(min(gate, limit)) · clamp(up, ±limit); limit 0 clamps nothing. Comparisons rather than
/// fminf, so that NaN stays NaN.
template <float (*kSigmoid)(float) = sigmoid>
__device__ inline float swiglu_value(float gate, float up, float limit) {
  if (limit > 0) {
    gate = limit < gate ? limit : gate;
    up = up < -limit ? -limit : limit < up ? limit : up;
  }
  return gate * kSigmoid(gate) * up;
}

/// Four of them.
template <float (*kSigmoid)(float) = sigmoid>
__device__ inline float4 swiglu_values(const float4& gate, const float4& up, float limit) {
  return {swiglu_value<kSigmoid>(gate.x, up.x, limit), swiglu_value<kSigmoid>(gate.y, up.y, limit),
          swiglu_value<kSigmoid>(gate.z, up.z, limit), swiglu_value<kSigmoid>(gate.w, up.w, limit)};
}
/// The same with a sigmoid that is close enough for inputs of a product.
__device__ inline float4 swiglu_inputs(const float4& gate, const float4& up, float limit) {
  return swiglu_values<close_sigmoid>(gate, up, limit);
}

/// sqrt(log(1 + e^x)) without overflow.
__device__ inline float sqrt_softplus(float x) {
  return sqrtf(fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))));
}

/// The factor of an RMS norm over n values with the given sum of squares.
__device__ inline float rms_factor(float sum_of_squares, int n, float eps) {
  return 1.0f / sqrtf(sum_of_squares / static_cast<float>(n) + eps);
}

/// An integer that orders as the float does; −0 equals +0.
__device__ inline std::uint32_t ordered_key(float x) {
  const std::uint32_t bits = __float_as_uint(x == 0.0f ? 0.0f : x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/activation_quant.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/codec.h"
#include "core/fp8_activations.h"
#include "core/quant_matrix.h"

namespace quatrain {

float nvfp4_row_scale(const float* x, std::int64_t n) {
  float amax = 0;
  for (std::int64_t i = 0; i < n; ++i) amax = std::max(amax, std::abs(x[i]));
  return std::max(amax / (kE2M1Max * kE4M3Max), 1e-30f);
}

void nvfp4_round_row(const float* x, std::int64_t n, float g, float* out) {
  for (std::int64_t b = 0; b < n; b += kNvfp4Block) {
    float amax = 0;
    for (std::int64_t i = b; i < b + kNvfp4Block; ++i) amax = std::max(amax, std::abs(x[i]));
    const float scale = e4m3_decode(e4m3_encode(amax / kE2M1Max / g)) * g;
    for (std::int64_t i = b; i < b + kNvfp4Block; ++i)
      out[i] = scale > 0 ? e2m1_decode(e2m1_encode(x[i] / scale)) * scale : 0.0f;
  }
}

namespace {

// max|x| by bits, in which NaN is above all.
float magnitude(const float* x, std::int64_t n) {
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < n; ++i)
    largest = std::max(largest, bits_from_float(x[i]) & 0x7FFFFFFFu);
  return float_from_bits(largest);
}

// Adding 1.5 · 2^23 rounds to the nearest integer, which the low bits then hold.
std::int8_t int8_nearest(float x) {
  return static_cast<std::int8_t>(bits_from_float(x + 12582912.0f) & 255u);
}

float int8_inverse(float amax) { return amax < 1e-30f ? 0.0f : 127.0f / amax; }

}  // namespace

void int8_quantise_row(const float* x, std::int64_t n, Int8Activations* out) {
  for (std::int64_t begin = 0; begin < n; begin += kInt8Group, ++out) {
    const std::int64_t count = std::min(n - begin, kInt8Group);
    const float amax = magnitude(x + begin, count);
    const float inverse = int8_inverse(amax);
    *out = {};
    out->scale = amax / 127.0f;
    for (std::int64_t i = 0; i < count; ++i) {
      out->values[i] = int8_nearest(x[begin + i] * inverse);
      out->offsets[i / kInt8Block] -= 12 * out->values[i];
    }
  }
}

void int8_round_row(const float* x, std::int64_t n, float* out) {
  for (std::int64_t begin = 0; begin < n; begin += kInt8Group) {
    const std::int64_t end = std::min(n, begin + kInt8Group);
    const float amax = magnitude(x + begin, end - begin);
    const float inverse = int8_inverse(amax);
    for (std::int64_t i = begin; i < end; ++i)
      out[i] = static_cast<float>(int8_nearest(x[i] * inverse)) * (amax / 127.0f);
  }
}

void fp8_round_row(const float* x, std::int64_t n, float* out) {
  for (std::int64_t begin = 0; begin < n; begin += kFp8ActivationBlock) {
    const std::int64_t end = std::min<std::int64_t>(n, begin + kFp8ActivationBlock);
    const float scale = fp8_activation_scale(magnitude(x + begin, end - begin));
    const float up = fp8_activation_inverse(scale);
    for (std::int64_t i = begin; i < end; ++i) out[i] = e4m3_decode(e4m3_encode(x[i] * up)) * scale;
  }
}

}  // namespace quatrain

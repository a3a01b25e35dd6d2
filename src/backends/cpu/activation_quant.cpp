// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/activation_quant.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/codec.h"
#include "core/f16_activations.h"
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
  const float limited = std::min(127.0f, std::max(-127.0f, x));
  return static_cast<std::int8_t>(bits_from_float(limited + 12582912.0f) & 255u);
}

float power_of_two(std::int32_t biased_exponent) {
  return float_from_bits(static_cast<std::uint32_t>(biased_exponent) << 23);
}

// Biased exponents of the largest magnitudes of a row and of 32 of its columns. Less than 2^-100
// counts as that, and less than 2^-24 of the row's largest.
struct Int8Exponents {
  static constexpr std::int32_t kLeast = 27, kSpread = 24, kNotFinite = 255;
  std::int32_t row;

  static std::int32_t of(float x) { return static_cast<std::int32_t>(bits_from_float(x) >> 23); }
  Int8Exponents(const float* x, std::int64_t n) : row(std::max(of(magnitude(x, n)), kLeast)) {}
  std::int32_t chunk(const float* x, std::int64_t n) const {
    return std::max({of(magnitude(x, n)), row - kSpread, kLeast});
  }
  bool finite() const { return row != kNotFinite; }
};

// What an integer of one stands for where the largest magnitude has this exponent: integers reach
// 127 then; and its inverse.
float int8_unit(std::int32_t exponent) { return power_of_two(exponent - 6); }
float int8_inverse(std::int32_t exponent) { return power_of_two(2 * 127 + 6 - exponent); }

}  // namespace

void int8_quantise_row(const float* x, std::int64_t n, Int8Activations* out) {
  const Int8Exponents exponents(x, n);
  for (std::int64_t begin = 0; begin < n; begin += kInt8Group, ++out) {
    *out = {};
    out->row_scale =
        exponents.finite() ? int8_unit(exponents.row) : std::numeric_limits<float>::quiet_NaN();
    const std::int64_t count = std::min(n - begin, kInt8Group);
    for (std::int64_t c = 0; c < kInt8Group; c += kInt8Chunk) {
      out->scales[c / kInt8Chunk] = 1;
      if (c >= count || !exponents.finite()) continue;
      const std::int64_t size = std::min(count - c, kInt8Chunk);
      const std::int32_t exponent = exponents.chunk(x + begin + c, size);
      out->scales[c / kInt8Chunk] = power_of_two(127 + exponent - exponents.row);
      for (std::int64_t i = c; i < c + size; ++i) {
        out->values[i] = int8_nearest(x[begin + i] * int8_inverse(exponent));
        out->offsets[i / kInt8Block] -= 12 * out->values[i];
      }
    }
  }
}

void int8_round_row(const float* x, std::int64_t n, float* out) {
  const Int8Exponents exponents(x, n);
  for (std::int64_t begin = 0; begin < n; begin += kInt8Chunk) {
    const std::int64_t end = std::min(n, begin + kInt8Chunk);
    const std::int32_t exponent = exponents.chunk(x + begin, end - begin);
    for (std::int64_t i = begin; i < end; ++i)
      out[i] = exponents.finite()
                   ? static_cast<float>(int8_nearest(x[i] * int8_inverse(exponent))) *
                         int8_unit(exponent)
                   : std::numeric_limits<float>::quiet_NaN();
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

void f16_round_row(const float* x, std::int64_t n, float* out) {
  for (std::int64_t begin = 0; begin < n; begin += kF16ActivationBlock) {
    const std::int64_t end = std::min<std::int64_t>(n, begin + kF16ActivationBlock);
    float amax = 0;  // NaN aside: the others of its block are rounded as if it were not there
    for (std::int64_t i = begin; i < end; ++i) amax = std::max(amax, std::abs(x[i]));
    const F16ActivationRange range = f16_activation_range(amax);
    for (std::int64_t i = begin; i < end; ++i)
      out[i] = f16_decode(f16_encode(x[i] * range.up)) * range.down;
  }
}

}  // namespace quatrain

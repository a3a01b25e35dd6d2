// SPDX-License-Identifier: Apache-2.0
// The encoders against an independent one: a search for the nearest value in double precision over
// the table of all values, for random floats of every exponent and for random bit patterns.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "core/codec.h"

namespace quatrain {
namespace {

/// A format by definition: value of code i for every non-negative code, in increasing order. The
/// first value past the end (2^16 for F16) stands for infinity, or is left out when encoding
/// saturates.
struct Format {
  std::vector<double> values;
  unsigned sign_bit = 0;

  unsigned nearest(float x) const {
    const double a = std::fabs(static_cast<double>(x));
    const unsigned sign = std::signbit(x) ? sign_bit : 0;
    const auto above = std::lower_bound(values.begin(), values.end(), a);
    if (above == values.end()) return sign | static_cast<unsigned>(values.size() - 1);
    const auto high = static_cast<unsigned>(above - values.begin());
    if (high == 0) return sign;
    const unsigned low = high - 1;
    const double to_low = a - values[low];
    const double to_high = values[high] - a;
    if (to_low != to_high) return sign | (to_low < to_high ? low : high);
    return sign | (low % 2 == 0 ? low : high);
  }
};

/// `mantissa_bits` explicit bits, subnormals below 2^min_exponent, codes 0 … count-1.
Format make_format(unsigned count, int mantissa_bits, int min_exponent, unsigned sign_bit) {
  Format format;
  format.sign_bit = sign_bit;
  for (unsigned code = 0; code < count; ++code) {
    const int exponent = static_cast<int>(code >> mantissa_bits);
    const int fraction = static_cast<int>(code & ((1u << mantissa_bits) - 1));
    const int significand = exponent == 0 ? fraction : fraction + (1 << mantissa_bits);
    format.values.push_back(
        std::ldexp(significand, min_exponent - mantissa_bits + std::max(exponent - 1, 0)));
  }
  return format;
}

const Format& e2m1() {
  static const Format format = make_format(8, 1, 0, 8);
  return format;
}
const Format& e4m3() {
  static const Format format = make_format(0x7F, 3, -6, 0x80);
  return format;
}
const Format& f16() {
  static const Format format = make_format(0x7C01, 10, -14, 0x8000);
  return format;
}
const Format& bf16() {
  static const Format format = make_format(0x7F81, 7, -126, 0x8000);
  return format;
}

void check_all(float x) {
  ASSERT_EQ(e2m1_encode(x), e2m1().nearest(x)) << x;
  ASSERT_EQ(e4m3_encode(x), e4m3().nearest(x)) << x;
  ASSERT_EQ(f16_encode(x), f16().nearest(x)) << x;
  ASSERT_EQ(bf16_encode(x), bf16().nearest(x)) << x;
}

TEST(Nearest, TablesAreTheFormats) {
  EXPECT_EQ(e2m1().values.back(), 6.0);
  EXPECT_EQ(e4m3().values.back(), 448.0);
  EXPECT_EQ(f16().values.back(), 65536.0);
  EXPECT_EQ(bf16().values.back(), std::ldexp(1.0, 128));
  for (const Format* format : {&e2m1(), &e4m3(), &f16(), &bf16()})
    EXPECT_TRUE(std::is_sorted(format->values.begin(), format->values.end()));
}

TEST(Nearest, EveryExponent) {
  std::mt19937 random(1);
  for (std::uint32_t exponent = 0; exponent < 256; ++exponent) {
    std::vector<std::uint32_t> mantissas = {0,        1,        2,        0x3FFFFF,
                                            0x400000, 0x400001, 0x7FFFFE, 0x7FFFFF};
    for (int i = 0; i < 2000; ++i) mantissas.push_back(random() & 0x7FFFFFu);
    for (const std::uint32_t mantissa : mantissas) {
      if (exponent == 255 && mantissa != 0) continue;  // NaN
      for (const std::uint32_t sign : {0u, 0x80000000u})
        ASSERT_NO_FATAL_FAILURE(check_all(float_from_bits(sign | exponent << 23 | mantissa)));
    }
  }
}

TEST(Nearest, RandomBitPatterns) {
  std::mt19937 random(2);
  for (int i = 0; i < 2'000'000; ++i) {
    const float x = float_from_bits(static_cast<std::uint32_t>(random()));
    if (std::isnan(x)) continue;
    ASSERT_NO_FATAL_FAILURE(check_all(x));
  }
}

TEST(Nearest, RandomValuesInsideTheSmallFormats) {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> wide(-512.0f, 512.0f);
  std::uniform_real_distribution<float> narrow(-8.0f, 8.0f);
  std::uniform_real_distribution<float> tiny(-0.03125f, 0.03125f);
  for (int i = 0; i < 500'000; ++i) {
    ASSERT_NO_FATAL_FAILURE(check_all(wide(random)));
    ASSERT_NO_FATAL_FAILURE(check_all(narrow(random)));
    ASSERT_NO_FATAL_FAILURE(check_all(tiny(random)));
  }
}

TEST(Nearest, RandomNaN) {
  std::mt19937 random(4);
  for (int i = 0; i < 100'000; ++i) {
    const std::uint32_t bits = (random() & 0x807FFFFFu) | 0x7F800001u;
    const float x = float_from_bits(bits);
    ASSERT_EQ(e2m1_encode(x), 7u);
    ASSERT_EQ(e4m3_encode(x), 0x7F);
    ASSERT_TRUE(std::isnan(f16_decode(f16_encode(x))));
    ASSERT_TRUE(std::isnan(bf16_decode(bf16_encode(x))));
  }
}

}  // namespace
}  // namespace quatrain

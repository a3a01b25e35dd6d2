// SPDX-License-Identifier: Apache-2.0
// Every code of every small format, every tie with both its neighbours, saturation, and the tables
// and exactness facts of the format notes. The search over arbitrary inputs is codec_nearest_test.
#include "core/codec.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace quatrain {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
const float kNan = std::numeric_limits<float>::quiet_NaN();

constexpr std::array<float, 8> kE2m1Values = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};

float up(float x) { return std::nextafterf(x, kInf); }
float down(float x) { return std::nextafterf(x, -kInf); }

// ---- E2M1 ----

TEST(E2M1, DecodesEveryCode) {
  for (unsigned code = 0; code < 16; ++code) {
    const float magnitude = kE2m1Values[code & 7];
    const float expected = code & 8 ? -magnitude : magnitude;
    EXPECT_EQ(bits_from_float(e2m1_decode(code)), bits_from_float(expected)) << code;
  }
}

TEST(E2M1, EncodeInvertsDecode) {
  for (unsigned code = 0; code < 16; ++code) EXPECT_EQ(e2m1_encode(e2m1_decode(code)), code);
}

TEST(E2M1, EveryTieGoesToTheEvenCode) {
  for (unsigned code = 0; code < 7; ++code) {
    const float tie = (kE2m1Values[code] + kE2m1Values[code + 1]) / 2;
    const unsigned even = code % 2 == 0 ? code : code + 1;
    EXPECT_EQ(e2m1_encode(tie), even) << tie;
    EXPECT_EQ(e2m1_encode(down(tie)), code) << tie;
    EXPECT_EQ(e2m1_encode(up(tie)), code + 1) << tie;
    EXPECT_EQ(e2m1_encode(-tie), 8 + even) << tie;
    EXPECT_EQ(e2m1_encode(-down(tie)), 8 + code) << tie;
    EXPECT_EQ(e2m1_encode(-up(tie)), 9 + code) << tie;
  }
}

TEST(E2M1, PublishedVectors) {
  const std::vector<std::pair<float, unsigned>> vectors = {
      {0.0f, 0},     {-0.0f, 8},    {0.25f, 0},      {up(0.25f), 1},   {down(0.75f), 1},
      {0.75f, 2},    {1.25f, 2},    {up(1.25f), 3},  {down(1.75f), 3}, {1.75f, 4},
      {2.5f, 4},     {up(2.5f), 5}, {down(3.5f), 5}, {3.5f, 6},        {5.0f, 6},
      {up(5.0f), 7}, {1e30f, 7},    {kInf, 7},       {kNan, 7},        {-0.25f, 8},
      {-5.0f, 0xE},  {-6.1f, 0xF},  {-kInf, 0xF},    {-0.1f, 8},       {6.0f, 7},
  };
  for (const auto& [x, code] : vectors) EXPECT_EQ(e2m1_encode(x), code) << x;
  EXPECT_EQ(e2m1_encode(-kNan), 7u) << "NaN has no sign here";
}

TEST(E2M1, PacksTheEvenElementLow) {
  EXPECT_EQ(e2m1_pack(e2m1_encode(1.0f), e2m1_encode(-6.0f)), 0xF2);
  for (unsigned even = 0; even < 16; ++even)
    for (unsigned odd = 0; odd < 16; ++odd) EXPECT_EQ(e2m1_pack(even, odd), even + 16 * odd);
}

TEST(E2M1, SameValuesInTheOtherFormats) {
  constexpr std::array<std::uint16_t, 8> kBf16 = {0x0000, 0x3F00, 0x3F80, 0x3FC0,
                                                  0x4000, 0x4040, 0x4080, 0x40C0};
  constexpr std::array<std::uint16_t, 8> kF16 = {0x0000, 0x3800, 0x3C00, 0x3E00,
                                                 0x4000, 0x4200, 0x4400, 0x4600};
  constexpr std::array<std::uint8_t, 8> kE4m3 = {0x00, 0x30, 0x38, 0x3C, 0x40, 0x44, 0x48, 0x4C};
  for (unsigned code = 0; code < 8; ++code) {
    const float value = e2m1_decode(code);
    EXPECT_EQ(bf16_encode(value), kBf16[code]);
    EXPECT_EQ(f16_encode(value), kF16[code]);
    EXPECT_EQ(e4m3_encode(value), kE4m3[code]);
    // The shifted codes, read as 16-bit floats, are the value times a power of two.
    EXPECT_EQ(f16_decode(static_cast<std::uint16_t>(code << 9)), std::ldexp(value, -14));
    EXPECT_EQ(bf16_decode(static_cast<std::uint16_t>(code << 6)), std::ldexp(value, -126));
  }
}

// ---- E4M3 ----

float e4m3_by_definition(unsigned byte) {
  const int exponent = static_cast<int>(byte >> 3 & 15);
  const int mantissa = static_cast<int>(byte & 7);
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return static_cast<float>(byte & 0x80 ? -magnitude : magnitude);
}

TEST(E4M3, DecodesEveryByteAndBack) {
  for (unsigned byte = 0; byte < 256; ++byte) {
    const float value = e4m3_decode(static_cast<std::uint8_t>(byte));
    if ((byte & 0x7F) == 0x7F) {
      EXPECT_TRUE(std::isnan(value)) << byte;
      EXPECT_EQ(e4m3_encode(value), 0x7F) << byte;
      continue;
    }
    EXPECT_EQ(bits_from_float(value), bits_from_float(e4m3_by_definition(byte))) << byte;
    EXPECT_EQ(e4m3_encode(value), byte);
  }
}

TEST(E4M3, EveryTieGoesToTheEvenByte) {
  for (unsigned byte = 0; byte < 0x7E; ++byte) {
    const float tie = (e4m3_by_definition(byte) + e4m3_by_definition(byte + 1)) / 2;
    const unsigned even = byte + byte % 2;
    EXPECT_EQ(e4m3_encode(tie), even) << tie;
    EXPECT_EQ(e4m3_encode(down(tie)), byte) << tie;
    EXPECT_EQ(e4m3_encode(up(tie)), byte + 1) << tie;
    EXPECT_EQ(e4m3_encode(-tie), 0x80 + even) << tie;
    EXPECT_EQ(e4m3_encode(-down(tie)), 0x80 + byte) << tie;
    EXPECT_EQ(e4m3_encode(-up(tie)), 0x81 + byte) << tie;
  }
}

TEST(E4M3, SaturatesInsteadOfOverflowing) {
  for (const float x : {448.0f, up(448.0f), 456.0f, down(464.0f), 464.0f, up(464.0f), 465.0f,
                        480.0f, 1e9f, std::numeric_limits<float>::max(), kInf}) {
    EXPECT_EQ(e4m3_encode(x), 0x7E) << x;
    EXPECT_EQ(e4m3_encode(-x), 0xFE) << x;
  }
  EXPECT_EQ(e4m3_encode(kNan), 0x7F);
  EXPECT_EQ(e4m3_encode(-kNan), 0x7F);
}

TEST(E4M3, PublishedVectors) {
  const float ulp = std::ldexp(1.0f, -9);
  const std::vector<std::pair<float, unsigned>> vectors = {
      {0.0f, 0x00},          {-0.0f, 0x80},      {ulp / 2, 0x00},    {up(ulp / 2), 0x01},
      {0.001f, 0x01},        {1.5f * ulp, 0x02}, {2.5f * ulp, 0x02}, {7.5f * ulp, 0x08},
      {8 * ulp, 0x08},       {0.5f, 0x30},       {1.0f, 0x38},       {1.0625f, 0x38},
      {1.0626f, 0x39},       {1.1875f, 0x3A},    {240.0f, 0x77},     {248.0f, 0x78},
      {256.0f, 0x78},        {272.0f, 0x78},     {272.1f, 0x79},     {300.0f, 0x79},
      {304.0f, 0x7A},        {432.0f, 0x7E},     {448.0f, 0x7E},     {464.0f, 0x7E},
      {0.0166015625f, 0x08},
  };
  for (const auto& [x, byte] : vectors) EXPECT_EQ(e4m3_encode(x), byte) << x;
  EXPECT_EQ(e4m3_decode(0x01), ulp);
  EXPECT_EQ(e4m3_decode(0x08), std::ldexp(1.0f, -6));
  EXPECT_EQ(e4m3_decode(0x7E), kE4M3Max);
}

// ---- UE8M0 ----

TEST(UE8M0, DecodesEveryByteAndBack) {
  for (int byte = 0; byte < 255; ++byte) {
    const float value = ue8m0_decode(static_cast<std::uint8_t>(byte));
    EXPECT_EQ(value, static_cast<float>(std::ldexp(1.0, byte - 127))) << byte;
    EXPECT_EQ(ue8m0_encode_up(value), byte);
  }
  EXPECT_TRUE(std::isnan(ue8m0_decode(255)));
}

TEST(UE8M0, EncodesTheSmallestPowerOfTwoNotBelow) {
  for (int byte = 0; byte < 254; ++byte) {
    const float power = ue8m0_decode(static_cast<std::uint8_t>(byte));
    const float next = ue8m0_decode(static_cast<std::uint8_t>(byte + 1));
    EXPECT_EQ(ue8m0_encode_up(up(power)), byte + 1) << power;
    EXPECT_EQ(ue8m0_encode_up(down(next)), byte + 1) << next;
    EXPECT_EQ(ue8m0_encode_up(-next), byte + 1) << "the sign does not matter";
  }
}

TEST(UE8M0, ClampsAtBothEnds) {
  EXPECT_EQ(ue8m0_encode_up(0.0f), 0);
  EXPECT_EQ(ue8m0_encode_up(std::numeric_limits<float>::denorm_min()), 0);
  EXPECT_EQ(ue8m0_encode_up(float_from_bits(0x003FFFFFu)), 0);
  EXPECT_EQ(ue8m0_encode_up(float_from_bits(0x00400000u)), 0) << "2^-127 itself";
  EXPECT_EQ(ue8m0_encode_up(float_from_bits(0x00400001u)), 1);
  EXPECT_EQ(ue8m0_encode_up(float_from_bits(0x007FFFFFu)), 1);
  EXPECT_EQ(ue8m0_encode_up(std::ldexp(1.0f, 127)), 254);
  EXPECT_EQ(ue8m0_encode_up(std::numeric_limits<float>::max()), 254);
  EXPECT_EQ(ue8m0_encode_up(kInf), 254);
}

TEST(UE8M0, ScalesOfTheFp8Grid) {
  // amax → exponent of the scale 2^ceil(log2(max(amax, 1e-4) / 448)), as the official kernels do
  // it.
  const std::vector<std::pair<float, int>> vectors = {{1e-5f, -22}, {0.5f, -9},  {1.0f, -8},
                                                      {3.5f, -7},   {448.0f, 0}, {449.0f, 1}};
  for (const auto& [amax, exponent] : vectors) {
    const float ratio = std::max(amax, 1e-4f) * (1.0f / 448.0f);
    EXPECT_EQ(ue8m0_encode_up(ratio) - 127, exponent) << amax;
  }
}

TEST(UE8M0, Fp8GridOfABlock) {
  const std::array<float, 4> in = {0.1f, -0.37f, 1.0f, 2.5f};
  const std::array<float, 4> expected = {0.1015625f, -0.375f, 1.0f, 2.5f};
  const float scale = ue8m0_decode(ue8m0_encode_up(2.5f * (1.0f / 448.0f)));
  EXPECT_EQ(scale, std::ldexp(1.0f, -7));
  for (std::size_t i = 0; i < in.size(); ++i)
    EXPECT_EQ(e4m3_decode(e4m3_encode(in[i] / scale)) * scale, expected[i]);
}

// ---- BF16 and F16 ----

TEST(BF16, EveryBitPatternSurvives) {
  for (unsigned bits = 0; bits < 0x10000; ++bits) {
    const float value = bf16_decode(static_cast<std::uint16_t>(bits));
    const unsigned again = bf16_encode(value);
    const bool is_nan = (bits & 0x7FFF) > 0x7F80;
    ASSERT_EQ(std::isnan(value), is_nan) << bits;
    // A signalling NaN becomes quiet; every other pattern is its own image.
    ASSERT_EQ(again, is_nan ? bits | 0x40 : bits);
  }
}

TEST(BF16, EveryTieGoesToTheEvenPattern) {
  for (unsigned bits = 0; bits < 0x7F80; ++bits) {
    const float tie = float_from_bits(bits << 16 | 0x8000u);
    const unsigned even = bits + bits % 2;
    ASSERT_EQ(bf16_encode(tie), even);
    ASSERT_EQ(bf16_encode(down(tie)), bits);
    ASSERT_EQ(bf16_encode(up(tie)), bits + 1);
    ASSERT_EQ(bf16_encode(-tie), 0x8000 + even);
  }
  EXPECT_EQ(bf16_encode(std::numeric_limits<float>::max()), 0x7F80) << "rounds to infinity";
  EXPECT_EQ(bf16_encode(-kInf), 0xFF80);
  EXPECT_TRUE(std::isnan(bf16_round(float_from_bits(0x7F800001u)))) << "payload in the low half";
  EXPECT_EQ(bf16_round(1.00390625f), 1.0f);
}

float f16_by_definition(unsigned bits) {
  const int exponent = static_cast<int>(bits >> 10 & 31);
  const int mantissa = static_cast<int>(bits & 1023);
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return static_cast<float>(bits & 0x8000 ? -magnitude : magnitude);
}

TEST(F16, EveryBitPatternSurvives) {
  for (unsigned bits = 0; bits < 0x10000; ++bits) {
    const float value = f16_decode(static_cast<std::uint16_t>(bits));
    const unsigned magnitude = bits & 0x7FFF;
    if (magnitude > 0x7C00) {
      ASSERT_TRUE(std::isnan(value)) << bits;
      ASSERT_EQ(f16_encode(value), (bits & 0x8000) | 0x7E00);
      continue;
    }
    const float expected =
        magnitude == 0x7C00 ? (bits & 0x8000 ? -kInf : kInf) : f16_by_definition(bits);
    ASSERT_EQ(bits_from_float(value), bits_from_float(expected)) << bits;
    ASSERT_EQ(f16_encode(value), bits);
  }
}

TEST(F16, EveryTieGoesToTheEvenPattern) {
  for (unsigned bits = 0; bits < 0x7C00; ++bits) {
    const float tie = (f16_by_definition(bits) + f16_by_definition(bits + 1)) / 2;
    const unsigned even = bits + bits % 2;
    ASSERT_EQ(f16_encode(tie), even) << tie;
    ASSERT_EQ(f16_encode(down(tie)), bits) << tie;
    ASSERT_EQ(f16_encode(up(tie)), bits + 1) << tie;
    ASSERT_EQ(f16_encode(-tie), 0x8000 + even) << tie;
  }
  EXPECT_EQ(f16_encode(down(65520.0f)), 0x7BFF);
  EXPECT_EQ(f16_encode(65520.0f), 0x7C00) << "a tie with 2^16, which is infinity here";
  EXPECT_EQ(f16_encode(std::numeric_limits<float>::max()), 0x7C00);
  EXPECT_EQ(f16_encode(std::numeric_limits<float>::denorm_min()), 0x0000);
}

// ---- products of an E2M1 value and an E4M3 scale, all 16 x 127 of them ----

template <class Check>
void for_every_product(Check check) {
  for (unsigned code = 0; code < 16; ++code)
    for (unsigned scale = 0; scale < 0x7F; ++scale)
      check(e2m1_decode(code) * e4m3_decode(static_cast<std::uint8_t>(scale)));
}

TEST(Exactness, ProductsAreExactIn16Bits) {
  for_every_product([](float product) {
    ASSERT_EQ(bf16_round(product), product);
    ASSERT_EQ(f16_decode(f16_encode(product)), product);
    ASSERT_LE(std::fabs(product), 2688.0f);
  });
}

TEST(Exactness, ManyProductsAreNotExactInE4M3) {
  int inexact = 0;
  for_every_product(
      [&](float product) { inexact += e4m3_decode(e4m3_encode(product)) != product; });
  EXPECT_EQ(inexact, 550);
}

TEST(Exactness, PowerOfTwoScalingInE4M3HasFifteenBinades) {
  for (int shift = -20; shift <= 20; ++shift) {
    bool exact = true;
    for (unsigned code = 0; code < 16; ++code) {
      const float value = std::ldexp(e2m1_decode(code), shift);
      exact = exact && e4m3_decode(e4m3_encode(value)) == value;
    }
    EXPECT_EQ(exact, shift >= -8 && shift <= 6) << shift;
  }
}

TEST(Exactness, OffsetLookupScalesByAPowerOfTwo) {
  constexpr std::array<unsigned, 8> kBase = {0x00, 0x00, 0x08, 0x0C, 0x10, 0x14, 0x18, 0x1C};
  for (unsigned offset = 1; offset <= 12; ++offset) {
    for (unsigned code = 1; code < 8; ++code) {
      const auto byte = static_cast<std::uint8_t>(kBase[code] + 8 * offset);
      EXPECT_EQ(e4m3_decode(byte), std::ldexp(e2m1_decode(code), static_cast<int>(offset) - 6));
    }
  }
}

}  // namespace
}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// decode_row of every weight format against an independent decoder that works one element at a
// time, from flat arrays and the definitions of the formats.
#include "core/quant_matrix.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/codec.h"
#include "core/error.h"

namespace quatrain {
namespace {

/// A float of `exponent_bits` and `mantissa_bits` by its definition; no special values.
double decode_bits(unsigned bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const auto exponent = static_cast<int>(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const auto fraction = static_cast<int>(bits & ((1u << mantissa_bits) - 1));
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, 1 - bias - mantissa_bits)
                    : std::ldexp(fraction + (1 << mantissa_bits), exponent - bias - mantissa_bits);
  return bits >> (exponent_bits + mantissa_bits) & 1 ? -magnitude : magnitude;
}

unsigned read_le(const std::byte* p, std::int64_t index, int width) {
  unsigned value = 0;
  for (int i = width - 1; i >= 0; --i)
    value = value << 8 | static_cast<unsigned>(p[index * width + i]);
  return value;
}

double decode_element(DType dtype, const std::byte* p, std::int64_t index) {
  switch (dtype) {
    case DType::kF32:
      return decode_bits(read_le(p, index, 4), 8, 23);
    case DType::kBF16:
      return decode_bits(read_le(p, index, 2), 8, 7);
    case DType::kF16:
      return decode_bits(read_le(p, index, 2), 5, 10);
    case DType::kF8E4M3:
      return decode_bits(read_le(p, index, 1), 4, 3);
    default:
      return std::ldexp(1.0, static_cast<int>(read_le(p, index, 1)) - 127);
  }
}

/// Element (row, col) as the product of its parts, rounded to FP32 where the engine's contract
/// says.
float slow_element(const QuantMatrix& m, std::int64_t row, std::int64_t col) {
  const bool fp4 = m.format == WeightFormat::kNvfp4 || m.format == WeightFormat::kMxfp4;
  if (m.format == WeightFormat::kDense)
    return static_cast<float>(decode_element(m.dtype, m.values, row * m.cols + col));
  double value = 0;
  if (fp4) {
    const unsigned byte = static_cast<unsigned>(m.values[(row * m.cols + col) / 2]);
    value = decode_bits(col % 2 == 0 ? byte & 15 : byte >> 4, 2, 1);
  } else {
    value = decode_element(m.dtype, m.values, row * m.cols + col);
  }
  std::int64_t scale_index = 0;
  switch (m.format) {
    case WeightFormat::kNvfp4:
      scale_index = (row * m.cols + col) / 16;
      break;
    case WeightFormat::kMxfp4:
      scale_index = (row * m.cols + col) / 32;
      break;
    case WeightFormat::kFp8Block:
      scale_index = row / 128 * ((m.cols + 127) / 128) + col / 128;
      break;
    case WeightFormat::kFp8Row:
      scale_index = row;
      break;
    default:
      break;
  }
  const double scale = decode_element(m.scale_dtype, m.scales, scale_index);
  const auto rounded_scale = static_cast<float>(scale * static_cast<double>(m.global_scale));
  return static_cast<float>(value * static_cast<double>(rounded_scale));
}

struct Case {
  WeightFormat format;
  DType dtype;
  DType scale_dtype;
  std::int64_t rows;
  std::int64_t cols;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << name_of(c.format) << " " << name_of(c.dtype) << " scales " << name_of(c.scale_dtype)
       << " " << c.rows << "x" << c.cols;
}

std::vector<Case> cases() {
  std::vector<Case> list;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16})
    for (const std::int64_t cols : {1, 7, 129})
      list.push_back({WeightFormat::kDense, dtype, DType::kF32, 5, cols});
  for (const std::int64_t cols : {16, 48, 208})
    list.push_back({WeightFormat::kNvfp4, DType::kU8, DType::kF8E4M3, 7, cols});
  for (const std::int64_t cols : {32, 96, 416})
    list.push_back({WeightFormat::kMxfp4, DType::kI8, DType::kF8E8M0, 7, cols});
  list.push_back({WeightFormat::kMxfp4, DType::kU8, DType::kU8, 3, 64});
  for (const DType scale : {DType::kF8E8M0, DType::kF32, DType::kBF16})
    for (const std::int64_t rows : {1, 127, 128, 129, 300})
      for (const std::int64_t cols : {1, 127, 128, 129, 257})
        list.push_back({WeightFormat::kFp8Block, DType::kF8E4M3, scale, rows, cols});
  for (const DType scale : {DType::kF32, DType::kBF16})
    for (const WeightFormat format : {WeightFormat::kFp8Row, WeightFormat::kFp8Tensor})
      list.push_back({format, DType::kF8E4M3, scale, 9, 131});
  return list;
}

/// Random bytes that are finite in `dtype`; scales are kept near one so that products stay finite.
std::vector<std::byte> random_elements(DType dtype, std::int64_t count, std::mt19937& random,
                                       bool scale) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(count * bytes_of(dtype)));
  for (std::int64_t i = 0; i < count; ++i) {
    auto bits = static_cast<std::uint32_t>(random());
    const float x = std::ldexp(static_cast<float>(random() % 65536) / 65536.0f - (scale ? 0 : 0.5f),
                               static_cast<int>(random() % 21) - 10);
    switch (dtype) {
      case DType::kF32:
        bits = bits_from_float(x);
        break;
      case DType::kBF16:
        bits = bf16_encode(x);
        break;
      case DType::kF16:
        bits = f16_encode(x);
        break;
      case DType::kF8E4M3:
        bits = bits % 127 | (scale ? 0 : bits >> 8 & 0x80);
        break;
      case DType::kF8E8M0:
        bits = 97 + bits % 60;
        break;
      case DType::kU8:
        bits = scale ? 97 + bits % 60 : bits;
        break;
      default:
        break;
    }
    std::memcpy(bytes.data() + i * bytes_of(dtype), &bits,
                static_cast<std::size_t>(bytes_of(dtype)));
  }
  return bytes;
}

class DecodeRow : public testing::TestWithParam<Case> {};

TEST_P(DecodeRow, MatchesTheDefinition) {
  const Case& c = GetParam();
  std::mt19937 random(static_cast<std::uint32_t>(c.rows * 1000 + c.cols));
  QuantMatrix m{.name = "w", .format = c.format, .rows = c.rows, .cols = c.cols, .dtype = c.dtype};
  m.scale_dtype = c.scale_dtype;
  if (c.format == WeightFormat::kNvfp4) m.global_scale = 0.0123f;
  const std::int64_t stored = m.rows * m.row_bytes() / bytes_of(c.dtype);
  const std::vector<std::byte> values = random_elements(c.dtype, stored, random, false);
  const std::vector<std::byte> scales =
      random_elements(c.scale_dtype, m.scale_count(), random, true);
  m.values = values.data();
  m.scales = scales.data();
  ASSERT_EQ(m.bytes(), static_cast<std::int64_t>(values.size() + scales.size()));

  constexpr float kCanary = -12345.0f;
  for (std::int64_t row = 0; row < m.rows; ++row) {
    std::vector<float> out(static_cast<std::size_t>(m.cols) + 1, kCanary);
    decode_row(m, row, out.data());
    for (std::int64_t col = 0; col < m.cols; ++col)
      ASSERT_EQ(bits_from_float(out[static_cast<std::size_t>(col)]),
                bits_from_float(slow_element(m, row, col)))
          << row << ", " << col;
    ASSERT_EQ(out.back(), kCanary) << "wrote past the row";
  }
}

INSTANTIATE_TEST_SUITE_P(AllFormats, DecodeRow, testing::ValuesIn(cases()));

TEST(QuantMatrix, SizesOfEveryFormat) {
  const auto count = [](WeightFormat format, std::int64_t rows, std::int64_t cols) {
    return QuantMatrix{.name = "w", .format = format, .rows = rows, .cols = cols}.scale_count();
  };
  EXPECT_EQ(count(WeightFormat::kDense, 10, 64), 0);
  EXPECT_EQ(count(WeightFormat::kNvfp4, 10, 64), 40);
  EXPECT_EQ(count(WeightFormat::kMxfp4, 10, 64), 20);
  EXPECT_EQ(count(WeightFormat::kFp8Block, 129, 257), 6);
  EXPECT_EQ(count(WeightFormat::kFp8Row, 10, 64), 10);
  EXPECT_EQ(count(WeightFormat::kFp8Tensor, 10, 64), 1);
}

TEST(QuantMatrix, NegativeZeroCodesAreZeros) {
  const std::vector<std::byte> values(8, std::byte{0x88});
  const std::vector<std::byte> scales(1, std::byte{0x38});
  const QuantMatrix m{.name = "w",
                      .format = WeightFormat::kNvfp4,
                      .rows = 1,
                      .cols = 16,
                      .dtype = DType::kU8,
                      .values = values.data(),
                      .scale_dtype = DType::kF8E4M3,
                      .scales = scales.data()};
  std::vector<float> out(16, 1.0f);
  decode_row(m, 0, out.data());
  for (const float x : out) EXPECT_EQ(x, 0.0f);
}

TEST(QuantMatrix, NamesTheTensorWhenAScaleTypeHasNoMeaning) {
  const std::vector<std::byte> bytes(64);
  const QuantMatrix m{.name = "layers.1.attn.wkv",
                      .format = WeightFormat::kFp8Row,
                      .rows = 1,
                      .cols = 4,
                      .dtype = DType::kF8E4M3,
                      .values = bytes.data(),
                      .scale_dtype = DType::kI64,
                      .scales = bytes.data()};
  float out[4];
  try {
    decode_row(m, 0, out);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "layers.1.attn.wkv: scales of type I64 have no meaning");
  }
}

}  // namespace
}  // namespace quatrain

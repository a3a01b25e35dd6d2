// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/quantise.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/codec.h"
#include "core/error.h"

namespace quatrain {
namespace {

constexpr float kMinBlockScale = 0.001953125f;  // 2^-9, the smallest E4M3 above zero
constexpr std::uint8_t kE4M3One = 0x38;
constexpr std::int64_t kNvfp4PerMxfp4 = kMxfp4Block / kNvfp4Block;

using Row = std::vector<float>;

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

/// Decodes a row and refuses what no 4-bit format can hold.
void decode_finite(const QuantMatrix& m, std::int64_t row, Row& out) {
  out.resize(index(m.cols));
  decode_row(m, row, out.data());
  for (std::int64_t c = 0; c < m.cols; ++c)
    if (!std::isfinite(out[index(c)]))
      fail("{}: the value at row {}, column {} is {}", m.name, row, c, out[index(c)]);
}

float magnitude(const float* values, std::int64_t count) {
  float largest = 0.0f;
  for (std::int64_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(values[i]));
  return largest;
}

void need_columns(const QuantMatrix& m, WeightFormat format, std::int64_t block) {
  if (m.cols % block != 0)
    fail("{}: {} needs columns in multiples of {}, found {}", m.name, name_of(format), block,
         m.cols);
}

unsigned code_of(float value, float scale) {
  // A zero keeps no sign: decoders need not know a second zero.
  return value == 0.0f ? 0u : e2m1_encode(value / scale);
}

void pack_codes(const float* values, std::int64_t count, float scale, std::byte* out) {
  for (std::int64_t i = 0; i < count; i += 2)
    out[i / 2] =
        static_cast<std::byte>(e2m1_pack(code_of(values[i], scale), code_of(values[i + 1], scale)));
}

/// One NVFP4 block of 16 values: its codes to `out`, its scale byte returned.
std::byte nvfp4_block(const float* values, float global_scale, std::byte* out) {
  const float amax = magnitude(values, kNvfp4Block);
  if (amax == 0.0f) {
    std::fill_n(out, kNvfp4Block / 2, std::byte{0});
    return std::byte{kE4M3One};
  }
  const std::uint8_t scale =
      e4m3_encode(std::max(amax / (kE2M1Max * global_scale), kMinBlockScale));
  pack_codes(values, kNvfp4Block, e4m3_decode(scale) * global_scale, out);
  return static_cast<std::byte>(scale);
}

/// The E4M3 byte of 2^n for n in [-9, 8].
std::uint8_t e4m3_power(int n) {
  return static_cast<std::uint8_t>(n >= -6 ? (n + 7) << 3 : 1 << (n + 9));
}

bool all_zero(const std::byte* codes, std::int64_t bytes) {
  return std::all_of(codes, codes + bytes,
                     [](std::byte b) { return (b & std::byte{0x77}) == std::byte{0}; });
}

bool is_power_of_two(float x) {
  int exponent = 0;
  return std::frexp(x, &exponent) == 0.5f;
}

}  // namespace

float max_magnitude(const QuantMatrix& source) {
  Row row;
  float largest = 0.0f;
  for (std::int64_t r = 0; r < source.rows; ++r) {
    decode_finite(source, r, row);
    largest = std::max(largest, magnitude(row.data(), source.cols));
  }
  return largest;
}

float nvfp4_global_scale(float amax) {
  if (amax == 0.0f) return 1.0f;
  // A subnormal scale would lose bits in every product with a block scale.
  return std::max(amax / (kE2M1Max * kE4M3Max), std::numeric_limits<float>::min());
}

LoadedLinear quantize_nvfp4(const QuantMatrix& source, float global_scale) {
  need_columns(source, WeightFormat::kNvfp4, kNvfp4Block);
  QT_CHECK(std::isfinite(global_scale) && global_scale > 0.0f, "{}: global scale {}", source.name,
           global_scale);
  LoadedLinear out = allocate_linear(source.name, WeightFormat::kNvfp4, source.rows, source.cols,
                                     DType::kU8, DType::kF8E4M3);
  out.matrix.global_scale = global_scale;
  std::byte* codes = out.values().data();
  std::byte* scale = out.scales().data();
  Row row;
  for (std::int64_t r = 0; r < source.rows; ++r) {
    decode_finite(source, r, row);
    for (std::int64_t c = 0; c < source.cols; c += kNvfp4Block, codes += kNvfp4Block / 2)
      *scale++ = nvfp4_block(row.data() + c, global_scale, codes);
  }
  return out;
}

LoadedLinear quantize_mxfp4(const QuantMatrix& source) {
  need_columns(source, WeightFormat::kMxfp4, kMxfp4Block);
  LoadedLinear out = allocate_linear(source.name, WeightFormat::kMxfp4, source.rows, source.cols,
                                     DType::kI8, DType::kF8E8M0);
  std::byte* codes = out.values().data();
  std::byte* scale = out.scales().data();
  Row row;
  for (std::int64_t r = 0; r < source.rows; ++r) {
    decode_finite(source, r, row);
    for (std::int64_t c = 0; c < source.cols; c += kMxfp4Block, codes += kMxfp4Block / 2) {
      const float amax = magnitude(row.data() + c, kMxfp4Block);
      // At least 2^-126, so that the quotient is taken of normal numbers.
      const std::uint8_t byte =
          ue8m0_encode_up(std::max(amax / kE2M1Max, std::numeric_limits<float>::min()));
      pack_codes(row.data() + c, kMxfp4Block, ue8m0_decode(byte), codes);
      *scale++ = static_cast<std::byte>(byte);
    }
  }
  return out;
}

LoadedLinear quantize_fp8_block(const QuantMatrix& source, DType scale_dtype) {
  QT_CHECK(scale_dtype == DType::kF8E8M0 || scale_dtype == DType::kF32,
           "{}: FP8 scales of type {} are not written", source.name, name_of(scale_dtype));
  LoadedLinear out = allocate_linear(source.name, WeightFormat::kFp8Block, source.rows, source.cols,
                                     DType::kF8E4M3, scale_dtype);
  const std::int64_t columns = out.matrix.scale_columns();
  std::vector<Row> band(index(std::min(kFp8Block, source.rows)));
  std::vector<float> scales(index(columns));
  for (std::int64_t top = 0; top < source.rows; top += kFp8Block) {
    const std::int64_t height = std::min(kFp8Block, source.rows - top);
    std::fill(scales.begin(), scales.end(), std::numeric_limits<float>::min());
    for (std::int64_t r = 0; r < height; ++r) {
      decode_finite(source, top + r, band[index(r)]);
      for (std::int64_t b = 0; b < columns; ++b) {
        const std::int64_t left = b * kFp8Block, width = std::min(kFp8Block, source.cols - left);
        const float amax = magnitude(band[index(r)].data() + left, width);
        scales[index(b)] = std::max(scales[index(b)], amax / kE4M3Max);
      }
    }
    for (std::int64_t b = 0; b < columns; ++b) {
      const std::int64_t at = top / kFp8Block * columns + b;
      float& scale = scales[index(b)];
      if (scale_dtype == DType::kF8E8M0) {
        const std::uint8_t byte = ue8m0_encode_up(scale);
        out.scales()[index(at)] = static_cast<std::byte>(byte);
        scale = ue8m0_decode(byte);
      } else {
        std::memcpy(out.scales().data() + at * bytes_of(DType::kF32), &scale, sizeof(scale));
      }
    }
    std::byte* values = out.values().data() + top * source.cols;
    for (std::int64_t r = 0; r < height; ++r)
      for (std::int64_t c = 0; c < source.cols; ++c)
        *values++ = static_cast<std::byte>(
            e4m3_encode(band[index(r)][index(c)] / scales[index(c / kFp8Block)]));
  }
  return out;
}

int max_exponent(const QuantMatrix& mxfp4) {
  QT_CHECK(mxfp4.format == WeightFormat::kMxfp4, "{}: expected MXFP4", mxfp4.name);
  constexpr std::int64_t kBytes = kMxfp4Block / 2;
  int largest = -127;
  for (std::int64_t i = 0; i < mxfp4.scale_count(); ++i)
    if (!all_zero(mxfp4.values + i * kBytes, kBytes))
      largest = std::max(largest, static_cast<int>(mxfp4.scales[i]) - 127);
  return largest;
}

CastResult cast_mxfp4_to_nvfp4(const QuantMatrix& mxfp4, int k_max) {
  QT_CHECK(mxfp4.format == WeightFormat::kMxfp4, "{}: expected MXFP4", mxfp4.name);
  constexpr std::int64_t kBytes = kMxfp4Block / 2;
  constexpr int kTopExponent = 8, kBottomExponent = -9;  // of powers of two in E4M3
  // Below 2^-126 the global scale would be subnormal.
  const int m = std::max(k_max - kTopExponent, -126);
  CastResult out{.linear = allocate_linear(mxfp4.name, WeightFormat::kNvfp4, mxfp4.rows, mxfp4.cols,
                                           DType::kU8, DType::kF8E4M3),
                 .blocks = mxfp4.scale_count()};
  const float global_scale = std::ldexp(1.0f, m);
  out.linear.matrix.global_scale = global_scale;
  std::byte* codes = out.linear.values().data();
  std::byte* scales = out.linear.scales().data();
  const std::int64_t columns = mxfp4.scale_columns();
  Row row(index(mxfp4.cols));
  for (std::int64_t i = 0; i < out.blocks; ++i, codes += kBytes, scales += kNvfp4PerMxfp4) {
    std::copy_n(mxfp4.values + i * kBytes, kBytes, codes);
    const int exponent = static_cast<int>(mxfp4.scales[i]) - 127 - m;
    if (exponent >= kBottomExponent && exponent <= kTopExponent) {
      std::fill_n(scales, kNvfp4PerMxfp4, static_cast<std::byte>(e4m3_power(exponent)));
    } else if (all_zero(codes, kBytes)) {
      std::fill_n(scales, kNvfp4PerMxfp4, std::byte{kE4M3One});
    } else {
      ++out.inexact_blocks;
      decode_finite(mxfp4, i / columns, row);
      const float* values = row.data() + i % columns * kMxfp4Block;
      for (std::int64_t b = 0; b < kNvfp4PerMxfp4; ++b)
        scales[b] =
            nvfp4_block(values + b * kNvfp4Block, global_scale, codes + b * kNvfp4Block / 2);
    }
  }
  return out;
}

bool is_pow2_paired(const QuantMatrix& nvfp4) {
  if (nvfp4.format != WeightFormat::kNvfp4 || nvfp4.cols % kMxfp4Block != 0 ||
      !is_power_of_two(nvfp4.global_scale))
    return false;
  for (std::int64_t i = 0; i < nvfp4.scale_count(); i += kNvfp4PerMxfp4) {
    const auto byte = static_cast<unsigned>(nvfp4.scales[i]);
    const bool power = byte >= 8 ? (byte & 7u) == 0 : byte == 1 || byte == 2 || byte == 4;
    if (!power || nvfp4.scales[i + 1] != nvfp4.scales[i]) return false;
  }
  return true;
}

double SquaredError::relative() const {
  return reference > 0.0 ? std::sqrt(difference / reference) : 0.0;
}

SquaredError& SquaredError::operator+=(const SquaredError& other) {
  difference += other.difference;
  reference += other.reference;
  return *this;
}

SquaredError squared_error(const QuantMatrix& matrix, const QuantMatrix& reference) {
  QT_CHECK(matrix.rows == reference.rows && matrix.cols == reference.cols,
           "{}: {}x{} against {}x{}", matrix.name, matrix.rows, matrix.cols, reference.rows,
           reference.cols);
  Row a(index(matrix.cols)), b(index(matrix.cols));
  SquaredError out;
  for (std::int64_t r = 0; r < matrix.rows; ++r) {
    decode_row(matrix, r, a.data());
    decode_row(reference, r, b.data());
    for (std::size_t c = 0; c < a.size(); ++c) {
      const double x = a[c], y = b[c];
      out.difference += (x - y) * (x - y);
      out.reference += y * y;
    }
  }
  return out;
}

}  // namespace quatrain

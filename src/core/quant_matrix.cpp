// SPDX-License-Identifier: Apache-2.0
#include "core/quant_matrix.h"

#include <cstring>

#include "core/codec.h"
#include "core/error.h"

namespace quatrain {
namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

template <class T>
T load(const std::byte* base, std::int64_t i) {
  T value;
  std::memcpy(&value, base + i * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
  return value;
}

float load_scale(const QuantMatrix& m, std::int64_t i) {
  switch (m.scale_dtype) {
    case DType::kF32:
      return load<float>(m.scales, i);
    case DType::kBF16:
      return bf16_decode(load<std::uint16_t>(m.scales, i));
    case DType::kF16:
      return f16_decode(load<std::uint16_t>(m.scales, i));
    case DType::kF8E4M3:
      return e4m3_decode(load<std::uint8_t>(m.scales, i));
    case DType::kF8E8M0:
    case DType::kU8:
      return ue8m0_decode(load<std::uint8_t>(m.scales, i));
    default:
      fail("{}: scales of type {} have no meaning", m.name, name_of(m.scale_dtype));
  }
}

void decode_dense(const QuantMatrix& m, std::int64_t row, float* out) {
  const std::byte* values = m.values + row * m.row_bytes();
  switch (m.dtype) {
    case DType::kF32:
      std::memcpy(out, values, static_cast<std::size_t>(m.row_bytes()));
      return;
    case DType::kBF16:
      for (std::int64_t c = 0; c < m.cols; ++c)
        out[c] = bf16_decode(load<std::uint16_t>(values, c));
      return;
    case DType::kF16:
      for (std::int64_t c = 0; c < m.cols; ++c) out[c] = f16_decode(load<std::uint16_t>(values, c));
      return;
    default:
      fail("{}: a dense weight of type {} has no meaning", m.name, name_of(m.dtype));
  }
}

void decode_fp4(const QuantMatrix& m, std::int64_t row, std::int64_t block, float* out) {
  const std::byte* values = m.values + row * m.row_bytes();
  const std::int64_t blocks = m.cols / block;
  for (std::int64_t b = 0; b < blocks; ++b) {
    const float scale = load_scale(m, row * blocks + b) * m.global_scale;
    for (std::int64_t c = b * block; c < (b + 1) * block; c += 2) {
      const unsigned pair = static_cast<unsigned>(values[c / 2]);
      out[c] = e2m1_decode(pair & 15u) * scale;
      out[c + 1] = e2m1_decode(pair >> 4) * scale;
    }
  }
}

void decode_fp8(const QuantMatrix& m, std::int64_t row, float* out) {
  const std::byte* values = m.values + row * m.row_bytes();
  const std::int64_t width = m.format == WeightFormat::kFp8Block ? kFp8Block : m.cols;
  const std::int64_t first = m.format == WeightFormat::kFp8Block
                                 ? row / kFp8Block * ceil_div(m.cols, kFp8Block)
                             : m.format == WeightFormat::kFp8Row ? row
                                                                 : 0;
  for (std::int64_t begin = 0, i = first; begin < m.cols; begin += width, ++i) {
    const float scale = load_scale(m, i);
    for (std::int64_t c = begin; c < m.cols && c < begin + width; ++c)
      out[c] = e4m3_decode(static_cast<std::uint8_t>(values[c])) * scale;
  }
}

}  // namespace

std::string_view name_of(WeightFormat format) {
  switch (format) {
    case WeightFormat::kDense:
      return "dense";
    case WeightFormat::kNvfp4:
      return "NVFP4";
    case WeightFormat::kMxfp4:
      return "MXFP4";
    case WeightFormat::kFp8Block:
      return "FP8 128x128";
    case WeightFormat::kFp8Row:
      return "FP8 per row";
    case WeightFormat::kFp8Tensor:
      return "FP8 per tensor";
  }
  return "?";
}

std::int64_t QuantMatrix::row_bytes() const {
  const bool fp4 = format == WeightFormat::kNvfp4 || format == WeightFormat::kMxfp4;
  return fp4 ? cols / 2 : cols * bytes_of(dtype);
}

std::int64_t QuantMatrix::scale_columns() const {
  switch (format) {
    case WeightFormat::kDense:
      return 0;
    case WeightFormat::kNvfp4:
      return cols / kNvfp4Block;
    case WeightFormat::kMxfp4:
      return cols / kMxfp4Block;
    case WeightFormat::kFp8Block:
      return ceil_div(cols, kFp8Block);
    case WeightFormat::kFp8Row:
    case WeightFormat::kFp8Tensor:
      return 1;
  }
  return 0;
}

std::int64_t QuantMatrix::scale_count() const {
  switch (format) {
    case WeightFormat::kFp8Block:
      return ceil_div(rows, kFp8Block) * scale_columns();
    case WeightFormat::kFp8Tensor:
      return 1;
    default:
      return rows * scale_columns();
  }
}

std::int64_t QuantMatrix::bytes() const {
  return rows * row_bytes() + scale_count() * bytes_of(scale_dtype);
}

void decode_row(const QuantMatrix& matrix, std::int64_t row, float* out) {
  switch (matrix.format) {
    case WeightFormat::kDense:
      return decode_dense(matrix, row, out);
    case WeightFormat::kNvfp4:
      return decode_fp4(matrix, row, kNvfp4Block, out);
    case WeightFormat::kMxfp4:
      return decode_fp4(matrix, row, kMxfp4Block, out);
    default:
      return decode_fp8(matrix, row, out);
  }
}

}  // namespace quatrain

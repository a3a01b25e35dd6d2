// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/kernels/panel_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "core/codec.h"
#include "core/error.h"

namespace quatrain {
namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Where the decoders look for a row of the panel among the 32 values of a column.
std::int64_t bf16_place(std::int64_t row) { return row < 16 ? 2 * row : 2 * (row - 16) + 1; }
std::int64_t fp8_place(std::int64_t row) {
  const std::int64_t eighth = row / 8;
  constexpr std::int64_t kPlaceOf[] = {0, 2, 1, 3};
  return kPlaceOf[eighth] * 8 + row % 8;
}

bool has_nan_code(const QuantMatrix& w) {
  const auto* codes = reinterpret_cast<const std::uint8_t*>(w.values);
  return std::any_of(codes, codes + w.rows * w.cols,
                     [](std::uint8_t code) { return (code & 0x7Fu) == 0x7Fu; });
}

PanelFormat panel_format(const QuantMatrix& w) {
  switch (w.format) {
    case WeightFormat::kDense:
      return w.dtype == DType::kF32    ? PanelFormat::kF32
             : w.dtype == DType::kBF16 ? PanelFormat::kBf16
                                       : PanelFormat::kF16;
    case WeightFormat::kNvfp4:
      return PanelFormat::kNvfp4;
    case WeightFormat::kMxfp4:
      return PanelFormat::kMxfp4;
    default:
      return has_nan_code(w) ? PanelFormat::kBf16 : PanelFormat::kFp8;
  }
}

std::int64_t block_of(PanelFormat format) {
  return format == PanelFormat::kNvfp4 ? kNvfp4Block : kMxfp4Block;
}

std::int64_t bytes_per_panel(PanelFormat format, std::int64_t cols) {
  switch (format) {
    case PanelFormat::kF32:
      return cols * kPanelRows * 4;
    case PanelFormat::kF16:
    case PanelFormat::kBf16:
      return cols * kPanelRows * 2;
    case PanelFormat::kFp8:
      return (cols + 1) / 2 * 2 * kPanelRows;
    default: {
      const std::int64_t block = block_of(format);
      return ceil_div(cols, 2 * block) * 2 * (kPanelRows * block / 2 + kPanelRows);
    }
  }
}

// Rows [first, first + 32) of a matrix whose elements are of type T.
template <class T>
void pack_elements(const QuantMatrix& w, std::int64_t first, std::int64_t (*place)(std::int64_t),
                   std::byte* data) {
  const auto* values = reinterpret_cast<const T*>(w.values);
  auto* out = reinterpret_cast<T*>(data);
  for (std::int64_t r = 0; r < std::min(kPanelRows, w.rows - first); ++r)
    for (std::int64_t c = 0; c < w.cols; ++c)
      out[c * kPanelRows + place(r)] = values[(first + r) * w.cols + c];
}

void pack_fp8_as_bf16(const QuantMatrix& w, std::int64_t first, std::byte* data) {
  const auto* values = reinterpret_cast<const std::uint8_t*>(w.values);
  auto* out = reinterpret_cast<std::uint16_t*>(data);
  for (std::int64_t r = 0; r < std::min(kPanelRows, w.rows - first); ++r)
    for (std::int64_t c = 0; c < w.cols; ++c)
      out[c * kPanelRows + bf16_place(r)] =
          bf16_encode(e4m3_decode(values[(first + r) * w.cols + c]));
}

void pack_fp4(const QuantMatrix& w, std::int64_t block, std::int64_t first, std::byte* data) {
  const auto* values = reinterpret_cast<const std::uint8_t*>(w.values);
  const auto* scales = reinterpret_cast<const std::uint8_t*>(w.scales);
  auto* out = reinterpret_cast<std::uint8_t*>(data);
  const std::int64_t blocks = w.cols / block;
  const std::int64_t code_bytes = kPanelRows * block / 2;
  const std::int64_t chunk = 2 * (code_bytes + kPanelRows);
  for (std::int64_t r = 0; r < std::min(kPanelRows, w.rows - first); ++r) {
    const std::uint8_t* row = values + (first + r) * w.cols / 2;
    for (std::int64_t b = 0; b < blocks; ++b) {
      std::uint8_t* begin = out + b / 2 * chunk;
      begin[2 * code_bytes + b % 2 * kPanelRows + r] = scales[(first + r) * blocks + b];
      // Half of the block's codes belong to the first 16 rows.
      std::uint8_t* codes = begin + b % 2 * code_bytes + r / 16 * (code_bytes / 2) + r % 16 * 4;
      for (std::int64_t c = 0; c < block; c += 8)
        for (std::int64_t j = 0; j < 4; ++j) {
          const auto code = [&](std::int64_t column) {
            const std::uint8_t pair = row[(b * block + column) / 2];
            return static_cast<unsigned>(column % 2 == 0 ? pair & 15 : pair >> 4);
          };
          codes[c / 8 * 64 + j] = e2m1_pack(code(c + j), code(c + 4 + j));
        }
    }
  }
}

// Could these scales of a row make a sum over 32 columns inexact? A block's integer sum is at most
// 16 · 12 · 127 and an E4M3 significand 15, so two blocks whose exponents differ by up to 5 stay
// below 2^24 times the unit of the smaller one. MXFP4 has one scale for 32 columns; far from one,
// products would leave BF16's or FP32's range.
bool has_exact_scales(PanelFormat format, const std::uint8_t* scales, std::int64_t blocks) {
  if (format == PanelFormat::kMxfp4) {
    constexpr int kOne = 127, kMost = 64;
    return std::all_of(scales, scales + blocks,
                       [](std::uint8_t s) { return std::abs(s - kOne) <= kMost; });
  }
  const auto exponent = [](std::uint8_t s) { return std::max(s >> 3, 1); };
  for (std::int64_t b = 0; b + 1 < blocks; b += 2)
    if (scales[b] != 0 && scales[b + 1] != 0 &&
        std::abs(exponent(scales[b]) - exponent(scales[b + 1])) > 5)
      return false;
  return true;
}

float scale_at(const QuantMatrix& w, std::int64_t i) {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(w.scales);
  switch (w.scale_dtype) {
    case DType::kF32: {
      float value;
      std::memcpy(&value, bytes + 4 * i, 4);
      return value;
    }
    case DType::kBF16:
    case DType::kF16: {
      std::uint16_t half;
      std::memcpy(&half, bytes + 2 * i, 2);
      return w.scale_dtype == DType::kBF16 ? bf16_decode(half) : f16_decode(half);
    }
    case DType::kF8E4M3:
      return e4m3_decode(bytes[i]);
    case DType::kF8E8M0:
    case DType::kU8:
      return ue8m0_decode(bytes[i]);
    default:
      fail("{}: scales of type {} have no meaning", w.name, name_of(w.scale_dtype));
  }
}

// Small enough that products with E4M3 values stay far from the limits of BF16's range.
bool is_small_power_of_two(float x) {
  constexpr int kMost = 64;
  int exponent;
  return std::frexp(x, &exponent) == 0.5f && std::abs(exponent - 1) <= kMost;
}

}  // namespace

PanelMatrix::PanelMatrix(const QuantMatrix& w)
    : rows_(w.rows),
      cols_(w.cols),
      blocks_(ceil_div(w.cols, kPanelBlock)),
      format_(panel_format(w)),
      panel_bytes_(bytes_per_panel(format_, w.cols)) {}

void PanelMatrix::set_scales(const QuantMatrix& w) {
  // The decoders of E4M3 give values times 2^-8.
  const float fp8 = format_ == PanelFormat::kFp8 ? 256.0f : 1.0f;
  const auto padded_rows = static_cast<std::size_t>(panels() * kPanelRows);
  switch (w.format) {
    case WeightFormat::kDense:
      return;
    case WeightFormat::kNvfp4:
      row_scales_.assign(padded_rows, w.global_scale * 256.0f);
      return;
    case WeightFormat::kMxfp4:
      if (w.global_scale != 1.0f) row_scales_.assign(padded_rows, w.global_scale);
      return;
    case WeightFormat::kFp8Block:
      for (std::int64_t p = 0; p < panels(); ++p)
        for (std::int64_t b = 0; b < blocks_; ++b)
          block_scales_.push_back(scale_at(w, p * kPanelRows / kFp8Block * blocks_ + b) * fp8);
      exact_block_scales_ =
          std::all_of(block_scales_.begin(), block_scales_.end(), is_small_power_of_two);
      return;
    case WeightFormat::kFp8Row:
    case WeightFormat::kFp8Tensor:
      row_scales_.assign(padded_rows, 0.0f);
      for (std::int64_t r = 0; r < rows_; ++r)
        row_scales_[static_cast<std::size_t>(r)] =
            scale_at(w, w.format == WeightFormat::kFp8Row ? r : 0) * fp8;
      return;
  }
}

// Of the rows from `first` on.
bool PanelMatrix::exact_panel(const QuantMatrix& w, std::int64_t first) const {
  const std::int64_t blocks = cols_ / block_of(format_);
  const auto* scales = reinterpret_cast<const std::uint8_t*>(w.scales) + first * blocks;
  for (std::int64_t r = 0; r < std::min(kPanelRows, rows_ - first); ++r)
    if (!has_exact_scales(format_, scales + r * blocks, blocks)) return false;
  return true;
}

void PanelMatrix::pack(const QuantMatrix& w, std::byte* data, std::int64_t stride,
                       ThreadPool& pool) {
  static_assert(kPanelBlock == kFp8Block && kFp8Block % kPanelRows == 0);
  data_ = data;
  stride_ = stride;
  set_scales(w);
  if (is_4bit()) exact_chunks_.resize(static_cast<std::size_t>(panels()));
  // Threads of a node pack what they will read (CpuOps::for_each_panel), so that it lies there.
  pool.parallel_for_owners(panels(), 4, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t p = begin; p < end; ++p) {
      const std::int64_t first = p * kPanelRows;
      std::byte* out = data + p * stride;
      std::memset(out, 0, static_cast<std::size_t>(panel_bytes_));
      const auto in_order = [](std::int64_t row) { return row; };
      switch (format_) {
        case PanelFormat::kF32:
          pack_elements<std::uint32_t>(w, first, in_order, out);
          break;
        case PanelFormat::kF16:
          pack_elements<std::uint16_t>(w, first, in_order, out);
          break;
        case PanelFormat::kBf16:
          if (w.format == WeightFormat::kDense)
            pack_elements<std::uint16_t>(w, first, bf16_place, out);
          else
            pack_fp8_as_bf16(w, first, out);
          break;
        case PanelFormat::kFp8:
          pack_elements<std::uint8_t>(w, first, fp8_place, out);
          break;
        case PanelFormat::kNvfp4:
        case PanelFormat::kMxfp4:
          pack_fp4(w, block_of(format_), first, out);
          exact_chunks_[static_cast<std::size_t>(p)] = exact_panel(w, first);
          break;
      }
    }
  });
}

}  // namespace quatrain

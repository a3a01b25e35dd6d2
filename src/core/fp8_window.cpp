// SPDX-License-Identifier: Apache-2.0
#include "core/fp8_window.h"

#include <algorithm>

#include "core/codec.h"
#include "core/error.h"

namespace quatrain {
namespace {

constexpr int kNoPower = 1000;

// The exponent of an E4M3 power of two.
int e4m3_exponent(std::uint8_t byte) {
  if (byte >= 8 && byte < 0x80 && byte % 8 == 0) return byte / 8 - 7;
  return byte == 1 ? -9 : byte == 2 ? -8 : byte == 4 ? -7 : kNoPower;
}

class RowWindow {
 public:
  RowWindow(const QuantMatrix& w, std::int64_t row)
      : w_(w),
        row_(row),
        scales_(w.scales + row * w.scale_columns()),
        is_nvfp4_(w.format == WeightFormat::kNvfp4) {}

  int top() const { return is_nvfp4_ && is_plain() ? plain_top() : checked_top(); }

 private:
  int block_columns() const { return static_cast<int>(is_nvfp4_ ? kNvfp4Block : kMxfp4Block); }
  std::uint8_t byte(std::int64_t block) const { return static_cast<std::uint8_t>(scales_[block]); }
  float value(std::int64_t block) const {
    return is_nvfp4_ ? e4m3_decode(byte(block)) : ue8m0_decode(byte(block));
  }
  int exponent(std::int64_t block) const {
    return is_nvfp4_ ? e4m3_exponent(byte(block)) : byte(block) - 127;
  }
  // Has the block a value other than zero?
  bool is_live(std::int64_t block) const {
    if (is_nvfp4_ && byte(block) == 0) return false;
    const std::int64_t bytes = block_columns() / 2;
    const std::byte* codes = w_.values + row_ * w_.row_bytes() + block * bytes;
    return std::any_of(codes, codes + bytes,
                       [](std::byte pair) { return (pair & std::byte{0x77}) != std::byte{0}; });
  }

  // Nothing but normal E4M3 powers of two, in pairs and close together: no need to look at codes,
  // and what compilers make vector code of, because a model has billions of scales.
  bool is_plain() const {
    const std::int64_t pairs = w_.scale_columns() / 2;
    if (pairs * 2 != w_.scale_columns()) return false;
    unsigned wrong = 0, low = 255, high = 0;
    for (std::int64_t i = 0; i < pairs; ++i) {
      const unsigned a = byte(2 * i), b = byte(2 * i + 1);
      wrong |= (a ^ b) | (a & 7u);
      low = std::min(low, a);
      high = std::max(high, a);
    }
    return wrong == 0 && low >= 8 && high < 0x80 && (high - low) / 8 < kFp8WindowBinades;
  }
  int plain_top() const {
    const std::byte high = *std::max_element(scales_, scales_ + w_.scale_columns());
    return e4m3_exponent(static_cast<std::uint8_t>(high));
  }

  int checked_top() const {
    const std::int64_t blocks = w_.scale_columns();
    int top = -kNoPower;
    for (std::int64_t b = 0; b < blocks; ++b) {
      if (!is_live(b)) continue;
      if (exponent(b) == kNoPower)
        refuse(b, block_columns(), fmt::format("scale {}, which is no power of two", value(b)));
      if (is_nvfp4_ && b % 2 == 1 && is_live(b - 1) && byte(b) != byte(b - 1))
        refuse(b - 1, 2 * block_columns(),
               fmt::format("scales {} and {}, which differ", value(b - 1), value(b)));
      top = std::max(top, exponent(b));
    }
    if (top == -kNoPower) return 0;  // a row of zeros
    for (std::int64_t b = 0; b < blocks; ++b)
      if (is_live(b) && exponent(b) <= top - kFp8WindowBinades)
        refuse(b, block_columns(),
               fmt::format("scale 2^{} in a row that has 2^{} too, which is more than {} binades",
                           exponent(b), top, kFp8WindowBinades));
    return top;
  }

  [[noreturn]] void refuse(std::int64_t block, std::int64_t columns,
                           const std::string& found) const {
    const std::int64_t first = block * block_columns();
    fail(
        "{}: FP8 expert inputs need scales that are powers of two, the same for every 32 columns "
        "and within {} binades in a row; row {}, columns {} to {} have {}",
        w_.name, kFp8WindowBinades, row_, first, first + columns - 1, found);
  }

  const QuantMatrix& w_;
  std::int64_t row_;
  const std::byte* scales_;
  bool is_nvfp4_;
};

}  // namespace

std::vector<int> fp8_row_tops(const QuantMatrix& w) {
  if (w.format != WeightFormat::kNvfp4 && w.format != WeightFormat::kMxfp4)
    fail("{}: FP8 expert inputs need NVFP4 or MXFP4 weights, found {}", w.name, name_of(w.format));
  std::vector<int> tops;
  tops.reserve(static_cast<std::size_t>(w.rows));
  for (std::int64_t r = 0; r < w.rows; ++r) tops.push_back(RowWindow(w, r).top());
  return tops;
}

}  // namespace quatrain

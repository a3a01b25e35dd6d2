// SPDX-License-Identifier: Apache-2.0
// Which rows of 4-bit weights fit FP8: every place of the window, and every reason to refuse.
#include "core/fp8_window.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "core/codec.h"
#include "core/error.h"

namespace quatrain {
namespace {

std::uint8_t power(int exponent) { return e4m3_encode(std::ldexp(1.0f, exponent)); }

// A matrix with all codes 1 (0.5) and all scales 1.
class Weights {
 public:
  Weights(WeightFormat format, std::int64_t rows, std::int64_t cols) {
    view_ = {.name = "layers.3.ffn.experts.7.w1",
             .format = format,
             .rows = rows,
             .cols = cols,
             .dtype = DType::kU8,
             .scale_dtype = format == WeightFormat::kNvfp4 ? DType::kF8E4M3 : DType::kF8E8M0};
    codes_.assign(static_cast<std::size_t>(rows * cols / 2), std::byte{0x11});
    scales_.assign(static_cast<std::size_t>(view_.scale_count()),
                   format == WeightFormat::kNvfp4 ? std::byte{0x38} : std::byte{127});
    view_.values = codes_.data();
    view_.scales = scales_.data();
  }
  void set_scale(std::int64_t row, std::int64_t block, std::uint8_t byte) {
    scales_[static_cast<std::size_t>(row * view_.scale_columns() + block)] = std::byte{byte};
  }
  void set_pair(std::int64_t row, std::int64_t pair, std::uint8_t byte) {
    set_scale(row, 2 * pair, byte);
    set_scale(row, 2 * pair + 1, byte);
  }
  // Zeros of either sign.
  void empty_block(std::int64_t row, std::int64_t block) {
    const std::int64_t bytes = view_.row_bytes() / view_.scale_columns();
    std::fill_n(codes_.begin() + row * view_.row_bytes() + block * bytes, bytes, std::byte{0x80});
  }
  const QuantMatrix& view() const { return view_; }

 private:
  std::vector<std::byte> codes_, scales_;
  QuantMatrix view_;
};

void expect_refused(const Weights& w, std::initializer_list<const char*> parts) {
  try {
    fp8_row_tops(w.view());
    ADD_FAILURE() << "expected an Error";
  } catch (const Error& error) {
    for (const char* part : parts)
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
          << part << " is not in: " << error.what();
  }
}

TEST(Fp8Window, TopsOfCastRows) {
  Weights w(WeightFormat::kNvfp4, 3, 128);
  w.set_pair(1, 2, power(8));
  w.set_pair(1, 3, power(-6));
  for (int pair = 0; pair < 4; ++pair) w.set_pair(2, pair, power(-9));
  EXPECT_EQ(fp8_row_tops(w.view()), (std::vector<int>{0, 8, -9}));
}

TEST(Fp8Window, EveryPowerOfTwoAndNothingElseIsAScale) {
  for (int byte = 0; byte < 127; ++byte) {
    Weights w(WeightFormat::kNvfp4, 1, 32);
    w.set_pair(0, 0, static_cast<std::uint8_t>(byte));
    const double value = e4m3_decode(static_cast<std::uint8_t>(byte));
    int exponent = 0;
    if (value == 0)
      EXPECT_EQ(fp8_row_tops(w.view())[0], 0);
    else if (std::frexp(value, &exponent) == 0.5)
      EXPECT_EQ(fp8_row_tops(w.view())[0], exponent - 1) << byte;
    else
      expect_refused(w, {"layers.3.ffn.experts.7.w1", "row 0", "columns 0 to 15", "no power"});
  }
}

TEST(Fp8Window, PairsMustBeEqual) {
  Weights w(WeightFormat::kNvfp4, 2, 96);
  w.set_scale(1, 3, power(1));
  expect_refused(w, {"layers.3.ffn.experts.7.w1", "row 1", "columns 32 to 63", "1 and 2"});
  w.empty_block(1, 3);  // without a value it has no scale either
  EXPECT_EQ(fp8_row_tops(w.view()), (std::vector<int>{0, 0}));
}

TEST(Fp8Window, FifteenBinadesFit) {
  for (int top = -9; top <= 8; ++top)
    for (int low = -9; low <= top; ++low) {
      Weights w(WeightFormat::kNvfp4, 2, 64);
      w.set_pair(1, 0, power(top));
      w.set_pair(1, 1, power(low));
      if (top - low <= 14) {
        EXPECT_EQ(fp8_row_tops(w.view())[1], top);
        continue;
      }
      const std::string found = fmt::format("2^{}", low), other = fmt::format("2^{}", top);
      expect_refused(w, {"row 1", "columns 32 to 47", found.c_str(), other.c_str(), "15 binades"});
      w.empty_block(1, 2);
      w.empty_block(1, 3);
      EXPECT_EQ(fp8_row_tops(w.view())[1], top);
    }
}

TEST(Fp8Window, Mxfp4HasThemByItsFormat) {
  Weights w(WeightFormat::kMxfp4, 2, 96);
  w.set_scale(0, 1, 100);
  w.set_scale(1, 0, 100);
  w.set_scale(1, 1, 86);
  w.set_scale(1, 2, 87);
  expect_refused(w, {"row 0", "columns 32 to 63", "2^-27", "2^0"});
  w.empty_block(0, 1);
  EXPECT_EQ(fp8_row_tops(w.view()), (std::vector<int>{0, -27}));
}

TEST(Fp8Window, RowsOfZerosAndOddBlocksPass) {
  Weights w(WeightFormat::kNvfp4, 2, 48);
  for (int b = 0; b < 3; ++b) w.empty_block(0, b);
  w.set_scale(0, 2, 0x39);
  w.set_scale(1, 2, power(-3));  // the last block has no other beside it
  EXPECT_EQ(fp8_row_tops(w.view()), (std::vector<int>{0, 0}));
}

TEST(Fp8Window, OtherFormatsAreRefused) {
  const std::vector<std::byte> bytes(64);
  const QuantMatrix w{.name = "some.w2",
                      .format = WeightFormat::kFp8Row,
                      .rows = 1,
                      .cols = 32,
                      .dtype = DType::kF8E4M3,
                      .values = bytes.data(),
                      .scale_dtype = DType::kF32,
                      .scales = bytes.data()};
  try {
    fp8_row_tops(w);
    ADD_FAILURE() << "expected an Error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("some.w2"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("FP8 per row"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// Tensor views (rows, entries, columns, reshaping), their errors, element types and check macros.
#include "core/tensor.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

namespace quatrain {
namespace {

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

void expect_error(const std::function<void()>& action, const std::string& part) {
  const std::string message = message_of(action);
  EXPECT_NE(message.find(part), std::string::npos) << message;
}

class TensorView : public testing::Test {
 protected:
  TensorView() : data_(2 * 3 * 4 * 5) { std::iota(data_.begin(), data_.end(), 0.0f); }
  std::vector<float> data_;
  Tensor t_{data_.data(), DType::kF32, {2, 3, 4, 5}};
};

TEST_F(TensorView, Basics) {
  EXPECT_EQ(t_.rank(), 4);
  EXPECT_EQ(t_.elements(), 120);
  EXPECT_EQ(t_.bytes(), 480);
  EXPECT_EQ(t_.stride(0), 60);
  EXPECT_EQ(t_.stride(3), 1);
  EXPECT_TRUE(t_.contiguous());
  EXPECT_TRUE(static_cast<bool>(t_));
  EXPECT_EQ(t_.describe(), "F32 [2, 3, 4, 5]");
  EXPECT_FALSE(static_cast<bool>(Tensor()));
  EXPECT_EQ(Tensor().elements(), 0);
}

TEST_F(TensorView, IndexingWalksEveryElement) {
  float expected = 0;
  for (std::int64_t i = 0; i < 2; ++i)
    for (std::int64_t j = 0; j < 3; ++j)
      for (std::int64_t k = 0; k < 4; ++k) {
        const Tensor row = t_[i][j][k];
        ASSERT_EQ(row.rank(), 1);
        ASSERT_EQ(row.dim(0), 5);
        for (std::int64_t l = 0; l < 5; ++l) ASSERT_EQ(row.f32()[l], expected++);
      }
}

TEST_F(TensorView, RowsKeepTheRank) {
  const Tensor second = t_.rows(1, 1);
  EXPECT_EQ(second.describe(), "F32 [1, 3, 4, 5]");
  EXPECT_EQ(second.f32()[0], 60.0f);
  EXPECT_EQ(t_.rows(2, 0).elements(), 0) << "an empty range at the end is fine";
  EXPECT_EQ(t_[1].rows(1, 2)[1].describe(), "F32 [4, 5]");
  EXPECT_EQ(t_[1].rows(1, 2)[1].f32()[0], 60.0f + 40.0f);
}

TEST_F(TensorView, ColumnsAreStrided) {
  const Tensor matrix(data_.data(), DType::kF32, {24, 5});
  const Tensor middle = matrix.columns(1, 3);
  EXPECT_FALSE(middle.contiguous());
  EXPECT_EQ(middle.describe(), "F32 [24, 3]");
  for (std::int64_t i = 0; i < 24; ++i)
    for (std::int64_t j = 0; j < 3; ++j)
      ASSERT_EQ(middle[i].f32()[j], static_cast<float>(5 * i + j + 1));
  EXPECT_TRUE(middle.rows(3, 1).contiguous()) << "one row has no gaps";
  EXPECT_EQ(middle.rows(3, 2).columns(1, 1)[1].f32()[0], 22.0f);
  expect_error([&] { middle.reshaped({72}); }, "reshaping a strided view of F32 [24, 3]");
}

TEST_F(TensorView, ReshapeKeepsTheElements) {
  const Tensor flat = t_.reshaped({6, 20});
  EXPECT_EQ(flat[5].f32()[19], 119.0f);
  expect_error([&] { t_.reshaped({7, 17}); }, "reshaping F32 [2, 3, 4, 5] to F32 [7, 17]");
  expect_error([&] { t_.reshaped({1, 1, 1, 1, 120}); }, "rank 5 is outside 1..4");
  expect_error([&] { t_.reshaped({-1, 120}); }, "extent -1 is negative");
}

TEST_F(TensorView, RangesAreChecked) {
  constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();
  expect_error([&] { t_.rows(1, 2); }, "rows 1 + 2 of F32 [2, 3, 4, 5]");
  expect_error([&] { t_.rows(-1, 1); }, "rows -1 + 1");
  expect_error([&] { t_.rows(0, -1); }, "rows 0 + -1");
  expect_error([&] { t_.rows(1, kHuge); }, "rows 1 + 9223372036854775807");
  expect_error([&] { t_.rows(kHuge, kHuge); }, "of F32 [2, 3, 4, 5]");
  expect_error([&] { t_[2]; }, "rows 2 + 1");
  expect_error([&] { t_[0][0][0][0]; }, "indexing F32 [5] leaves no dimension");
  expect_error([&] { t_.columns(3, 3); }, "columns 3 + 3 of F32 [2, 3, 4, 5]");
  expect_error([&] { t_.columns(kHuge, kHuge); }, "columns");
  expect_error([&] { Tensor().columns(0, 0); }, "no columns");
}

TEST_F(TensorView, SizesThatOverflowAreRefused) {
  constexpr std::int64_t kBig = std::int64_t{1} << 40;
  expect_error([] { Tensor(nullptr, DType::kF32, {kBig, kBig}); }, "is too large");
  expect_error([] { Tensor(nullptr, DType::kF32, {kBig, kBig, kBig, kBig}); }, "is too large");
  expect_error([] { Tensor(nullptr, DType::kF32, {std::int64_t{1} << 59}); }, "is too large");
  EXPECT_EQ(Tensor(nullptr, DType::kF32, {kBig, 0, kBig}).elements(), 0);
}

TEST_F(TensorView, TypesAreChecked) {
  EXPECT_EQ(t_.as<float>(), data_.data());
  expect_error([&] { (void)t_.as<std::uint16_t>(); }, "tensor of F32 read as elements of 2 bytes");
  expect_error([&] { (void)t_.i32(); }, "expected an I32 tensor, found F32");
  const Tensor ids(data_.data(), DType::kI32, {4});
  EXPECT_EQ(static_cast<void*>(ids.i32()), static_cast<void*>(data_.data()));
  expect_error([&] { (void)ids.f32(); }, "expected an F32 tensor, found I32");
}

TEST(DTypes, NamesAndSizes) {
  const std::vector<std::pair<DType, int>> sizes = {
      {DType::kF32, 4},    {DType::kF16, 2}, {DType::kBF16, 2}, {DType::kF8E4M3, 1},
      {DType::kF8E8M0, 1}, {DType::kU8, 1},  {DType::kI8, 1},   {DType::kI16, 2},
      {DType::kI32, 4},    {DType::kI64, 8}, {DType::kBool, 1}};
  for (const auto& [dtype, bytes] : sizes) {
    EXPECT_EQ(bytes_of(dtype), bytes) << name_of(dtype);
    EXPECT_EQ(dtype_from_name(name_of(dtype)), dtype);
  }
  EXPECT_EQ(name_of(DType::kF8E4M3), "F8_E4M3");
  EXPECT_EQ(name_of(DType::kF8E8M0), "F8_E8M0");
  for (const char* name : {"", "f32", "F64", "F8_E5M2", "F32 "})
    EXPECT_EQ(dtype_from_name(name), std::nullopt) << name;
}

TEST(Checks, CarryValuesExpressionAndPlace) {
  const int found = 3;
  const std::string equal = message_of([&] { QT_CHECK_EQ(found, 4, "layers"); });
  EXPECT_EQ(equal.find("layers: expected 4, found 3 [found == 4 failed at tensor_test.cpp:"), 0u)
      << equal;
  const std::string plain = message_of([&] { QT_CHECK(found > 5, "found {}", found); });
  EXPECT_EQ(plain.find("found 3 [found > 5 failed at tensor_test.cpp:"), 0u) << plain;
  EXPECT_EQ(message_of([] { fail("{}: bad", "config.json"); }), "config.json: bad");
  QT_CHECK(found == 3, "never formatted");
  QT_CHECK_EQ(found, 3, "never formatted");
}

}  // namespace
}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
#include "backends/cuda/launch/divisor.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <random>

namespace quatrain::testing {
namespace {

constexpr int kMost = std::numeric_limits<int>::max();

void check(int value, int n) {
  const cuda::Divisor divisor(value);
  ASSERT_EQ(divisor.value(), value);
  ASSERT_EQ(divisor.quotient(n), n / value) << n << " / " << value;
  ASSERT_EQ(divisor.remainder(n), n % value) << n << " % " << value;
}

TEST(Divisor, DividesByOneUnlessToldOtherwise) {
  EXPECT_EQ(cuda::Divisor().quotient(kMost), kMost);
}

TEST(Divisor, IsExactAroundMultiplesOfAnyNumber) {
  for (int value = 1; value <= 700; ++value)
    for (const int times : {0, 1, 2, 1000, kMost / value})
      for (const int off : {-1, 0, 1}) {
        const std::int64_t n = std::int64_t{times} * value + off;
        if (n >= 0 && n <= kMost) check(value, static_cast<int>(n));
      }
}

TEST(Divisor, IsExactForRandomNumbers) {
  std::mt19937 random(11);
  const auto below_most = [&] { return static_cast<int>(random() % unsigned{kMost}); };
  for (int i = 0; i < 20000; ++i) {
    const int value = 1 + below_most() / (1 << i % 31);
    check(value, below_most());
    check(value, kMost);
  }
  check(kMost, kMost);
  check(1 << 30, kMost);
}

}  // namespace
}  // namespace quatrain::testing

// SPDX-License-Identifier: Apache-2.0
// Packed cache rows: values on the grid survive without loss, whatever their magnitude.
#include "core/packed_row.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace quatrain {
namespace {

using Pack = void (*)(const float*, int, std::uint8_t*);
using Unpack = void (*)(const std::uint8_t*, int, float*);

std::vector<float> round_trip(const std::vector<float>& x, Pack pack, Unpack unpack, int bytes) {
  const int n = static_cast<int>(x.size());
  // One byte more, which must not be touched.
  std::vector<std::uint8_t> row(static_cast<std::size_t>(bytes) + 1, 0xA5);
  pack(x.data(), n, row.data());
  EXPECT_EQ(row.back(), 0xA5);
  std::vector<float> out(x.size());
  unpack(row.data(), n, out.data());
  return out;
}

// Rows whose blocks differ by many powers of two, with zeros and negative zeros.
std::vector<float> wild_row(int n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < x.size(); ++i) {
    const int exponent = static_cast<int>((seed + i / 32) * 7 % 60) - 30;
    x[i] = random() % 9 == 0 ? -0.0f : std::ldexp(normal(random), exponent);
  }
  return x;
}

void expect_same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i)
    ASSERT_EQ(bits_from_float(a[i]), bits_from_float(b[i])) << "column " << i << ": " << a[i];
}

TEST(PackedRow, SizesAreThoseOfTheFormat) {
  EXPECT_EQ(PackedLatent(512).bytes, 584);
  EXPECT_EQ(PackedLatent(512).codes, 448);
  EXPECT_EQ(PackedLatent(128).bytes, 200);
  EXPECT_EQ(PackedIndexKey(128).bytes, 68);
  EXPECT_EQ(PackedIndexKey(64).bytes, 36);
}

TEST(PackedRow, LatentsOnTheGridAreKept) {
  for (const int n : {512, 128, 320, 96}) {
    for (unsigned seed = 0; seed < 200; ++seed) {
      const int bytes = PackedLatent(n).bytes;
      const auto on_grid = round_trip(wild_row(n, seed), pack_latent, unpack_latent, bytes);
      expect_same_bits(round_trip(on_grid, pack_latent, unpack_latent, bytes), on_grid);
    }
  }
}

TEST(PackedRow, IndexKeysOnTheGridAreKept) {
  for (const int n : {128, 64, 96}) {
    for (unsigned seed = 0; seed < 200; ++seed) {
      const int bytes = PackedIndexKey(n).bytes;
      const auto on_grid = round_trip(wild_row(n, seed), pack_index_key, unpack_index_key, bytes);
      expect_same_bits(round_trip(on_grid, pack_index_key, unpack_index_key, bytes), on_grid);
    }
  }
}

// A largest value just above half the range rounds down to half of it, and the scale found again is
// half as large.
TEST(PackedRow, ScalesThatAreHalvedLoseNothing) {
  std::vector<float> latent(128, 0.0f);
  for (int i = 0; i < 64; ++i) latent[static_cast<std::size_t>(i)] = std::ldexp(225.0f, -i);
  const auto once = round_trip(latent, pack_latent, unpack_latent, 200);
  EXPECT_EQ(once[0], 224.0f);
  expect_same_bits(round_trip(once, pack_latent, unpack_latent, 200), once);

  std::vector<float> key(32, 0.0f);
  for (std::size_t i = 0; i < 32; ++i) key[i] = 3.125f - 0.2f * static_cast<float>(i);
  const int bytes = PackedIndexKey(32).bytes;
  const auto on_grid = round_trip(key, pack_index_key, unpack_index_key, bytes);
  EXPECT_EQ(on_grid[0], 3.0f);
  expect_same_bits(round_trip(on_grid, pack_index_key, unpack_index_key, bytes), on_grid);
}

TEST(PackedRow, BytesAreWhereTheFormatSays) {
  std::vector<float> x(512, 0.0f);
  x[1] = 1.0f;       // block 0: scale 2^-8, so code 448·… = 256
  x[447] = -448.0f;  // block 6: scale 1
  x[448] = 1.5f;
  x[511] = -2.0f;
  std::vector<std::uint8_t> row(584, 0xEE);
  pack_latent(x.data(), 512, row.data());
  EXPECT_EQ(row[1], e4m3_encode(256.0f));
  EXPECT_EQ(row[447], 0xFE);
  EXPECT_EQ(row[448] | row[449] << 8, 0x3FC0);
  EXPECT_EQ(row[574] | row[575] << 8, 0xC000);
  EXPECT_EQ(row[576], 127 - 8);
  EXPECT_EQ(row[577], 127 - 22);  // an empty block has the smallest scale
  EXPECT_EQ(row[582], 127);
  EXPECT_EQ(row[583], 0);

  std::vector<float> key(128, 0.0f);
  key[0] = 0.5f;
  key[1] = -6.0f;
  key[127] = 24.0f;
  std::vector<std::uint8_t> packed(68, 0xEE);
  pack_index_key(key.data(), 128, packed.data());
  EXPECT_EQ(packed[0], 0xF1);
  EXPECT_EQ(packed[63], 0x70);
  EXPECT_EQ(packed[64], 127);
  EXPECT_EQ(packed[67], 129);
}

TEST(PackedRow, PoisonIsReadAsNaN) {
  const std::vector<std::uint8_t> ones(584, 0xFF);
  std::vector<float> x(512);
  unpack_latent(ones.data(), 512, x.data());
  for (const float value : x) EXPECT_TRUE(std::isnan(value));
  unpack_index_key(ones.data(), 128, x.data());
  for (int i = 0; i < 128; ++i) EXPECT_TRUE(std::isnan(x[static_cast<std::size_t>(i)]));
}

}  // namespace
}  // namespace quatrain

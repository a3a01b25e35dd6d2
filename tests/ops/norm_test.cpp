// SPDX-License-Identifier: Apache-2.0
// rms_norm, rope, round_to_grid against plain double precision and the golden values of 2.0.
#include "core/codec.h"
#include "support/op_harness.h"
#include "support/reference_math.h"

namespace quatrain::testing {
namespace {

TEST(Norm, RmsNormOfOddSizes) {
  for (const std::int64_t tokens : {1, 3, 17}) {
    const std::int64_t heads = 3, n = 37;
    for (const bool weighted : {false, true}) {
      const std::vector<float> x = Random(1).normals(tokens * heads * n, 3);
      const std::vector<float> weight = Random(2).normals(n);
      const auto run = [&](Ops& ops, std::int64_t begin, std::int64_t count) {
        const Floats io(ops, {count, heads, n}, rows_of(x, begin, count, heads * n));
        const Floats w(ops, {n}, weight);
        const Tensor none;
        in_step([&] {
          ops.rms_norm({.x = io, .weight = weighted ? w.tensor() : none, .eps = 0.25f, .out = io});
        });
        return io.values();
      };
      std::vector<double> expected;
      for (std::int64_t r = 0; r < tokens * heads; ++r)
        for (const double y :
             reference::rms_norm(reference::to_double(rows_of(x, r, 1, n)),
                                 weighted ? reference::to_double(weight) : reference::Row(), 0.25))
          expected.push_back(y);
      CpuOps ops(2);
      expect_close(run(ops, 0, tokens), expected, 1e-5);
      if (tokens == 3) expect_invariant(tokens, run);
    }
  }
}

TEST(Norm, RmsNormOfZerosIsZero) {
  CpuOps ops(1);
  const Floats x(ops, {1, 8}, std::vector<float>(8, 0)), out(ops, {1, 8});
  in_step([&] { ops.rms_norm({.x = x, .weight = {}, .eps = 1e-6f, .out = out}); });
  EXPECT_EQ(out.values(), std::vector<float>(8, 0));
}

TEST(Norm, RopeTurnsTheTrailingInterleavedPairs) {
  for (const std::int64_t tokens : {1, 3, 17}) {
    const std::int64_t heads = 5, n = 23, pairs = 4;
    const std::vector<float> x = Random(1).normals(tokens * heads * n);
    std::vector<std::int32_t> positions = Random(2).integers(tokens, 1000000);
    positions[0] = 0;
    const std::vector<float> inv_freq = {1.0f, 0.31f, 0.017f, 1e-6f};
    for (const bool inverse : {false, true}) {
      const auto run = [&](Ops& ops, std::int64_t begin, std::int64_t count) {
        const Floats io(ops, {count, heads, n}, rows_of(x, begin, count, heads * n));
        const Ints p(ops, {count}, rows_of(positions, begin, count, 1));
        const Floats f(ops, {pairs}, inv_freq);
        in_step([&] { ops.rope({.x = io, .positions = p, .inv_freq = f, .inverse = inverse}); });
        return io.values();
      };
      std::vector<double> expected;
      for (std::int64_t r = 0; r < tokens * heads; ++r) {
        reference::Row row = reference::to_double(rows_of(x, r, 1, n));
        reference::rotate(row, inv_freq, positions[static_cast<std::size_t>(r / heads)],
                          inverse ? -1 : 1);
        expected.insert(expected.end(), row.begin(), row.end());
      }
      CpuOps ops(2);
      expect_close(run(ops, 0, tokens), expected, 1e-6);
      if (tokens == 3) expect_invariant(tokens, run);
    }
  }
}

TEST(Norm, RopeThereAndBackIsTheIdentity) {
  const std::vector<float> x = Random(1).normals(32);
  CpuOps ops(1);
  const Floats io(ops, {1, 32}, x), f(ops, {8}, Random(2).normals(8));
  const Ints p(ops, {1}, {987654});
  in_step([&] { ops.rope({.x = io, .positions = p, .inv_freq = f}); });
  in_step([&] { ops.rope({.x = io, .positions = p, .inv_freq = f, .inverse = true}); });
  expect_close(io.values(), reference::to_double(x), 1e-6);
}

std::vector<float> on_grid(std::vector<float> x, CacheGrid grid, std::int64_t rope_dim,
                           std::int64_t width) {
  CpuOps ops(2);
  const auto rows = static_cast<std::int64_t>(x.size()) / width;
  const Floats io(ops, {rows, width}, x);
  in_step([&] { ops.round_to_grid({.x = io, .grid = grid, .rope_dim = rope_dim}); });
  return io.values();
}

TEST(Norm, LatentGridGoldenValues) {
  std::vector<float> x(65, 0);
  const float in[] = {0.1f, -0.37f, 1, 2.5f};
  std::copy_n(in, 4, x.begin());
  x[64] = 0.1f;  // the rotary tail stays as it is
  const std::vector<float> y = on_grid(x, CacheGrid::kLatent, 1, 65);
  EXPECT_EQ(y[0], 0.1015625f);
  EXPECT_EQ(y[1], -0.375f);
  EXPECT_EQ(y[2], 1);
  EXPECT_EQ(y[3], 2.5f);
  EXPECT_EQ(y[4], 0);
  EXPECT_EQ(y[64], 0.1f);
}

// The power of two shows in what 2^k·2^-9 · 0.75 rounds to: it is half an E4M3 step.
TEST(Norm, LatentGridScaleExponents) {
  const struct {
    float amax;
    int exponent;
  } cases[] = {{1e-5f, -22}, {0.5f, -9}, {1, -8}, {3.5f, -7}, {448, 0}, {449, 1}};
  for (const auto& c : cases) {
    std::vector<float> x(64, 0);
    x[0] = c.amax;
    const float step = std::ldexp(1.0f, c.exponent - 9);  // the smallest value of the grid
    x[1] = step;
    x[2] = 0.5f * step;  // a tie: to even, zero
    x[3] = 1.5f * step;  // a tie: to two steps
    const std::vector<float> y = on_grid(x, CacheGrid::kLatent, 0, 64);
    EXPECT_EQ(y[1], step) << c.amax;
    EXPECT_EQ(y[2], 0) << c.amax;
    EXPECT_EQ(y[3], 2 * step) << c.amax;
  }
}

TEST(Norm, LatentGridOfRandomRows) {
  const std::int64_t tokens = 17, heads = 2, n = 150, rope = 10;  // blocks of 64, 64 and 12
  std::vector<float> x = Random(1).normals(tokens * heads * n);
  for (std::size_t i = 0; i < x.size(); ++i)
    x[i] = std::ldexp(x[i], static_cast<int>(i / 64 % 40) - 20);
  const auto run = [&](Ops& ops, std::int64_t begin, std::int64_t count) {
    const Floats io(ops, {count, heads, n}, rows_of(x, begin, count, heads * n));
    in_step([&] { ops.round_to_grid({.x = io, .grid = CacheGrid::kLatent, .rope_dim = rope}); });
    return io.values();
  };
  CpuOps ops(2);
  const std::vector<float> found = run(ops, 0, tokens);
  for (std::int64_t r = 0; r < tokens * heads; ++r) {
    reference::Row row = reference::to_double(rows_of(x, r, 1, n));
    reference::latent_grid(row, rope);
    for (std::int64_t d = 0; d < n; ++d)
      ASSERT_EQ(found[static_cast<std::size_t>(r * n + d)], row[static_cast<std::size_t>(d)])
          << r << " " << d;
  }
  expect_invariant(tokens, run);
}

// n^-½ is a power of two and all sums are exact, so that the grid must be met exactly.
TEST(Norm, IndexGridIsHadamardThenFp4) {
  for (const std::int64_t n : {16, 64}) {
    const std::int64_t tokens = 17;
    std::vector<float> x;
    for (const std::int32_t v : Random(1).integers(tokens * n, 201))
      x.push_back(static_cast<float>(v - 100));
    const auto run = [&](Ops& ops, std::int64_t begin, std::int64_t count) {
      const Floats io(ops, {count, n}, rows_of(x, begin, count, n));
      in_step([&] { ops.round_to_grid({.x = io, .grid = CacheGrid::kIndex}); });
      return io.values();
    };
    CpuOps ops(2);
    const std::vector<float> found = run(ops, 0, tokens);
    for (std::int64_t r = 0; r < tokens; ++r) {
      reference::Row row = reference::to_double(rows_of(x, r, 1, n));
      reference::index_grid(row);
      for (std::int64_t d = 0; d < n; ++d)
        ASSERT_EQ(found[static_cast<std::size_t>(r * n + d)], row[static_cast<std::size_t>(d)])
            << r << " " << d;
    }
    expect_invariant(tokens, run);
  }
}

// The published width 128, whose n^-½ is not exact: all but values at a tie must agree.
TEST(Norm, IndexGridOfPublishedWidth) {
  const std::int64_t tokens = 32, n = 128;
  const std::vector<float> x = Random(3).normals(tokens * n);
  const std::vector<float> found = on_grid(x, CacheGrid::kIndex, 0, n);
  int different = 0;
  for (std::int64_t r = 0; r < tokens; ++r) {
    reference::Row row = reference::to_double(rows_of(x, r, 1, n));
    reference::index_grid(row);
    for (std::int64_t d = 0; d < n; ++d)
      different += found[static_cast<std::size_t>(r * n + d)] != row[static_cast<std::size_t>(d)];
  }
  EXPECT_LE(different, 2);
}

TEST(Norm, GridOfZerosIsZeros) {
  EXPECT_EQ(on_grid(std::vector<float>(64, 0), CacheGrid::kIndex, 0, 64),
            std::vector<float>(64, 0));
  EXPECT_EQ(on_grid(std::vector<float>(64, 0), CacheGrid::kLatent, 0, 64),
            std::vector<float>(64, 0));
}

}  // namespace
}  // namespace quatrain::testing

// SPDX-License-Identifier: Apache-2.0
// linear, grouped_linear, embed, gather_rows, swiglu, add_to_streams against plain double
// precision.
#include "support/random_matrix.h"
#include "support/reference_math.h"

namespace quatrain::testing {
namespace {

class EveryFormat : public ::testing::TestWithParam<MatrixKind> {
 protected:
  // Columns that suit the format but no vector width, and span a block boundary of 128.
  std::int64_t columns() const {
    const std::int64_t multiple = column_multiple(GetParam().format);
    return multiple == 1 ? 203 : 13 * multiple;
  }
};

TEST_P(EveryFormat, LinearIsTheProductWithTheDecodedMatrix) {
  for (const std::int64_t tokens : {1, 3, 17}) {
    const std::int64_t rows = 131, cols = columns();
    RandomMatrix matrix(GetParam(), rows, cols, 1);
    const std::vector<float> x = Random(2).normals(tokens * cols);
    CpuOps ops(2);
    const auto w = ops.pack_linear(matrix.view());
    EXPECT_EQ(w->rows, rows);
    EXPECT_EQ(w->cols, cols);
    EXPECT_EQ(w->bytes, matrix.view().bytes());
    ops.reserve(roomy_limits());
    const Floats in(ops, {tokens, cols}, x), out(ops, {tokens, rows});
    in_step([&] { ops.linear({.x = in, .w = w.get(), .out = out}); });
    std::vector<double> expected;
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t r = 0; r < rows; ++r)
        expected.push_back(
            reference::inner(reference::to_double(rows_of(x, t, 1, cols)), matrix.row(r)));
    expect_close(out.values(), expected, 1e-4);
  }
}

TEST_P(EveryFormat, LinearKeepsItsBitsForAnyThreadsAndRows) {
  const std::int64_t rows = 67, cols = columns();
  RandomMatrix matrix(GetParam(), rows, cols, 3);
  const std::vector<float> x = Random(4).normals(5 * cols);
  expect_invariant(5, [&](Ops& ops, std::int64_t begin, std::int64_t count) {
    const auto w = ops.pack_linear(matrix.view());
    ops.reserve(roomy_limits());
    const Floats in(ops, {count, cols}, rows_of(x, begin, count, cols)), out(ops, {count, rows});
    in_step([&] { ops.linear({.x = in, .w = w.get(), .out = out}); });
    return out.values();
  });
}

TEST_P(EveryFormat, GroupedLinearGivesEachGroupItsOwnRows) {
  for (const std::int64_t tokens : {1, 3, 17}) {
    const std::int64_t groups = 3, per_group = 7, cols = columns();
    RandomMatrix matrix(GetParam(), groups * per_group, cols, 5);
    const std::vector<float> x = Random(6).normals(tokens * groups * cols);
    CpuOps ops(2);
    const auto w = ops.pack_linear(matrix.view());
    ops.reserve(roomy_limits());
    const Floats in(ops, {tokens, groups, cols}, x), out(ops, {tokens, groups, per_group});
    in_step([&] { ops.grouped_linear({.x = in, .w = w.get(), .out = out}); });
    std::vector<double> expected;
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t g = 0; g < groups; ++g)
        for (std::int64_t r = 0; r < per_group; ++r)
          expected.push_back(
              reference::inner(reference::to_double(rows_of(x, t * groups + g, 1, cols)),
                               matrix.row(g * per_group + r)));
    expect_close(out.values(), expected, 1e-4);
  }
}

TEST_P(EveryFormat, GroupedLinearKeepsItsBitsForAnyThreadsAndRows) {
  const std::int64_t groups = 2, cols = columns();
  RandomMatrix matrix(GetParam(), groups * 19, cols, 5);
  const std::vector<float> x = Random(6).normals(4 * groups * cols);
  expect_invariant(4, [&](Ops& ops, std::int64_t begin, std::int64_t count) {
    const auto w = ops.pack_linear(matrix.view());
    ops.reserve(roomy_limits());
    const Floats in(ops, {count, groups, cols}, rows_of(x, begin, count, groups * cols));
    const Floats out(ops, {count, groups, 19});
    in_step([&] { ops.grouped_linear({.x = in, .w = w.get(), .out = out}); });
    return out.values();
  });
}

INSTANTIATE_TEST_SUITE_P(Dense, EveryFormat, ::testing::ValuesIn(kMatrixKinds),
                         [](const auto& test) { return std::string(test.param.name); });

// A model computes padded rows like others; their values must stay in their rows.
TEST(Dense, LinearKeepsNaNInItsRow) {
  RandomMatrix matrix(kMatrixKinds[0], 5, 33, 1);
  std::vector<float> x = Random(2).normals(3 * 33);
  std::fill_n(x.begin() + 33, 33, kNaN);
  CpuOps ops(2);
  const auto w = ops.pack_linear(matrix.view());
  ops.reserve(roomy_limits());
  const Floats in(ops, {3, 33}, x), out(ops, {3, 5});
  in_step([&] { ops.linear({.x = in, .w = w.get(), .out = out}); });
  const std::vector<float> y = out.values();
  for (int i = 0; i < 15; ++i)
    EXPECT_EQ(std::isnan(y[static_cast<std::size_t>(i)]), i / 5 == 1) << i;
}

TEST(Dense, EmbedCopiesTheRowToEveryStream) {
  const std::int64_t vocab = 11, width = 37, hc = 3;
  const std::vector<float> table = Random(1).normals(vocab * width);
  for (const std::int64_t tokens : {1, 3, 17}) {
    const std::vector<std::int32_t> ids = Random(2).integers(tokens, vocab);
    for (const bool bf16 : {false, true}) {
      CpuOps ops(2);
      std::vector<std::uint16_t> coded;
      for (const float v : table) coded.push_back(bf16_encode(v));
      const Buffer memory = ops.allocate(vocab * width * 4);
      const Tensor weights(memory.data(), bf16 ? DType::kBF16 : DType::kF32, {vocab, width});
      ops.upload(weights, bf16 ? static_cast<const void*>(coded.data()) : table.data());
      const Ints rows(ops, {tokens}, ids);
      const Floats streams(ops, {tokens, hc, width});
      in_step([&] { ops.embed({.ids = rows, .table = weights, .streams = streams}); });
      const std::vector<float> found = streams.values();
      for (std::int64_t i = 0; i < tokens * hc * width; ++i) {
        const std::int32_t id = ids[static_cast<std::size_t>(i / (hc * width))];
        const float value = table[static_cast<std::size_t>(id * width + i % width)];
        ASSERT_EQ(found[static_cast<std::size_t>(i)], bf16 ? bf16_round(value) : value) << i;
      }
    }
  }
}

TEST(Dense, GatherRowsTakesRowsInAnyOrder) {
  const std::vector<float> x = Random(1).normals(6 * 2 * 5);
  CpuOps ops(2);
  const Floats in(ops, {6, 2, 5}, x), out(ops, {4, 2, 5});
  const Ints rows(ops, {4}, {5, 0, 0, 3});
  in_step([&] { ops.gather_rows({.x = in, .rows = rows, .out = out}); });
  const std::vector<float> found = out.values();
  for (std::int64_t i = 0; i < 4; ++i)
    EXPECT_TRUE(same_bits(rows_of(found, i, 1, 10),
                          rows_of(x, std::vector<std::int64_t>{5, 0, 0, 3}[i], 1, 10)));
  in_step([&] {
    ops.gather_rows({.x = in, .rows = rows.tensor().rows(0, 0), .out = out.tensor().rows(0, 0)});
  });
}

float swiglu_of(float gate, float up, float limit) {
  CpuOps ops(1);
  const Floats g(ops, {1, 1}, {gate}), u(ops, {1, 1}, {up}), out(ops, {1, 1});
  in_step([&] { ops.swiglu({.gate = g, .up = u, .limit = limit, .out = out}); });
  return out.values()[0];
}

TEST(Dense, SwiGluGoldenValues) {
  EXPECT_NEAR(swiglu_of(12, 3, 10), 29.9986, 5e-5);
  EXPECT_NEAR(swiglu_of(-12, -15, 10), 7.3730e-4, 5e-9);
  EXPECT_NEAR(swiglu_of(5, 11, 10), 49.6654, 5e-5);
  EXPECT_NEAR(swiglu_of(12, 15, 0), 12 * 15 / (1 + std::exp(-12.0)), 1e-4) << "limit 0: no clamp";
  EXPECT_EQ(swiglu_of(-1000, 3, 10), 0) << "silu of a large negative gate is −0, not NaN";
}

TEST(Dense, SwiGluInPlaceAndOnAnyThreads) {
  const std::int64_t tokens = 17, width = 53;
  const std::vector<float> gate = Random(1).normals(tokens * width, 8);
  const std::vector<float> up = Random(2).normals(tokens * width, 8);
  const auto run = [&](Ops& ops, std::int64_t begin, std::int64_t count) {
    const Floats g(ops, {count, width}, rows_of(gate, begin, count, width));
    const Floats u(ops, {count, width}, rows_of(up, begin, count, width));
    in_step([&] { ops.swiglu({.gate = g, .up = u, .limit = 10, .out = g}); });
    return g.values();
  };
  std::vector<double> expected;
  for (std::size_t i = 0; i < gate.size(); ++i)
    expected.push_back(reference::swiglu(gate[i], up[i], 10));
  CpuOps ops(2);
  expect_close(run(ops, 0, tokens), expected, 1e-5);
  expect_invariant(tokens, run);
}

TEST(Dense, AddToStreamsAddsToEveryStream) {
  const std::int64_t tokens = 3, hc = 2, width = 19;
  const std::vector<float> e = Random(1).normals(tokens * width);
  const std::vector<float> x = Random(2).normals(tokens * hc * width);
  const auto run = [&](Ops& ops, std::int64_t begin, std::int64_t count) {
    const Floats add(ops, {count, width}, rows_of(e, begin, count, width));
    const Floats streams(ops, {count, hc, width}, rows_of(x, begin, count, hc * width));
    in_step([&] { ops.add_to_streams({.e = add, .streams = streams}); });
    return streams.values();
  };
  CpuOps ops(2);
  const std::vector<float> found = run(ops, 0, tokens);
  for (std::int64_t i = 0; i < tokens * hc * width; ++i) {
    const auto at = static_cast<std::size_t>(i);
    EXPECT_EQ(found[at], x[at] + e[static_cast<std::size_t>(i / (hc * width) * width + i % width)]);
  }
  expect_invariant(tokens, run);
}

}  // namespace
}  // namespace quatrain::testing

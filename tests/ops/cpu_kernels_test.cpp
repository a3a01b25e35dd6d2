// SPDX-License-Identifier: Apache-2.0
// Every instruction set's kernels against the plain bodies, on random shapes: sizes that are no
// multiple of any vector or panel, other threads, rows alone.
#include "backends/cpu/activation_quant.h"
#include "support/random_matrix.h"

namespace quatrain::testing {
namespace {

class Kernels : public ::testing::TestWithParam<CpuIsa> {
 protected:
  const CpuKernels& fast() const { return select_kernels(GetParam()); }
  const CpuKernels& plain() const { return select_kernels(CpuIsa::kPlain); }
};

// |found − expected| ≤ bound · scale, where `scale` is the sum of the magnitudes that were added.
void expect_within(std::span<const float> found, std::span<const float> expected, double scale,
                   double bound) {
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i)
    ASSERT_LE(std::abs(found[i] - expected[i]), bound * scale)
        << "element " << i << ": found " << found[i] << ", expected " << expected[i];
}

std::vector<float> run_linear(CpuOps& ops, RandomMatrix& matrix, std::int64_t groups,
                              const std::vector<float>& x) {
  const std::int64_t rows = matrix.view().rows, cols = matrix.view().cols;
  const auto tokens = static_cast<std::int64_t>(x.size()) / (groups * cols);
  const auto w = ops.pack_linear(matrix.view());
  ops.reserve(roomy_limits());
  const Floats in(ops, {tokens, groups, cols}, x), out(ops, {tokens, groups, rows / groups});
  in_step([&] {
    if (groups == 1)
      ops.linear({.x = in.tensor().reshaped({tokens, cols}),
                  .w = w.get(),
                  .out = out.tensor().reshaped({tokens, rows})});
    else
      ops.grouped_linear({.x = in, .w = w.get(), .out = out});
  });
  return out.values();
}

TEST_P(Kernels, LinearsOfEveryFormat) {
  Random random(1);
  for (const MatrixKind& kind : kMatrixKinds)
    for (int i = 0; i < 200; ++i) {
      const std::int64_t multiple = column_multiple(kind.format);
      const std::int64_t cols = multiple * random.integer(1, 320 / multiple);
      const std::int64_t groups = random.integer(1, 3);
      const std::int64_t rows = groups * random.integer(1, 90 / groups);
      const std::int64_t tokens = random.integer(1, 19);
      RandomMatrix matrix(kind, rows, cols, static_cast<unsigned>(i));
      const std::vector<float> x = random.normals(tokens * groups * cols);
      CpuOps reference(1, CpuIsa::kPlain), one(1, GetParam()), many(3, GetParam());
      const std::vector<float> expected = run_linear(reference, matrix, groups, x);
      const std::vector<float> found = run_linear(one, matrix, groups, x);
      float largest = 1;
      for (const float y : expected) largest = std::max(largest, std::abs(y));
      SCOPED_TRACE(
          fmt::format("{} [{}, {}], {} groups, {} tokens", kind.name, rows, cols, groups, tokens));
      expect_within(found, expected, largest, 1e-5);
      if (i % 10 != 0) continue;
      EXPECT_TRUE(same_bits(run_linear(many, matrix, groups, x), found)) << "3 threads";
      const std::int64_t t = random.integer(0, tokens - 1);
      EXPECT_TRUE(same_bits(run_linear(many, matrix, groups, rows_of(x, t, 1, groups * cols)),
                            rows_of(found, t, 1, rows)))
          << "row " << t << " alone";
    }
}

// Codes whose decoders have special cases: every FP8 code but NaN, scales at the ends of their
// range; and NaN weights, which must stay NaN.
TEST_P(Kernels, ExtremeCodes) {
  for (const MatrixKind& kind : kMatrixKinds) {
    if (kind.format != WeightFormat::kFp8Block && kind.format != WeightFormat::kFp8Tensor &&
        kind.scale_dtype != DType::kF8E4M3 && kind.scale_dtype != DType::kF8E8M0)
      continue;
    for (const bool with_nan : {false, true}) {
      RandomMatrix matrix(kind, 40, 288, 5);
      QuantMatrix& view = matrix.view();
      std::vector<std::byte> values(static_cast<std::size_t>(view.rows * view.row_bytes()));
      for (std::size_t i = 0; i < values.size(); ++i)
        values[i] = static_cast<std::byte>(i * 7 + i / 256);
      const bool fp8 = view.dtype == DType::kF8E4M3;
      if (fp8)
        for (std::size_t i = 0; i < values.size(); ++i)
          if ((values[i] & std::byte{0x7F}) == std::byte{0x7F} && !(with_nan && i % 3 == 0))
            values[i] = std::byte{1};
      view.values = values.data();
      std::vector<std::byte> scales(static_cast<std::size_t>(view.scale_count()));
      const bool e4m3 = kind.scale_dtype == DType::kF8E4M3;
      for (std::size_t i = 0; i < scales.size(); ++i)
        scales[i] = static_cast<std::byte>(e4m3 ? i % 127 : i % 160);
      if (bytes_of(kind.scale_dtype) == 1) view.scales = scales.data();
      CpuOps reference(1, CpuIsa::kPlain), ops(1, GetParam());
      // One input at a time: the products themselves, each exact but for its scale's rounding.
      std::vector<float> x(static_cast<std::size_t>(288 * 288), 0.0f);
      for (std::size_t i = 0; i < 288; ++i) x[i * 289] = 1.0f;
      const std::vector<float> expected = run_linear(reference, matrix, 1, x);
      const std::vector<float> found = run_linear(ops, matrix, 1, x);
      for (std::size_t i = 0; i < found.size(); ++i) {
        ASSERT_EQ(std::isnan(found[i]), std::isnan(expected[i])) << kind.name << " element " << i;
        if (!std::isnan(found[i])) {
          ASSERT_LE(std::abs(found[i] - expected[i]), 1e-6f * std::abs(expected[i]) + 1e-42f)
              << kind.name << " element " << i << ": " << found[i] << ", " << expected[i];
        }
      }
    }
  }
}

TEST_P(Kernels, Int8ActivationsHaveTheBitsOfTheDefinition) {
  Random random(2);
  for (int i = 0; i < 300; ++i) {
    const std::int64_t n = kInt8Block * random.integer(1, 20);
    std::vector<float> x = random.normals(n, std::exp(random.uniform(-80, 80)));
    if (i % 7 == 0) std::fill_n(x.begin(), kInt8Block, 0.0f);
    if (i % 11 == 0) x[static_cast<std::size_t>(random.integer(0, n - 1))] = kNaN;
    std::vector<Int8Activations> found(static_cast<std::size_t>((n + 127) / 128)), expected = found;
    std::memset(found.data(), 0x5A, found.size() * sizeof found[0]);
    fast().quantise_int8(x.data(), n, found.data());
    plain().quantise_int8(x.data(), n, expected.data());
    std::vector<float> rounded(x.size());
    int8_round_row(x.data(), n, rounded.data());
    for (std::size_t g = 0; g < found.size(); ++g) {
      ASSERT_EQ(std::isnan(found[g].row_scale), std::isnan(expected[g].row_scale));
      if (std::isnan(found[g].row_scale)) continue;  // its values mean nothing
      ASSERT_EQ(found[g].row_scale, expected[g].row_scale);
      ASSERT_EQ(std::memcmp(found[g].scales, expected[g].scales, sizeof found[g].scales), 0);
      ASSERT_EQ(std::memcmp(found[g].values, expected[g].values, sizeof found[g].values), 0);
      ASSERT_EQ(std::memcmp(found[g].offsets, expected[g].offsets, sizeof found[g].offsets), 0);
      for (std::size_t c = 0; c < static_cast<std::size_t>(kInt8Group); ++c)
        ASSERT_EQ(128 * g + c < rounded.size() ? rounded[128 * g + c] : 0.0f,
                  static_cast<float>(found[g].values[c]) * found[g].scales[c / kInt8Chunk] *
                      found[g].row_scale);
    }
  }
}

// Every value is within half a unit of its 32 columns, whose largest has at least 64 of them.
TEST_P(Kernels, Int8ActivationsAreNear) {
  Random random(7);
  for (int i = 0; i < 200; ++i) {
    const std::int64_t n = kInt8Chunk * random.integer(1, 12);
    std::vector<float> x = random.normals(n, std::exp(random.uniform(-20, 20)));
    for (std::int64_t c = 0; c < n; c += kInt8Chunk) {
      const float factor = std::exp(random.uniform(-6, 6));
      for (std::int64_t j = c; j < c + kInt8Chunk; ++j) x[static_cast<std::size_t>(j)] *= factor;
    }
    std::vector<Int8Activations> groups(static_cast<std::size_t>((n + 127) / 128));
    fast().quantise_int8(x.data(), n, groups.data());
    for (std::int64_t c = 0; c < n; c += kInt8Chunk) {
      const Int8Activations& group = groups[static_cast<std::size_t>(c / kInt8Group)];
      const float unit = group.scales[c % kInt8Group / kInt8Chunk] * group.row_scale;
      float largest = 0;
      for (std::int64_t j = c; j < c + kInt8Chunk; ++j) {
        const float value = x[static_cast<std::size_t>(j)];
        largest = std::max(largest, std::abs(value));
        const float limited = std::clamp(value, -127 * unit, 127 * unit);
        ASSERT_LE(std::abs(static_cast<float>(group.values[j % kInt8Group]) * unit - limited),
                  unit / 2);
      }
      ASSERT_GE(largest, 64 * unit);
      ASSERT_LT(largest, 128 * unit);
    }
  }
}

// A product with int8 activations equals the exact product with what they stand for.
TEST_P(Kernels, Int8Products) {
  Random random(3);
  ThreadPool pool(1);
  for (const char* name : {"NVFP4", "MXFP4"})
    for (int i = 0; i < 200; ++i) {
      const auto& kind = *std::find_if(std::begin(kMatrixKinds), std::end(kMatrixKinds),
                                       [&](const auto& k) { return std::string(k.name) == name; });
      const std::int64_t cols = column_multiple(kind.format) * random.integer(1, 24);
      RandomMatrix matrix(kind, kPanelRows, cols, static_cast<unsigned>(i));
      PanelMatrix panels(matrix.view());
      const auto memory = map_memory(panels.panel_bytes());
      panels.pack(matrix.view(), memory.get(), panels.panel_bytes(), pool);
      const int tokens = static_cast<int>(random.integer(1, fast().int8_tile));
      const auto groups = static_cast<std::size_t>((cols + kInt8Group - 1) / kInt8Group);
      std::vector<std::vector<Int8Activations>> inputs;
      std::vector<std::vector<float>> outputs;
      const Int8Activations* x[CpuKernels::kMaxTile];
      float* out[CpuKernels::kMaxTile];
      for (int t = 0; t < tokens; ++t) {
        inputs.emplace_back(groups);
        outputs.emplace_back(static_cast<std::size_t>(kPanelRows), kNaN);
        fast().quantise_int8(random.normals(cols, 2).data(), cols, inputs.back().data());
      }
      for (int t = 0; t < tokens; ++t) {
        x[t] = inputs[static_cast<std::size_t>(t)].data();
        out[t] = outputs[static_cast<std::size_t>(t)].data();
      }
      const bool nvfp4 = panels.format() == PanelFormat::kNvfp4;
      (nvfp4 ? fast().nvfp4_int8 : fast().mxfp4_int8)[tokens](panels.panel(0), x, out);
      for (int t = 0; t < tokens; ++t)
        for (std::int64_t r = 0; r < kPanelRows; ++r) {
          const std::vector<double> row = matrix.row(r);
          double sum = 0, magnitude = 0;
          for (std::size_t c = 0; c < row.size(); ++c) {
            const Int8Activations& group = x[t][c / kInt8Group];
            const double term = row[c] * group.values[c % kInt8Group] *
                                group.scales[c % kInt8Group / kInt8Chunk] * group.row_scale;
            sum += term;
            magnitude += std::abs(term);
          }
          ASSERT_NEAR(out[t][r], sum, 1e-6 * magnitude + 1e-30) << name << " " << cols;
        }
    }
}

// Matrix tiles give the bits of the int8 products for panels that say so.
TEST_P(Kernels, Int8TilesHaveTheBitsOfTheProducts) {
  if (fast().int8_tile_tokens == 0) GTEST_SKIP() << "no matrix tiles";
  Random random(6);
  ThreadPool pool(1);
  for (const MatrixKind& kind : kMatrixKinds)
    for (int i = 0; i < 200 && column_multiple(kind.format) > 1; ++i) {
      const std::int64_t cols = column_multiple(kind.format) * random.integer(1, 24);
      const std::int64_t tokens = random.integer(1, i % 20 == 0 ? kTileTokens : 50);
      const int panel_count = static_cast<int>(random.integer(1, kTileRows / kPanelRows));
      RandomMatrix matrix(kind, panel_count * kPanelRows, cols, static_cast<unsigned>(i));
      PanelMatrix panels(matrix.view());
      const auto memory = map_memory(panel_count * panels.panel_bytes());
      panels.pack(matrix.view(), memory.get(), panels.panel_bytes(), pool);
      TileMemory memory_of_rows;
      const std::int64_t blocks = (tokens + TileInputs::kBlock - 1) / TileInputs::kBlock;
      memory_of_rows.reserve(blocks, cols, 1);
      ASSERT_EQ(memory_of_rows.set_width(cols, 1), blocks);
      const TileInputs rows = memory_of_rows.blocks(0, blocks);
      std::vector<std::vector<Int8Activations>> inputs;
      for (std::int64_t t = 0; t < tokens; ++t) {
        inputs.emplace_back(static_cast<std::size_t>(memory_of_rows.groups()));
        fast().quantise_int8(random.normals(cols, 2).data(), cols, inputs.back().data());
        fast().expand_int8(panels.format(), inputs.back().data(), memory_of_rows.groups(), rows, t);
      }
      const auto sums = map_memory(kTileTokens * kTileRows * 4);
      TileTask task{.panels = {},
                    .panel_count = panel_count,
                    .x = rows,
                    .tokens = tokens,
                    .sums = reinterpret_cast<float*>(sums.get())};
      for (int p = 0; p < panel_count; ++p) task.panels[p] = panels.panel(p);
      std::memset(task.sums, 0xFF, kTileTokens * kTileRows * 4);
      fast().int8_tiles[static_cast<int>(panels.format())](task);
      std::vector<float> found(static_cast<std::size_t>(kTileRows));
      const auto* products =
          panels.format() == PanelFormat::kNvfp4 ? fast().nvfp4_int8 : fast().mxfp4_int8;
      for (int p = 0; p < panel_count; ++p) {
        ASSERT_TRUE(panels.has_exact_chunks(p));
        for (std::int64_t t = 0; t < tokens; ++t) {
          std::vector<float> expected(static_cast<std::size_t>(kPanelRows));
          const Int8Activations* x = inputs[static_cast<std::size_t>(t)].data();
          float* out = expected.data();
          products[1](panels.panel(p), &x, &out);
          fast().int8_tile_row(task, t, found.data());
          ASSERT_TRUE(same_bits(rows_of(found, p, 1, kPanelRows), expected))
              << kind.name << " " << cols << " columns, " << tokens << " tokens, row " << t;
        }
      }
    }
}

TEST_P(Kernels, RowKernels) {
  Random random(4);
  for (int i = 0; i < 200; ++i) {
    const std::int64_t n = random.integer(1, 300);
    const auto size = static_cast<std::size_t>(n);
    const std::vector<float> a = random.normals(n), b = random.normals(n), w = random.normals(8);
    const std::vector<float> rows = random.normals(8 * n);
    EXPECT_NEAR(fast().dot(a.data(), b.data(), n), plain().dot(a.data(), b.data(), n), 1e-4);
    std::vector<float> found(size), expected(size);
    const auto close = [&](double bound) {
      for (std::size_t j = 0; j < found.size(); ++j)
        ASSERT_NEAR(found[j], expected[j], bound * std::max(1.0f, std::abs(expected[j])));
    };
    fast().rms_norm(a.data(), b.data(), n, 1e-6f, found.data());
    plain().rms_norm(a.data(), b.data(), n, 1e-6f, expected.data());
    close(2e-6);
    const float limit = i % 2 == 0 ? 0.0f : 1.0f;
    std::vector<float> wide = random.normals(n, 30);
    fast().swiglu(wide.data(), b.data(), n, limit, found.data());
    plain().swiglu(wide.data(), b.data(), n, limit, expected.data());
    close(2e-6);
    found = expected = b;
    fast().add_scaled(a.data(), 0.7f, n, found.data());
    plain().add_scaled(a.data(), 0.7f, n, expected.data());
    close(1e-6);
    fast().weighted_sum(rows.data(), w.data(), 5, n, n, found.data());
    plain().weighted_sum(rows.data(), w.data(), 5, n, n, expected.data());
    close(4e-6);
    const float* values[7];
    const float* scores[7];
    for (std::size_t k = 0; k < 7; ++k)
      values[k] = rows.data() + k * size, scores[k] = values[k] + size;
    fast().pool(values, scores, 7, n, found.data());
    plain().pool(values, scores, 7, n, expected.data());
    close(4e-6);
    found = expected = rows;
    const std::vector<float> comb = random.normals(64);
    for (const std::int64_t hc : {8, 4}) {
      fast().mix_streams(a.data(), w.data(), comb.data(), hc, n, n, found.data());
      plain().mix_streams(a.data(), w.data(), comb.data(), hc, n, n, expected.data());
      close(1e-5);
    }
    // 10 mixes of two streams, of which all columns but the first few count.
    const std::int64_t first = std::min<std::int64_t>(3, n - 1);
    const std::vector<float> fn = random.normals(20 * n);
    found.assign(11, 0), expected.assign(11, 0);
    fast().site_sums(rows.data() + first, fn.data() + first, 10, 2, n, n - first, found.data());
    plain().site_sums(rows.data() + first, fn.data() + first, 10, 2, n, n - first, expected.data());
    close(2e-5 * std::sqrt(static_cast<double>(n)));
  }
}

TEST_P(Kernels, SwiGluKeepsNaN) {
  for (std::size_t at = 0; at < 20; ++at)
    for (const bool in_gate : {false, true}) {
      std::vector<float> gate(20, 0.5f), up(20, 0.5f), out(20);
      (in_gate ? gate : up)[at] = kNaN;
      fast().swiglu(gate.data(), up.data(), 20, 1.0f, out.data());
      for (std::size_t i = 0; i < 20; ++i) EXPECT_EQ(std::isnan(out[i]), i == at);
    }
}

TEST_P(Kernels, AttentionAndIndexScores) {
  Random random(5);
  for (int i = 0; i < 200; ++i) {
    const std::int64_t heads = random.integer(1, 9), width = random.integer(1, 150);
    const std::int64_t count = random.integer(1, 70);
    const std::vector<float> q = random.normals(heads * width, i % 5 == 0 ? 20.0f : 1.0f);
    const std::vector<float> all = random.normals(count * width), weights = random.normals(heads);
    std::vector<const float*> keys;
    for (std::int64_t k = 0; k < count; ++k) keys.push_back(all.data() + k * width);
    const auto run = [&](const CpuKernels& kernels) {
      std::vector<float> scores(static_cast<std::size_t>(heads * count), kNaN);
      std::vector<float> out(static_cast<std::size_t>(heads * width), kNaN);
      kernels.attend({.q = q.data(),
                      .keys = keys.data(),
                      .sinks = weights.data(),
                      .heads = heads,
                      .width = width,
                      .count = count,
                      .scale = 0.3f,
                      .scores = scores.data(),
                      .out = out.data()});
      std::vector<float> index(static_cast<std::size_t>(count), kNaN);
      kernels.index_scores(q.data(), weights.data(), keys.data(), heads, width, count,
                           index.data());
      out.insert(out.end(), index.begin(), index.end());
      return out;
    };
    const std::vector<float> found = run(fast()), expected = run(plain());
    for (std::size_t j = 0; j < found.size(); ++j)
      ASSERT_NEAR(found[j], expected[j], 2e-4 * std::max(1.0f, std::abs(expected[j])));
  }
}

std::vector<CpuIsa> vector_isas() {
  std::vector<CpuIsa> all = usable_isas();
  std::erase(all, CpuIsa::kPlain);
  return all;
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Kernels);
INSTANTIATE_TEST_SUITE_P(Cpu, Kernels, ::testing::ValuesIn(vector_isas()), [](const auto& test) {
  std::string name(name_of(test.param));
  std::erase(name, '-');
  return name;
});

// Panels whose blocks' scales are too far apart for exact sums of 32 columns.
TEST(PanelMatrixExactness, IsThatOfTheScales) {
  ThreadPool pool(1);
  const auto& nvfp4 = kMatrixKinds[3];
  ASSERT_EQ(nvfp4.format, WeightFormat::kNvfp4);
  for (const auto& [first, second, exact] : {std::tuple{0x38, 0x10, true},
                                             {0x38, 0x0F, false},
                                             {0x00, 0x7E, true},
                                             {0x01, 0x37, true},
                                             {0x01, 0x38, false}}) {
    RandomMatrix matrix(nvfp4, 40, 64, 1);
    std::vector<std::byte> scales(160, std::byte{0x38});
    scales[4 * 35 + 2] = static_cast<std::byte>(first);  // columns 32–47 of row 35
    scales[4 * 35 + 3] = static_cast<std::byte>(second);
    matrix.view().scales = scales.data();
    PanelMatrix panels(matrix.view());
    const auto memory = map_memory(panels.panels() * panels.panel_bytes());
    panels.pack(matrix.view(), memory.get(), panels.panel_bytes(), pool);
    EXPECT_TRUE(panels.has_exact_chunks(0));
    EXPECT_EQ(panels.has_exact_chunks(1), exact) << first << " " << second;
  }
}

TEST(CpuIsaNames, AreParsedAndRefused) {
  EXPECT_EQ(parse_isa("auto"), best_isa());
  for (const CpuIsa isa : usable_isas()) EXPECT_EQ(parse_isa(std::string(name_of(isa))), isa);
  EXPECT_THROW(parse_isa("sse"), Error);
}

TEST(CpuMask, PinsThreadsAndRefusesProcessorsThatDoNotExist) {
  EXPECT_THROW(ThreadPool(2, {0, 1 << 20}), Error);
  EXPECT_THROW(ThreadPool(1, {-1}), Error);
}

}  // namespace
}  // namespace quatrain::testing

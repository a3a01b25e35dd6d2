// SPDX-License-Identifier: Apache-2.0
// The GPU's dense products against double precision, the same bits in any company, and the fused
// operations against their parts on the CPU.
#include "backends/cpu/activation_quant.h"
#include "ops/cuda_compare.h"
#include "support/random_matrix.h"

namespace quatrain::testing {
namespace {

using CudaLinears = CudaTest;

constexpr int kNvfp4 = 3, kMxfp4 = 4, kFp8 = 6;  // of kMatrixKinds
const MatrixKind& kBf16 = kMatrixKinds[1];

/// With room for the inputs of long prompts.
void reserve_long(Ops& ops) {
  StepLimits limits = roomy_limits();
  limits.rows = 512;
  ops.reserve(limits);
}

/// A kind of weight and what products take of their inputs: where that matters, both.
struct Kind {
  int matrix;  // of kMatrixKinds
  LinearActivations activations = LinearActivations::kFull;
};
constexpr LinearActivations kF16 = LinearActivations::kF16;
constexpr Kind kKinds[] = {{1}, {kNvfp4}, {kMxfp4}, {kFp8}, {kFp8, kF16}};

struct Shape {
  std::int64_t rows, cols, groups;
};

/// Of the products of the first `count` tokens of x those of the first `kept`.
std::vector<float> first_rows(Ops& ops, const PackedLinear& w, std::int64_t groups,
                              const std::vector<float>& x, LinearActivations activations,
                              std::int64_t count, std::int64_t kept) {
  const std::vector<float> some = rows_of(x, 0, count, groups * w.cols);
  return rows_of(linear_product(ops, w, count, groups, some, activations), 0, kept, w.rows);
}

std::string describe(const Kind& kind) {
  return fmt::format("{}{}", kMatrixKinds[kind.matrix].name,
                     kind.activations == kF16 ? " by F16" : "");
}

// Inputs of FP8 weights keep 22 bits, others 16; the rest is the rounding of FP32 sums.
TEST_F(CudaLinears, IsAsAccurateAsItsInputs) {
  reserve_long(gpu());
  unsigned seed = 1;
  for (const auto& [kind, activations] :
       {Kind{1}, Kind{kNvfp4}, Kind{kMxfp4}, Kind{kFp8}, Kind{7}, Kind{8}, Kind{9}, Kind{10},
        Kind{kFp8, kF16}, Kind{7, kF16}, Kind{9, kF16}, Kind{10, kF16}})
    for (const std::int64_t cols : {192, 1024, 4096, 5120})
      for (const std::int64_t tokens : {1, 5, 16, 40, 150}) {
        RandomMatrix w(kMatrixKinds[kind], 100, cols, ++seed);
        std::vector<float> x = Random(++seed).normals(tokens * cols);
        const auto packed = gpu().pack_linear(w.view());
        const std::vector<float> found = linear_product(gpu(), *packed, tokens, 1, x, activations);
        if (activations == kF16) x = rounded_rows(std::move(x), cols, f16_round_row);
        double error = 0, norm = 0;
        for (std::int64_t r = 0; r < 100; ++r) {
          const std::vector<double> row = w.row(r);
          for (std::int64_t t = 0; t < tokens; ++t) {
            double sum = 0;
            for (std::int64_t c = 0; c < cols; ++c)
              sum += row[static_cast<std::size_t>(c)] * x[static_cast<std::size_t>(t * cols + c)];
            const double off = sum - found[static_cast<std::size_t>(t * 100 + r)];
            error += off * off;
            norm += sum * sum;
          }
        }
        EXPECT_LE(std::sqrt(error / norm), kMatrixKinds[kind].dtype == DType::kF8E4M3 ? 2e-6 : 1e-5)
            << kMatrixKinds[kind].name << ", " << cols << " columns, " << tokens << " tokens";
      }
}

// Also where a matrix has more slices than a cluster has blocks, and groups that end within a tile.
TEST_F(CudaLinears, ARowHasTheSameBitsInAnyCompany) {
  reserve_long(gpu());
  unsigned seed = 100;
  for (const Kind& kind : kKinds)
    for (const Shape& s : {Shape{8, 32, 1}, Shape{192, 192, 2}, Shape{200, 1024, 1},
                           Shape{400, 4096, 1}, Shape{160, 9216, 1}}) {
      RandomMatrix w(kMatrixKinds[kind.matrix], s.rows, s.cols, ++seed);
      const auto packed = gpu().pack_linear(w.view());
      const std::int64_t width = s.groups * s.cols;
      const std::vector<float> x = Random(++seed).normals(300 * width);
      const std::vector<float> all =
          linear_product(gpu(), *packed, 300, s.groups, x, kind.activations);
      for (const std::int64_t count : {1, 2, 5, 8, 9, 16, 17, 32, 33, 64, 65, 130})
        for (const std::int64_t first : {std::int64_t{0}, std::int64_t{61}, 300 - count}) {
          SCOPED_TRACE(fmt::format("{} {} x {}, rows {} to {}", describe(kind), s.rows, s.cols,
                                   first, first + count));
          expect_same(linear_product(gpu(), *packed, count, s.groups,
                                     rows_of(x, first, count, width), kind.activations),
                      rows_of(all, first, count, s.rows));
        }
    }
}

// So many groups that each has one cluster of blocks, and more rows in each than the cluster adds
// up at a time.
TEST_F(CudaLinears, RowsOfManySlicesMeetInRounds) {
  reserve_long(gpu());
  const std::int64_t groups = 17, rows = groups * 330, cols = 7200;
  for (const Kind& kind : {Kind{kMxfp4}, Kind{kFp8, kF16}}) {
    RandomMatrix w(kMatrixKinds[kind.matrix], rows, cols, 61);
    const auto packed = gpu().pack_linear(w.view());
    const std::vector<float> x = Random(62).normals(70 * groups * cols);
    const std::vector<float> all = linear_product(gpu(), *packed, 70, groups, x, kind.activations);
    for (const std::int64_t count : {6, 12, 30})
      expect_same(linear_product(gpu(), *packed, count, groups,
                                 rows_of(x, 40, count, groups * cols), kind.activations),
                  rows_of(all, 40, count, rows));
  }
}

// So many rows that every multiprocessor has several tiles of the larger kind, and a product of
// dozens of tokens whose tiles meet again and again.
TEST_F(CudaLinears, LargeMatricesHaveTheSameBitsInAnyCompany) {
  reserve_long(gpu());
  for (const Kind& kind : kKinds)
    for (const auto& [rows, cols] :
         {std::pair<std::int64_t, std::int64_t>{67000, 64}, {9000, 2112}}) {
      RandomMatrix w(kMatrixKinds[kind.matrix], rows, cols, 71);
      const auto packed = gpu().pack_linear(w.view());
      const std::vector<float> x = Random(72).normals(100 * cols);
      const auto first_of = [&](std::int64_t count) {
        return first_rows(gpu(), *packed, 1, x, kind.activations, count, 3);
      };
      const std::vector<float> some = first_of(12);
      for (const std::int64_t count : {3, 8, 20, 40, 100}) {
        SCOPED_TRACE(fmt::format("{} {} x {}, {} tokens", describe(kind), rows, cols, count));
        expect_same(first_of(count), some);
      }
    }
}

// Launches that are one wave of blocks: more units of rows for every block than groups of warps, of
// one slice of columns, and of many groups and slices, which leave a block several units each.
TEST_F(CudaLinears, BlocksOfAWaveTakeSeveralUnits) {
  reserve_long(gpu());
  for (const Shape& s : {Shape{34000, 144, 1}, Shape{16 * 320, 7200, 16}}) {
    RandomMatrix w(kMatrixKinds[kFp8], s.rows, s.cols, 81);
    const auto packed = gpu().pack_linear(w.view());
    const std::vector<float> x = Random(82).normals(64 * s.groups * s.cols);
    const auto first_of = [&](std::int64_t count) {
      return first_rows(gpu(), *packed, s.groups, x, kF16, count, 5);
    };
    const std::vector<float> some = first_of(5);
    for (const std::int64_t count : {17, 32, 33, 64}) {
      SCOPED_TRACE(fmt::format("{} x {}, {} tokens", s.rows, s.cols, count));
      expect_same(first_of(count), some);
    }
  }
}

// And FP8 weights beside few BF16 ones, whose inputs are split twice.
TEST_F(CudaLinears, AWaveOfTwoKindsEqualsOneByOne) {
  reserve_long(gpu());
  constexpr std::int64_t kCols = 2048;
  std::vector<RandomMatrix> weights;
  std::vector<std::unique_ptr<PackedLinear>> packed;
  for (const auto& [kind, rows] : {std::pair(kFp8, 1100), {1, 100}, {kFp8, 72}})
    weights.emplace_back(kMatrixKinds[kind], rows, kCols, 83);
  for (RandomMatrix& w : weights) packed.push_back(gpu().pack_linear(w.view()));
  for (const std::int64_t tokens : {17, 40, 64}) {
    const std::vector<float> values = Random(84).normals(tokens * kCols);
    const Floats x(gpu(), {tokens, kCols}, values);
    std::vector<Floats> outs;
    op::Linears all{.x = x, .activations = kF16};
    for (const auto& w : packed)
      all.add(*w, outs.emplace_back(gpu(), std::initializer_list<std::int64_t>{tokens, w->rows}));
    in_step([&] { gpu().linears(all); });
    for (std::size_t i = 0; i < packed.size(); ++i)
      expect_same(rows_of(outs[i].values(), 0, 5, packed[i]->rows),
                  linear_product(gpu(), *packed[i], 5, 1, rows_of(values, 0, 5, kCols), kF16));
  }
}

TEST_F(CudaLinears, ANaNOrAnInfinityStaysInItsRow) {
  RandomMatrix w(kMatrixKinds[kFp8], 256, 1024, 3);
  const auto packed = gpu().pack_linear(w.view());
  for (const LinearActivations activations : {LinearActivations::kFull, kF16})
    for (const std::int64_t tokens : {5, 12, 40}) {
      std::vector<float> x = Random(4).normals(tokens * 1024);
      const std::vector<float> clean = linear_product(gpu(), *packed, tokens, 1, x, activations);
      x[1024 + 7] = kNaN;
      x[3 * 1024 + 900] = std::numeric_limits<float>::infinity();
      const std::vector<float> out = linear_product(gpu(), *packed, tokens, 1, x, activations);
      for (std::int64_t t = 0; t < tokens; ++t)
        if (t != 1 && t != 3)
          expect_same(rows_of(out, t, 1, 256), rows_of(clean, t, 1, 256));
        else
          for (const float y : rows_of(out, t, 1, 256)) EXPECT_FALSE(std::isfinite(y));
    }
}

// Inputs that are on the grid already lose nothing: one part has their bits, the second is zero.
TEST_F(CudaLinears, OnePartOfRoundedInputsIsAllOfThem) {
  reserve_long(gpu());
  for (const int kind : {kFp8, 9}) {
    RandomMatrix w(kMatrixKinds[kind], 512, 1216, 11);
    const auto packed = gpu().pack_linear(w.view());
    const std::vector<float> x = Random(12).normals(280 * 2 * 1216);
    for (const std::int64_t groups : {1, 2})
      for (const std::int64_t tokens : {1, 4, 5, 8, 9, 16, 17, 40, 64, 128, 280}) {
        const std::vector<float> some = rows_of(x, 0, tokens * groups, 1216);
        expect_same(linear_product(gpu(), *packed, tokens, groups, some, kF16),
                    linear_product(gpu(), *packed, tokens, groups,
                                   rounded_rows(some, 1216, f16_round_row)));
      }
  }
}

// F16 has few exponents; the inputs' own power of two makes up for them.
TEST_F(CudaLinears, InputsOfAnySizeKeepTheirDigits) {
  RandomMatrix w(kMatrixKinds[kFp8], 64, 512, 5);
  const auto packed = gpu().pack_linear(w.view());
  const std::vector<float> x = Random(6).normals(512);
  const std::vector<float> plain = linear_product(gpu(), *packed, 1, 1, x);
  const std::vector<float> rounded = linear_product(gpu(), *packed, 1, 1, x, kF16);
  for (const float scale : {0x1p-60f, 0x1p-20f, 0x1p30f, 0x1p80f}) {
    std::vector<float> scaled = x, expected = plain, expected_rounded = rounded;
    for (float& v : scaled) v *= scale;
    for (float& v : expected) v *= scale;
    for (float& v : expected_rounded) v *= scale;
    expect_same(linear_product(gpu(), *packed, 1, 1, scaled), expected);
    expect_same(linear_product(gpu(), *packed, 1, 1, scaled, kF16), expected_rounded);
  }
}

TEST_F(CudaLinears, SeveralAtOnceEqualOneByOne) {
  std::vector<RandomMatrix> weights;
  std::vector<std::unique_ptr<PackedLinear>> packed;
  unsigned seed = 20;
  for (const auto& [kind, rows] :
       {std::pair(kFp8, 300), {1, 64}, {kFp8, 128}, {1, 24}, {2, 40}, {kNvfp4, 130}, {kMxfp4, 16}})
    weights.emplace_back(kMatrixKinds[kind], rows, 2048, ++seed);
  for (RandomMatrix& w : weights) packed.push_back(gpu().pack_linear(w.view()));
  const auto check = [&](std::int64_t tokens, LinearActivations activations) {
    const std::vector<float> values = Random(++seed).normals(tokens * 2048);
    const Floats x(gpu(), {tokens, 2048}, values);
    std::vector<Floats> outs;
    op::Linears all{.x = x, .activations = activations};
    const auto is_precise = [](std::size_t i) { return i == 2; };
    for (std::size_t i = 0; i < packed.size(); ++i)
      all.add(
          *packed[i],
          outs.emplace_back(gpu(), std::initializer_list<std::int64_t>{tokens, packed[i]->rows}),
          is_precise(i));
    in_step([&] { gpu().linears(all); });
    for (std::size_t i = 0; i < packed.size(); ++i)
      expect_same(outs[i].values(),
                  linear_product(gpu(), *packed[i], tokens, 1, values,
                                 is_precise(i) ? LinearActivations::kFull : activations));
  };
  for (const LinearActivations activations : {LinearActivations::kFull, kF16})
    for (const std::int64_t tokens : {1, 7, 12, 20}) check(tokens, activations);
}

TEST_F(CudaLinears, AReplayRepeatsItsBits) {
  reserve_long(gpu());
  RandomMatrix w(kMatrixKinds[kFp8], 512, 4096, 8);
  const auto packed = gpu().pack_linear(w.view());
  for (const auto& [tokens, activations] :
       {std::pair(3, LinearActivations::kFull), {40, LinearActivations::kFull}, {40, kF16}}) {
    const Floats x(gpu(), {tokens, 4096}, Random(9).normals(tokens * 4096)),
        out(gpu(), {tokens, 512});
    const auto body = [&] {
      for (int i = 0; i < 4; ++i)
        gpu().linear({.x = x, .w = packed.get(), .out = out, .activations = activations});
    };
    body();
    const std::vector<float> eager = out.values();
    const auto recording = gpu().record(body);
    for (int i = 0; i < 100; ++i) {
      gpu().zero(out);
      recording->replay();
      ASSERT_TRUE(same_bits(out.values(), eager)) << tokens << " tokens, replay " << i;
    }
  }
}

TEST_F(CudaLinears, SwiGluBeforeAProductMatches) {
  for (const MatrixKind& kind : {kMatrixKinds[kFp8], kBf16, kMatrixKinds[0]})
    for (const std::int64_t tokens : {1, 20}) {
      RandomMatrix w(kind, 96, 256, 30);
      const std::vector<float> gate = Random(31).normals(tokens * 256, 8);
      const std::vector<float> up = Random(32).normals(tokens * 256, 8);
      const auto run = [&](Ops& ops) {
        const auto packed = ops.pack_linear(w.view());
        ops.reserve(roomy_limits());
        const Floats g(ops, {tokens, 256}, gate), u(ops, {tokens, 256}, up), out(ops, {tokens, 96});
        ops.swiglu_linear({.gate = g, .up = u, .limit = 10, .w = packed.get(), .out = out});
        return out.values();
      };
      SCOPED_TRACE(fmt::format("{}, {} tokens", kind.name, tokens));
      expect_near(run(gpu()), run(cpu()), kind.dtype == DType::kF32 ? 5e-3 : 3e-5);
    }
}

TEST_F(CudaLinears, NormAndRotationTogetherMatchTheirParts) {
  for (const std::int64_t tokens : {1, 9})
    for (const std::int64_t heads : {1, 6})
      for (const CacheGrid grid : {CacheGrid::kNone, CacheGrid::kLatent}) {
        const std::int64_t width = 192;
        const std::vector<float> x = Random(40).normals(tokens * heads * width);
        const std::vector<float> weight = Random(41).normals(width);
        std::vector<std::int32_t> positions = Random(42).integers(tokens, 1000000);
        const auto run = [&](Ops& ops) {
          const Floats data(ops, {tokens, heads, width}, x), scale(ops, {width}, weight);
          const Floats frequencies(ops, {32}, Random(43).normals(32));
          const Ints at(ops, {tokens}, positions);
          const Floats other(ops, {tokens, 8, 64}, Random(44).normals(tokens * 8 * 64));
          op::NormRope args{.count = 2, .eps = 1e-6f, .positions = at};
          args.rows[0] = {.x = data, .inv_freq = frequencies, .grid = grid, .rope_dim = 64};
          if (heads == 1) args.rows[0].weight = scale;
          args.rows[1] = {.x = other, .norm = false, .inv_freq = frequencies};
          in_step([&] { ops.norm_rope(args); });
          std::vector<float> all = data.values();
          for (const float v : other.values()) all.push_back(v);
          return all;
        };
        if (grid == CacheGrid::kNone)
          expect_near(run(gpu()), run(cpu()), 1e-5);
        else
          expect_rounded(run(gpu()), run(cpu()), 2e-3);
      }
}

std::vector<float> hc_pre_norm(Ops& ops, std::int64_t width, std::int64_t tokens,
                               const std::vector<float>& streams) {
  const std::int64_t hc = 4, mixes = 24;
  const Floats in(ops, {tokens, hc, width}, streams);
  const Floats fn(ops, {mixes, hc * width}, Random(52).normals(mixes * hc * width, 0.05f));
  const Floats base(ops, {mixes}, Random(53).normals(mixes));
  const Floats scale(ops, {3}, {0.7f, 1.3f, 2.0f});
  const Floats weight(ops, {width}, Random(54).normals(width));
  const Floats out(ops, {tokens, width}), post(ops, {tokens, hc}), comb(ops, {tokens, hc, hc});
  in_step([&] {
    ops.hc_pre_norm({.pre = {.streams = in,
                             .weights = {.fn = fn, .base = base, .scale = scale},
                             .sinkhorn_iters = 20,
                             .hc_eps = 1e-6f,
                             .norm_eps = 1e-6f,
                             .out = out,
                             .post = post,
                             .comb = comb},
                     .norm_weight = weight,
                     .eps = 1e-6f});
  });
  std::vector<float> all;  // by token
  for (std::int64_t t = 0; t < tokens; ++t)
    for (const auto& [values, row] :
         {std::pair(out.values(), width), {post.values(), hc}, {comb.values(), hc * hc}}) {
      const std::vector<float> part = rows_of(values, t, 1, row);
      all.insert(all.end(), part.begin(), part.end());
    }
  return all;
}

TEST_F(CudaLinears, MixingAndNormTogetherMatchTheirParts) {
  for (const std::int64_t width : {4, 384, 2052, 4096})
    for (const std::int64_t tokens : {1, 3, 8, 21}) {
      const std::vector<float> streams = Random(51).normals(tokens * 4 * width, 3);
      SCOPED_TRACE(fmt::format("{} tokens of {}", tokens, width));
      const std::vector<float> found = hc_pre_norm(gpu(), width, tokens, streams);
      expect_near(found, hc_pre_norm(cpu(), width, tokens, streams), 1e-5);
      const std::int64_t row = static_cast<std::int64_t>(found.size()) / tokens;
      for (const std::int64_t t : {std::int64_t{0}, tokens / 2, tokens - 1})
        expect_same(hc_pre_norm(gpu(), width, 1, rows_of(streams, t, 1, 4 * width)),
                    rows_of(found, t, 1, row));
    }
}

// What a run prints: every step has its kernels, and each kind of operation its line.
TEST_F(CudaLinears, KernelChoicesCoverStepsOfAnySize) {
  reserve({.rows = 512,
           .context = 1024,
           .slots = 4,
           .experts_per_token = 6,
           .num_experts = 64,
           .hidden_size = 256,
           .intermediate_size = 128,
           .window = 128,
           .index_topk = 64,
           .linear_activations = LinearActivations::kFp8});
  const std::vector<std::string> lines = gpu().kernel_choices();
  ASSERT_EQ(lines.size(), 6u);
  EXPECT_EQ(lines[0].find("linears: "), 0u) << lines[0];
  EXPECT_NE(lines[1].find("from 129 rows"), std::string::npos) << lines[1];
  EXPECT_NE(lines[2].find("attention of prompts: from 133 rows"), std::string::npos) << lines[2];
  EXPECT_NE(lines[3].find("1 to 64 rows: decode: 8 tokens"), std::string::npos) << lines[3];
  EXPECT_NE(lines[4].find("65 to 256 rows: decode: 16 tokens"), std::string::npos) << lines[4];
  EXPECT_NE(lines[5].find("more than 256 rows"), std::string::npos) << lines[5];
}

}  // namespace
}  // namespace quatrain::testing

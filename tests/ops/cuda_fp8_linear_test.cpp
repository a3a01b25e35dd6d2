// SPDX-License-Identifier: Apache-2.0
// The GPU's dense products with FP8 activations against double precision on the rounded inputs and
// against the CPU, and what holds for rows in any company.
#include "backends/cpu/activation_quant.h"
#include "backends/cuda/launch/linear_fp8.h"
#include "ops/cuda_compare.h"
#include "support/random_matrix.h"

namespace quatrain::testing {
namespace {

constexpr int kBlocks = 6, kBlocksF32 = 7;  // of kMatrixKinds
const MatrixKind& kBf16 = kMatrixKinds[1];

class CudaFp8Linears : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    StepLimits limits = roomy_limits();
    limits.rows = 512;
    limits.linear_activations = LinearActivations::kFp8;
    reserve(limits);
  }

  static std::vector<float> product(Ops& ops, const PackedLinear& w, std::int64_t tokens,
                                    std::int64_t groups, const std::vector<float>& x,
                                    LinearActivations activations = LinearActivations::kFp8) {
    return linear_product(ops, w, tokens, groups, x, activations);
  }

  static std::vector<float> rounded(std::vector<float> x, std::int64_t cols) {
    return rounded_rows(std::move(x), cols, fp8_round_row);
  }
};

struct Shape {
  std::int64_t rows, cols, groups;
};

// In long steps sums of 128 columns have about 14 bits; the rest is as exact as any linear.
TEST_F(CudaFp8Linears, MatchDoublePrecisionOnRoundedInputs) {
  unsigned seed = 1;
  for (const int kind : {kBlocks, kBlocksF32})
    for (const Shape& s : {Shape{128, 128, 1}, Shape{200, 384, 1}, Shape{768, 512, 2},
                           Shape{72, 4096, 1}, Shape{192, 192, 2}, Shape{100, 272, 1}})
      for (const std::int64_t tokens : {1, 40, 128, 129, 300, 600}) {
        RandomMatrix w(kMatrixKinds[kind], s.rows, s.cols, ++seed);
        const auto packed = gpu().pack_linear(w.view()), on_cpu = cpu().pack_linear(w.view());
        const std::int64_t width = s.groups * s.cols, per_group = s.rows / s.groups;
        const std::vector<float> x = Random(++seed).normals(tokens * width, 3);
        const std::vector<float> grid = rounded(x, s.cols);
        const std::vector<float> found = product(gpu(), *packed, tokens, s.groups, x);
        double error = 0, norm = 0;
        for (std::int64_t r = 0; r < s.rows; ++r) {
          const std::vector<double> row = w.row(r);
          for (std::int64_t t = 0; t < tokens; t += tokens < 8 ? 1 : 7) {
            double sum = 0;
            for (std::int64_t c = 0; c < s.cols; ++c)
              sum += row[static_cast<std::size_t>(c)] *
                     grid[static_cast<std::size_t>(t * width + r / per_group * s.cols + c)];
            const double off = sum - found[static_cast<std::size_t>(t * s.rows + r)];
            error += off * off;
            norm += sum * sum;
          }
        }
        SCOPED_TRACE(
            fmt::format("{} x {} in {} groups, {} tokens", s.rows, s.cols, s.groups, tokens));
        EXPECT_LE(std::sqrt(error / norm), tokens > 128 ? 5e-4 : 2e-6);
        expect_near(found, product(cpu(), *on_cpu, tokens, s.groups, x),
                    tokens > 128 ? 1e-3 : 1e-5);
      }
}

// Decode steps are products of rounded inputs, bit for bit.
TEST_F(CudaFp8Linears, ShortStepsRoundAndMultiply) {
  RandomMatrix w(kMatrixKinds[kBlocks], 512, 1024, 11);
  const auto packed = gpu().pack_linear(w.view());
  const std::vector<float> x = Random(12).normals(128 * 2 * 1024);
  for (const std::int64_t groups : {1, 2})
    for (const std::int64_t tokens : {1, 8, 16, 17, 64, 128}) {
      const std::vector<float> some = rows_of(x, 0, tokens * groups, 1024);
      expect_same(
          product(gpu(), *packed, tokens, groups, some),
          product(gpu(), *packed, tokens, groups, rounded(some, 1024), LinearActivations::kFull));
    }
}

TEST_F(CudaFp8Linears, ARowHasTheSameBitsInAnyLongStep) {
  for (const Shape& s : {Shape{328, 1024, 1}, Shape{512, 256, 4}}) {
    RandomMatrix w(kMatrixKinds[kBlocks], s.rows, s.cols, 21);
    const auto packed = gpu().pack_linear(w.view());
    const std::int64_t width = s.groups * s.cols;
    const std::vector<float> x = Random(22).normals(700 * width);
    const std::vector<float> all = product(gpu(), *packed, 700, s.groups, x);
    for (const std::int64_t count : {129, 200, 256, 257, 512})
      for (const std::int64_t first : {std::int64_t{0}, std::int64_t{61}, 700 - count})
        expect_same(product(gpu(), *packed, count, s.groups, rows_of(x, first, count, width)),
                    rows_of(all, first, count, s.rows));
  }
}

TEST_F(CudaFp8Linears, ANaNOrAnInfinityStaysInItsRow) {
  RandomMatrix w(kMatrixKinds[kBlocks], 256, 1024, 3);
  const auto packed = gpu().pack_linear(w.view());
  for (const std::int64_t tokens : {5, 300}) {
    std::vector<float> x = Random(4).normals(tokens * 1024);
    const std::vector<float> clean = product(gpu(), *packed, tokens, 1, x);
    x[1024 + 7] = kNaN;
    x[3 * 1024 + 900] = std::numeric_limits<float>::infinity();
    const std::vector<float> out = product(gpu(), *packed, tokens, 1, x);
    for (std::int64_t t = 0; t < tokens; ++t) {
      if (t != 1 && t != 3)
        expect_same(rows_of(out, t, 1, 256), rows_of(clean, t, 1, 256));
      else
        for (const float y : rows_of(out, t, 1, 256)) ASSERT_TRUE(std::isnan(y));
    }
  }
}

// Only products with FP8 blocks, and of those no precise ones, take rounded inputs.
TEST_F(CudaFp8Linears, OthersOfOneInputTakeItAsItIs) {
  std::vector<RandomMatrix> weights;
  unsigned seed = 30;
  for (const MatrixKind* kind :
       {&kMatrixKinds[kBlocks], &kBf16, &kMatrixKinds[kBlocks], &kMatrixKinds[kBlocks]})
    weights.emplace_back(*kind, 264, 512, ++seed);
  std::vector<std::unique_ptr<PackedLinear>> packed;
  for (RandomMatrix& w : weights) packed.push_back(gpu().pack_linear(w.view()));
  for (const std::int64_t tokens : {3, 50, 300}) {
    const std::vector<float> values = Random(++seed).normals(tokens * 512);
    const Floats x(gpu(), {tokens, 512}, values);
    std::vector<Floats> outs;
    op::Linears all{.x = x, .activations = LinearActivations::kFp8};
    for (std::size_t i = 0; i < packed.size(); ++i)
      all.add(*packed[i],
              outs.emplace_back(gpu(), std::initializer_list<std::int64_t>{tokens, 264}), i == 2);
    in_step([&] { gpu().linears(all); });
    for (std::size_t i = 0; i < packed.size(); ++i)
      expect_same(outs[i].values(),
                  product(gpu(), *packed[i], tokens, 1, values,
                          i == 2 ? LinearActivations::kFull : LinearActivations::kFp8));
  }
}

TEST_F(CudaFp8Linears, SwiGluBeforeAProductMatches) {
  RandomMatrix w(kMatrixKinds[kBlocks], 136, 256, 40);
  for (const std::int64_t tokens : {2, 20, 300}) {
    const std::vector<float> gate = Random(41).normals(tokens * 256, 8);
    const std::vector<float> up = Random(42).normals(tokens * 256, 8);
    const auto packed = gpu().pack_linear(w.view());
    const Floats g(gpu(), {tokens, 256}, gate), u(gpu(), {tokens, 256}, up);
    const Floats hidden(gpu(), {tokens, 256}), out(gpu(), {tokens, 136});
    gpu().swiglu({.gate = g, .up = u, .limit = 10, .out = hidden});
    const std::vector<float> expected = product(gpu(), *packed, tokens, 1, hidden.values());
    in_step([&] {
      gpu().swiglu_linear({.gate = g,
                           .up = u,
                           .limit = 10,
                           .w = packed.get(),
                           .out = out,
                           .activations = LinearActivations::kFp8});
    });
    expect_same(out.values(), expected);
  }
}

// Tokens that the scratch has no room for wait for their turn.
TEST_F(CudaFp8Linears, TakeLongStepsInParts) {
  RandomMatrix w(kMatrixKinds[kBlocks], 136, 256, 50);
  const auto packed = gpu().pack_linear(w.view());
  const std::vector<float> values = Random(51).normals(600 * 256);
  const Floats x(gpu(), {600, 256}, values), out(gpu(), {600, 136});
  const std::int64_t bytes = cuda::fp8_scratch_bytes(256, 1);
  const Buffer scratch = gpu().allocate(bytes);
  const cuda::LinearsArgs args{.x = x.tensor().f32(),
                               .tokens = 600,
                               .count = 1,
                               .products = {{.w = static_cast<const CudaLinear&>(*packed).matrix,
                                             .out = out.tensor().f32()}}};
  cuda::multiply_fp8(args, {.memory = scratch.data(), .bytes = bytes}, gpu().stream());
  expect_same(out.values(), product(gpu(), *packed, 600, 1, values));
}

}  // namespace
}  // namespace quatrain::testing

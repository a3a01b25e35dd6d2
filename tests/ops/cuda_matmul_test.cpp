// SPDX-License-Identifier: Apache-2.0
// linear, grouped_linear and experts on the GPU against the CPU backend: every storage format, odd
// sizes, skewed routing, padding, every mode of the experts' inputs.
#include "ops/cuda_compare.h"
#include "support/random_matrix.h"

namespace quatrain::testing {
namespace {

using CudaMatmul = CudaTest;

std::int64_t rounded_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

std::vector<float> run_linear(Ops& ops, RandomMatrix& w, std::int64_t tokens, std::int64_t groups,
                              const std::vector<float>& x) {
  const auto packed = ops.pack_linear(w.view());
  ops.reserve(roomy_limits());
  const std::int64_t rows = w.view().rows, cols = w.view().cols;
  const Floats in(ops, {tokens, groups, cols}, x), out(ops, {tokens, rows});
  if (groups == 1)
    ops.linear({.x = in.tensor().reshaped({tokens, cols}), .w = packed.get(), .out = out});
  else
    ops.grouped_linear({.x = in,
                        .w = packed.get(),
                        .out = out.tensor().reshaped({tokens, groups, rows / groups})});
  return out.values();
}

// Inputs keep 16 bits, dense F32 and F16 weights 8.
TEST_F(CudaMatmul, LinearMatchesForEveryFormat) {
  struct Shape {
    std::int64_t tokens, rows, cols, groups;
  };
  const Shape shapes[] = {{1, 64, 64, 1},    {3, 33, 96, 1},   {33, 130, 272, 1},
                          {70, 200, 640, 1}, {5, 192, 128, 2}, {40, 96 * 3, 160, 3}};
  unsigned seed = 1;
  for (const MatrixKind& kind : kMatrixKinds) {
    const bool rounds = kind.dtype == DType::kF32 || kind.dtype == DType::kF16;
    for (const Shape& s : shapes) {
      const std::int64_t cols = rounded_up(s.cols, column_multiple(kind.format));
      RandomMatrix w(kind, s.rows, cols, seed);
      const std::vector<float> x = Random(++seed).normals(s.tokens * s.groups * cols);
      SCOPED_TRACE(fmt::format("{} {} x {}, {} tokens", kind.name, s.rows, cols, s.tokens));
      expect_near(run_linear(gpu(), w, s.tokens, s.groups, x),
                  run_linear(cpu(), w, s.tokens, s.groups, x), rounds ? 5e-3 : 3e-5);
    }
  }
}

TEST_F(CudaMatmul, ARowHasTheSameBitsInAnyBatch) {
  RandomMatrix w(kMatrixKinds[3], 96, 512, 7);
  const std::vector<float> x = Random(8).normals(65 * 512);
  const std::vector<float> all = run_linear(gpu(), w, 65, 1, x);
  for (const std::int64_t t : {0, 31, 32, 64})
    expect_same(run_linear(gpu(), w, 1, 1, rows_of(x, t, 1, 512)), rows_of(all, t, 1, 96));
}

struct Work {
  std::int64_t tokens = 0, k = 3, experts = 7, hidden = 96, inner = 160;
  std::vector<float> x, weights, out;
  std::vector<std::int32_t> ids, slots;
};

Work make_work(std::int64_t tokens, bool skewed, bool padded, unsigned seed) {
  Work work;
  work.tokens = tokens;
  Random random(seed);
  work.x = random.normals(tokens * work.hidden);
  work.out = random.normals(tokens * work.hidden);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::vector<std::int32_t> order = random.permutation(work.experts);
    work.slots.push_back(padded && t % 3 == 1 ? -1 : 0);
    for (std::int64_t i = 0; i < work.k; ++i) {
      // All tokens on one expert, some of them twice; the others have none.
      work.ids.push_back(skewed ? (i == 2 ? 5 : 4) : order[static_cast<std::size_t>(i)]);
      work.weights.push_back(random.uniform(0.1f, 1.0f));
    }
    if (work.slots.back() < 0)
      for (std::int64_t d = 0; d < work.hidden; ++d)
        work.x[static_cast<std::size_t>(t * work.hidden + d)] = kNaN;
  }
  return work;
}

std::vector<float> run_experts(Ops& ops, const Work& work, const MatrixKind& kind,
                               ExpertActivations activations) {
  const auto packed = ops.make_experts("experts", work.experts, work.hidden, work.inner);
  for (std::int64_t e = 0; e < work.experts; ++e) {
    const auto seed = static_cast<unsigned>(100 + 3 * e);
    RandomMatrix w1(kind, work.inner, work.hidden, seed),
        w3(kind, work.inner, work.hidden, seed + 1), w2(kind, work.hidden, work.inner, seed + 2);
    // Global scales of gate and up differ tenfold, and so do those of experts.
    if (kind.format == WeightFormat::kNvfp4) {
      w1.view().global_scale = 0.01f * static_cast<float>(1 + e);
      w3.view().global_scale = 0.1f;
    }
    for (RandomMatrix* w : {&w1, &w3, &w2})
      w->view().input_scale = 0.002f * static_cast<float>(1 + e);
    ops.pack_expert(*packed, e, w1.view(), w3.view(), w2.view());
  }
  StepLimits limits = roomy_limits();
  limits.rows = std::max(limits.rows, work.tokens);
  ops.reserve(limits);
  const std::int64_t t = work.tokens;
  const Ints slots(ops, {t}, work.slots), ids(ops, {t, work.k}, work.ids);
  const Ints any(ops, {t}, std::vector<std::int32_t>(static_cast<std::size_t>(t)));
  const Floats x(ops, {t, work.hidden}, work.x), weights(ops, {t, work.k}, work.weights);
  const Floats out(ops, {t, work.hidden}, work.out);
  const Batch batch{
      .token_ids = any, .positions = any, .slots = slots, .first_rows = any, .block_table = any};
  ops.experts({.batch = batch,
               .x = x,
               .ids = ids,
               .weights = weights,
               .w = packed.get(),
               .limit = 10.0f,
               .activations = activations,
               .out = out});
  return out.values();
}

const MatrixKind& kind_of(const std::string& name) {
  for (const MatrixKind& kind : kMatrixKinds)
    if (name == kind.name) return kind;
  fail("no matrix kind {}", name);
}

// FP32 inputs keep 16 bits. With BF16 ones only sums differ, and what falls on the other side of a
// rounding step because of them.
TEST_F(CudaMatmul, ExpertsMatchForEveryFormat) {
  unsigned seed = 40;
  for (const char* name : {"NVFP4", "MXFP4", "FP8Block_UE8M0", "FP8Block_F32", "BF16"})
    for (const std::int64_t tokens : {1, 2, 33, 150})
      for (const bool skewed : {false, true}) {
        const Work work = make_work(tokens, skewed, tokens > 2, ++seed);
        SCOPED_TRACE(fmt::format("{}, {} tokens, skewed {}", name, tokens, skewed));
        for (const auto& [mode, tolerance] :
             {std::pair(ExpertActivations::kFull, 1e-4), std::pair(ExpertActivations::kBf16, 2e-3)})
          expect_near(run_experts(gpu(), work, kind_of(name), mode),
                      run_experts(cpu(), work, kind_of(name), mode), tolerance);
      }
}

// Rounded inputs are exact in BF16, so only sums differ, and what falls on the other side of a
// rounding step because of them: hardly any element.
TEST_F(CudaMatmul, ExpertsMatchWithNvfp4Inputs) {
  unsigned seed = 80;
  for (const ExpertActivations mode : {ExpertActivations::kNvfp4, ExpertActivations::kStatic})
    for (const std::int64_t tokens : {1, 3, 40, 150, 300})
      for (const bool skewed : {false, true}) {
        const Work work = make_work(tokens, skewed, tokens > 2, ++seed);
        SCOPED_TRACE(
            fmt::format("mode {}, {} tokens, skewed {}", static_cast<int>(mode), tokens, skewed));
        const std::vector<float> found = run_experts(gpu(), work, kind_of("NVFP4"), mode);
        const std::vector<float> wanted = run_experts(cpu(), work, kind_of("NVFP4"), mode);
        float largest = 0;
        for (const float v : wanted) largest = std::max(largest, std::abs(v));
        std::size_t off = 0;
        for (std::size_t i = 0; i < found.size(); ++i) {
          ASSERT_LE(std::abs(found[i] - wanted[i]), 3e-2f * largest);
          off += std::abs(found[i] - wanted[i]) > 1e-5f * largest;
        }
        // One hidden value on another step changes a whole row, so rows are counted.
        EXPECT_LE(off, found.size() / 8);
      }
}

// The clamp must not turn a NaN into the limit: the sampler has to see it.
TEST_F(CudaMatmul, ExpertsKeepNaN) {
  Work work = make_work(3, false, false, 11);
  for (std::int64_t d = 0; d < work.hidden; ++d)
    work.x[static_cast<std::size_t>(work.hidden + d)] = kNaN;
  const std::vector<float> out =
      run_experts(gpu(), work, kind_of("NVFP4"), ExpertActivations::kFull);
  for (std::int64_t i = 0; i < 3 * work.hidden; ++i)
    EXPECT_EQ(std::isnan(out[static_cast<std::size_t>(i)]), i / work.hidden == 1)
        << "element " << i;
}

TEST_F(CudaMatmul, ExpertsAreBitEqualAloneAndTogether) {
  const Work all = make_work(40, false, false, 9);
  const std::vector<float> together =
      run_experts(gpu(), all, kind_of("NVFP4"), ExpertActivations::kFull);
  for (const std::int64_t t : {0, 17, 39}) {
    Work one = all;
    one.tokens = 1;
    one.x = rows_of(all.x, t, 1, all.hidden);
    one.out = rows_of(all.out, t, 1, all.hidden);
    one.ids = rows_of(all.ids, t, 1, all.k);
    one.weights = rows_of(all.weights, t, 1, all.k);
    one.slots = {0};
    expect_same(run_experts(gpu(), one, kind_of("NVFP4"), ExpertActivations::kFull),
                rows_of(together, t, 1, all.hidden));
  }
}

}  // namespace
}  // namespace quatrain::testing

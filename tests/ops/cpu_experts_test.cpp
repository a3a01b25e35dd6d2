// SPDX-License-Identifier: Apache-2.0
// experts() of every instruction set on random shapes, with so many tokens on some experts that
// matrix tiles serve them: against the plain bodies, for any threads, for a row alone.
#include "support/random_matrix.h"

namespace quatrain::testing {
namespace {

class ExpertsOfIsa : public ::testing::TestWithParam<CpuIsa> {};

struct Shape {
  std::int64_t experts, hidden, inner, tokens, k;
};

class RandomExperts {
 public:
  RandomExperts(const MatrixKind& kind, const Shape& shape, unsigned seed)
      : shape_(shape), random_(seed) {
    for (std::int64_t e = 0; e < shape.experts; ++e)
      for (int m = 0; m < 3; ++m) {
        const bool down = m == 2;
        matrices_.push_back(std::make_unique<RandomMatrix>(
            kind, down ? shape.hidden : shape.inner, down ? shape.inner : shape.hidden,
            seed * 100 + static_cast<unsigned>(3 * e + m)));
      }
    x_ = random_.normals(shape.tokens * shape.hidden);
    weights_ = random_.normals(shape.tokens * shape.k, 0.5f);
    // Most tokens on the first expert: it gets tiles, the others do not.
    for (std::int64_t i = 0; i < shape.tokens * shape.k; ++i)
      ids_.push_back(random_.integer(0, 2) > 0
                         ? 0
                         : static_cast<std::int32_t>(random_.integer(0, shape.experts - 1)));
  }

  // Scales of a few blocks so far from their neighbours' that sums are inexact.
  void spread_scales() {
    for (auto& matrix : matrices_) {
      QuantMatrix& view = matrix->view();
      if (view.format != WeightFormat::kNvfp4) continue;
      const auto* old = static_cast<const std::byte*>(view.scales);
      auto& scales = spread_.emplace_back(old, old + view.scale_count());
      for (int i = 0; i < 3; ++i)
        scales[static_cast<std::size_t>(random_.integer(0, view.scale_count() - 1))] =
            std::byte{0x02};
      view.scales = scales.data();
    }
  }

  std::vector<float> run(CpuOps& ops, ExpertActivations mode, std::int64_t begin,
                         std::int64_t count) const {
    auto packed = ops.make_experts("experts", shape_.experts, shape_.hidden, shape_.inner);
    for (std::int64_t e = 0; e < shape_.experts; ++e)
      ops.pack_expert(*packed, e, matrix(e, 0), matrix(e, 1), matrix(e, 2));
    ops.reserve(roomy_limits());
    std::vector<Chunk> chunks(static_cast<std::size_t>(count), Chunk{.slot = 0});
    const Step step(ops, chunks, 1, 1);
    const Floats x(ops, {count, shape_.hidden}, rows_of(x_, begin, count, shape_.hidden));
    const Floats out(ops, {count, shape_.hidden},
                     std::vector<float>(static_cast<std::size_t>(count * shape_.hidden)));
    const Ints ids(ops, {count, shape_.k}, rows_of(ids_, begin, count, shape_.k));
    const Floats weights(ops, {count, shape_.k}, rows_of(weights_, begin, count, shape_.k));
    in_step([&] {
      ops.experts({.batch = step.batch(),
                   .x = x,
                   .ids = ids,
                   .weights = weights,
                   .w = packed.get(),
                   .limit = 10,
                   .activations = mode,
                   .out = out});
    });
    return out.values();
  }

  Random& random() { return random_; }

 private:
  QuantMatrix& matrix(std::int64_t e, int m) const {
    return matrices_[static_cast<std::size_t>(3 * e + m)]->view();
  }

  Shape shape_;
  Random random_;
  std::vector<std::unique_ptr<RandomMatrix>> matrices_;
  std::vector<std::vector<std::byte>> spread_;
  std::vector<float> x_, weights_;
  std::vector<std::int32_t> ids_;
};

TEST_P(ExpertsOfIsa, RandomShapes) {
  Random random(11);
  for (const char* name : {"NVFP4", "MXFP4"})
    for (int i = 0; i < 200; ++i) {
      const auto& kind = *std::find_if(std::begin(kMatrixKinds), std::end(kMatrixKinds),
                                       [&](const auto& k) { return std::string(k.name) == name; });
      const std::int64_t multiple = column_multiple(kind.format);
      const Shape shape{.experts = random.integer(1, 3),
                        .hidden = multiple * random.integer(1, 320 / multiple),
                        .inner = multiple * random.integer(1, 200 / multiple),
                        .tokens = random.integer(1, 60),
                        .k = random.integer(1, 2)};
      SCOPED_TRACE(fmt::format("{} case {}: hidden {}, inner {}, {} tokens", name, i, shape.hidden,
                               shape.inner, shape.tokens));
      RandomExperts experts(kind, shape, static_cast<unsigned>(i));
      if (i % 4 == 0) experts.spread_scales();
      const auto mode = i % 5 == 0 ? ExpertActivations::kFull : ExpertActivations::kInt8;
      CpuOps plain(1, CpuIsa::kPlain), one(1, GetParam()), many(3, GetParam());
      const std::vector<float> expected = experts.run(plain, mode, 0, shape.tokens);
      const std::vector<float> found = experts.run(one, mode, 0, shape.tokens);
      double norm = 0, error = 0;
      for (std::size_t j = 0; j < found.size(); ++j) {
        norm += static_cast<double>(expected[j]) * expected[j];
        error += std::pow(static_cast<double>(found[j]) - expected[j], 2);
      }
      // A hidden value within FP32 noise of a tie may round to int8 the other way.
      ASSERT_LE(std::sqrt(error),
                (mode == ExpertActivations::kFull ? 1e-5 : 2e-3) * std::sqrt(norm) + 1e-20);
      if (i % 4 > 1) continue;
      EXPECT_TRUE(same_bits(experts.run(many, mode, 0, shape.tokens), found)) << "3 threads";
      for (const std::int64_t t : {std::int64_t{0}, random.integer(0, shape.tokens - 1)})
        EXPECT_TRUE(same_bits(experts.run(one, mode, t, 1), rows_of(found, t, 1, shape.hidden)))
            << "row " << t << " alone";
    }
}

std::vector<CpuIsa> vector_isas() {
  std::vector<CpuIsa> all = usable_isas();
  std::erase(all, CpuIsa::kPlain);
  return all;
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(ExpertsOfIsa);
INSTANTIATE_TEST_SUITE_P(Cpu, ExpertsOfIsa, ::testing::ValuesIn(vector_isas()),
                         [](const auto& test) {
                           std::string name(name_of(test.param));
                           std::erase(name, '-');
                           return name;
                         });

}  // namespace
}  // namespace quatrain::testing

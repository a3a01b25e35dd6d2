// SPDX-License-Identifier: Apache-2.0
// How the CPU backend's threads share work: several linears as one list, a site of the residual
// streams with the update before it; on one node and on made-up ones. The bits are those of the
// parts and of one thread.
#include "support/random_matrix.h"

namespace quatrain::testing {
namespace {

// Three nodes, of two, one and two threads, none of them pinned.
std::vector<ThreadPlace> three_nodes() {
  return {{.group = 0}, {.group = 0}, {.group = 1}, {.group = 2}, {.group = 2}};
}

class CpuSharing : public ::testing::TestWithParam<CpuIsa> {
 protected:
  // One thread, several, several nodes.
  std::vector<std::unique_ptr<CpuOps>> backends() const {
    std::vector<std::unique_ptr<CpuOps>> out;
    for (const int threads : {1, 2, 5})
      out.push_back(std::make_unique<CpuOps>(threads, GetParam()));
    out.push_back(std::make_unique<CpuOps>(three_nodes(), GetParam()));
    return out;
  }
};

TEST_P(CpuSharing, LinearsHaveTheBitsOfSingleOnes) {
  Random random(3);
  for (const std::int64_t tokens : {1, 3, 17, 40}) {
    const std::int64_t cols = 256;
    std::vector<std::unique_ptr<RandomMatrix>> matrices;
    for (const MatrixKind& kind : kMatrixKinds)
      if (std::ssize(matrices) < op::Linears::kMost)
        matrices.push_back(std::make_unique<RandomMatrix>(kind, random.integer(1, 300), cols, 5));
    const std::vector<float> x = random.normals(tokens * cols);
    std::vector<float> expected;
    for (const auto& ops : backends()) {
      std::vector<std::unique_ptr<PackedLinear>> packed;
      for (const auto& m : matrices) packed.push_back(ops->pack_linear(m->view()));
      ops->reserve(roomy_limits());
      const Floats in(*ops, {tokens, cols}, x);
      std::vector<std::unique_ptr<Floats>> single, listed;
      op::Linears list{.x = in};
      for (const auto& w : packed) {
        for (auto* outs : {&single, &listed})
          outs->push_back(
              std::make_unique<Floats>(*ops, std::initializer_list<std::int64_t>{tokens, w->rows}));
        list.add(*w, listed.back()->tensor());
      }
      std::vector<float> all;
      in_step([&] { ops->linears(list); });
      for (std::size_t i = 0; i < packed.size(); ++i) {
        in_step([&] { ops->linear({.x = in, .w = packed[i].get(), .out = *single[i]}); });
        const std::vector<float> found = listed[i]->values();
        EXPECT_TRUE(same_bits(found, single[i]->values())) << "linear " << i;
        all.insert(all.end(), found.begin(), found.end());
      }
      if (expected.empty()) expected = all;
      EXPECT_TRUE(same_bits(all, expected)) << ops->pool().threads() << " threads";
    }
  }
}

TEST_P(CpuSharing, SitesHaveTheBitsOfTheirParts) {
  for (const std::int64_t hc : {4, 3})
    for (const std::int64_t tokens : {1, 3, 9}) {
      const std::int64_t width = 700, mixes = (2 + hc) * hc;  // three parts, the last one smaller
      Random random(7);
      const std::vector<float> x = random.normals(tokens * hc * width);
      const std::vector<float> f = random.normals(tokens * width), norm = random.normals(width);
      const std::vector<float> fn = random.normals(mixes * hc * width, 0.05f);
      const std::vector<float> base = random.normals(mixes), post = random.normals(tokens * hc);
      const std::vector<float> comb = random.normals(tokens * hc * hc, 0.3f);
      std::vector<float> expected;
      for (const auto& ops : backends())
        for (const bool fused : {false, true}) {
          const Floats streams(*ops, {tokens, hc, width}, x), sub(*ops, {tokens, width}, f);
          const Floats w(*ops, {mixes, hc * width}, fn), b(*ops, {mixes}, base);
          const Floats scale(*ops, {3}, {0.7f, 0.8f, 0.9f}), weight(*ops, {width}, norm);
          const Floats p(*ops, {tokens, hc}, post), c(*ops, {tokens, hc, hc}, comb);
          const Floats out(*ops, {tokens, width});
          const op::HcPostPreNorm args{
              .post = {.f = sub, .post = p, .comb = c, .streams = streams},
              .next = {.pre = {.streams = streams,
                               .weights = {.fn = w, .base = b, .scale = scale},
                               .sinkhorn_iters = 20,
                               .hc_eps = 1e-6f,
                               .norm_eps = 1e-6f,
                               .out = out,
                               .post = p,
                               .comb = c},
                       .norm_weight = weight,
                       .eps = 1e-6f}};
          in_step([&] {
            if (fused)
              ops->hc_post_pre_norm(args);
            else
              ops->Ops::hc_post_pre_norm(args);
          });
          std::vector<float> found = streams.values();
          for (const Floats* part : {&out, &p, &c}) {
            const std::vector<float> values = part->values();
            found.insert(found.end(), values.begin(), values.end());
          }
          if (expected.empty()) expected = found;
          EXPECT_TRUE(same_bits(found, expected))
              << ops->pool().threads() << " threads, " << tokens << " tokens, fused " << fused;
        }
    }
}

TEST_P(CpuSharing, ExpertsOnSeveralNodes) {
  const MatrixKind& kind = *std::ranges::find_if(
      kMatrixKinds, [](const auto& k) { return k.format == WeightFormat::kNvfp4; });
  const std::int64_t experts = 4, hidden = 512, inner = 288, tokens = 12, k = 2;
  std::vector<std::unique_ptr<RandomMatrix>> matrices;
  for (unsigned i = 0; i < 3 * experts; ++i)
    matrices.push_back(std::make_unique<RandomMatrix>(kind, i % 3 == 2 ? hidden : inner,
                                                      i % 3 == 2 ? inner : hidden, i));
  Random random(10);
  const std::vector<float> x = random.normals(tokens * hidden), w = random.normals(tokens * k);
  const std::vector<std::int32_t> chosen = random.integers(tokens * k, experts);
  std::vector<float> expected;
  for (const auto& ops : backends()) {
    const auto packed = ops->make_experts("experts", experts, hidden, inner);
    for (std::size_t e = 0; e < static_cast<std::size_t>(experts); ++e)
      ops->pack_expert(*packed, static_cast<std::int64_t>(e), matrices[3 * e]->view(),
                       matrices[3 * e + 1]->view(), matrices[3 * e + 2]->view());
    ops->reserve(roomy_limits());
    const Step step(*ops, std::vector<Chunk>(static_cast<std::size_t>(tokens), {.slot = 0}), 1, 1);
    const Floats in(*ops, {tokens, hidden}, x), weights(*ops, {tokens, k}, w);
    const Floats out(*ops, {tokens, hidden},
                     std::vector<float>(static_cast<std::size_t>(tokens * hidden)));
    const Ints ids(*ops, {tokens, k}, chosen);
    in_step([&] {
      ops->experts({.batch = step.batch(),
                    .x = in,
                    .ids = ids,
                    .weights = weights,
                    .w = packed.get(),
                    .limit = 10,
                    .activations = ExpertActivations::kInt8,
                    .out = out});
    });
    if (expected.empty()) expected = out.values();
    EXPECT_TRUE(same_bits(out.values(), expected)) << ops->pool().groups() << " nodes";
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, CpuSharing, ::testing::ValuesIn(usable_isas()), [](const auto& test) {
  std::string name(name_of(test.param));
  std::erase(name, '-');
  return name;
});

}  // namespace
}  // namespace quatrain::testing

// SPDX-License-Identifier: Apache-2.0
// Random models and their MTP block against a forward pass in double precision.
#include "support/loaded_model.h"
#include "support/op_harness.h"
#include "support/reference_model.h"

namespace quatrain::testing {
namespace {

constexpr std::int64_t kTokens = 300;

EngineOptions options(bool mtp = false) {
  EngineOptions o;
  o.max_model_len = 512;
  o.max_num_batched_tokens = kTokens;
  o.max_logit_rows = kTokens;
  o.mtp = mtp;
  return o;
}

void expect_logits(std::span<const float> found, const std::vector<reference::Row>& expected) {
  std::vector<double> flat;
  for (const reference::Row& row : expected) flat.insert(flat.end(), row.begin(), row.end());
  expect_close(found, flat, 2e-4);
}

TinyShape shape_with(std::vector<std::int64_t> ratios, std::int64_t mtp = 0) {
  TinyShape shape;
  shape.ratios = std::move(ratios);
  shape.mtp_layers = mtp;
  return shape;
}

class RandomModels : public ::testing::TestWithParam<std::vector<std::int64_t>> {};

TEST_P(RandomModels, LogitsMatchDoublePrecision) {
  const RandomModel model(shape_with(GetParam()), 3);
  const std::vector<std::int32_t> ids = Random(5).integers(kTokens, model.shape().vocab);
  LoadedModel loaded(model.write(), options());
  expect_logits(loaded.logits(ids, {kTokens}), reference::Model(model).run(ids).logits);
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, RandomModels,
    ::testing::Values(std::vector<std::int64_t>{0}, std::vector<std::int64_t>{4},
                      std::vector<std::int64_t>{128}, std::vector<std::int64_t>{0, 4, 128}),
    [](const auto& test) { return fmt::format("ratios{}", fmt::join(test.param, "_")); });

// Odd extents everywhere: two shared experts, one head per group, three streams.
TEST(RandomModel, OddShapeMatchesDoublePrecision) {
  TinyShape shape;
  shape.hidden = 37;
  shape.inner = 19;
  shape.heads = 3;
  shape.head_dim = 21;
  shape.rope_dim = 6;
  shape.q_lora = 13;
  shape.o_groups = 3;
  shape.o_lora = 5;
  shape.window = 29;
  shape.ratios = {4, 0, 4, 128};
  shape.hash_layers = 2;
  shape.experts = 9;
  shape.shared_experts = 2;
  shape.experts_per_token = 4;
  shape.hc = 3;
  shape.index_heads = 5;
  shape.index_dim = 11;
  shape.index_topk = 3;
  const RandomModel model(shape, 8);
  const std::vector<std::int32_t> ids = Random(6).integers(150, shape.vocab);
  LoadedModel loaded(model.write(), options());
  expect_logits(loaded.logits(ids, {150}), reference::Model(model).run(ids).logits);
}

TEST(Mtp, LogitsMatchDoublePrecisionInAnyChunks) {
  const RandomModel model(shape_with({0, 4}, 1), 4);
  const std::vector<std::int32_t> ids = Random(7).integers(200, model.shape().vocab);
  const std::vector<reference::Row> expected = reference::Model(model).run_mtp(ids);
  const std::filesystem::path folder = model.write();
  for (const std::int64_t chunk : {199, 64, 1}) {
    LoadedModel loaded(folder, options(true), 1);
    loaded.runner->cache().poison(loaded.check);
    std::vector<float> logits;
    for (std::int64_t begin = 0; begin < 199; begin += chunk) {
      const auto at = static_cast<std::size_t>(begin);
      const auto n = static_cast<std::size_t>(std::min(chunk, 199 - begin));
      const SequenceChunk step{
          .slot = 0, .position = begin, .tokens = std::span(ids).subspan(at, n)};
      loaded.runner->step({&step, 1});
      const auto rows = loaded.runner->step_mtp(0, std::span(ids).subspan(at + 1, n));
      logits.insert(logits.end(), rows.begin(), rows.end());
    }
    expect_logits(logits, expected);
  }
}

TEST(Mtp, LeavesTheBackboneAlone) {
  const RandomModel model(shape_with({0, 4, 128}, 1), 4);
  const std::vector<std::int32_t> ids = Random(7).integers(40, model.shape().vocab);
  const std::filesystem::path folder = model.write();
  LoadedModel with(folder, options(true), 1), without(folder, options(false), 1);
  for (std::size_t t = 0; t + 1 < ids.size(); ++t) {
    const SequenceChunk step{.slot = 0,
                             .position = static_cast<std::int64_t>(t),
                             .tokens = std::span(ids).subspan(t, 1)};
    const auto a = with.runner->step({&step, 1});
    const std::vector<float> logits(a.begin(), a.end());
    with.runner->step_mtp(0, std::span(ids).subspan(t + 1, 1));
    const auto b = without.runner->step({&step, 1});
    EXPECT_TRUE(same_bits(logits, std::vector<float>(b.begin(), b.end())));
  }
}

TEST(Mtp, WrongUseIsRefused) {
  const RandomModel model(shape_with({0}, 1), 4);
  const RandomModel bare(shape_with({0}, 0), 4);
  EXPECT_THROW(LoadedModel(bare.write(), options(true)), Error);
  LoadedModel loaded(model.write(), options(true));
  const std::vector<std::int32_t> ids = {1, 2, 3};
  const SequenceChunk step{.slot = 0, .position = 0, .tokens = ids};
  loaded.runner->step({&step, 1});
  EXPECT_THROW(loaded.runner->step_mtp(0, std::span(ids).first(2)), Error);
  EXPECT_THROW(loaded.runner->step_mtp(1, ids), Error);
  EXPECT_NO_THROW(loaded.runner->step_mtp(0, ids));
}

}  // namespace
}  // namespace quatrain::testing

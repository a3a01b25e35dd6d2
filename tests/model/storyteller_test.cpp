// SPDX-License-Identifier: Apache-2.0
// A real trained model: losses and greedy text against Hugging Face transformers in FP32.
#include <simdjson.h>

#include <numeric>

#include "apps/perplexity.h"
#include "runtime/session.h"
#include "support/loaded_model.h"

namespace quatrain::testing {
namespace {

constexpr std::size_t kWindow = 1024;

const char* kShippedModel = QUATRAIN_SOURCE_DIR "/models/storyteller-nvfp4";

EngineOptions window_options() {
  EngineOptions o;
  o.max_model_len = kWindow;
  o.max_num_batched_tokens = o.max_logit_rows = 128;
  return o;
}

class Storyteller : public ::testing::Test {
 protected:
  Storyteller()
      : bf16(folder_from_env("QUATRAIN_STORYTELLER_BF16")),
        golden(QUATRAIN_SOURCE_DIR "/tests/golden/storyteller/windows.safetensors"),
        windows(golden.ints("windows")),
        nll(golden.floats("nll")) {}

  double loss(ModelRunner& runner, std::size_t window) const {
    const std::span<const std::int32_t> ids =
        std::span(windows).subspan(window * (kWindow + 1), kWindow + 1);
    const std::vector<double> losses =
        apps::window_losses(runner, ids.first(kWindow), ids.last(kWindow));
    return std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(kWindow);
  }

  std::filesystem::path bf16;
  Golden golden;
  std::vector<std::int32_t> windows;  // [24, 1025]
  std::vector<float> nll;             // [24]
};

TEST_F(Storyteller, Nvfp4LosesAtMostAHundredthOfANat) {
  LoadedModel model(kShippedModel, window_options());
  const std::size_t step = bf16.empty() ? 6 : 1;  // a quarter of the windows without the BF16 model
  double found = 0, wanted = 0;
  for (std::size_t w = 0; w < nll.size(); w += step) {
    found += loss(*model.runner, w);
    wanted += nll[w];
  }
  const double count = static_cast<double>((nll.size() + step - 1) / step);
  RecordProperty("nats_nvfp4", fmt::format("{}", found / count));
  RecordProperty("nats_bf16", fmt::format("{}", wanted / count));
  EXPECT_LE(found / count, wanted / count + 0.01);
}

// Rounding the inputs of the experts to int8 must cost next to nothing against exact ones.
TEST_F(Storyteller, Int8ExpertInputsCostAtMostThreeThousandthsOfANat) {
  constexpr std::size_t kWindows = 8;
  double nats[2] = {};
  for (const auto mode : {ExpertActivations::kFull, ExpertActivations::kInt8}) {
    EngineOptions options = window_options();
    options.numerics.expert_activations = mode;
    LoadedModel model(kShippedModel, options);
    for (std::size_t w = 0; w < kWindows; ++w)
      nats[mode == ExpertActivations::kInt8 ? 1 : 0] += loss(*model.runner, w) / kWindows;
  }
  RecordProperty("nats_fp32", fmt::format("{}", nats[0]));
  RecordProperty("nats_int8", fmt::format("{}", nats[1]));
  EXPECT_NE(nats[1], nats[0]) << "int8 was not used";
  EXPECT_LE(nats[1], nats[0] + 0.003);
}

TEST_F(Storyteller, Bf16WindowLossesAreThoseOfTransformers) {
  if (bf16.empty()) GTEST_SKIP() << "QUATRAIN_STORYTELLER_BF16 does not name the BF16 model";
  LoadedModel model(bf16, window_options());
  double worst = 0;
  for (std::size_t w = 0; w < nll.size(); ++w) {
    const double difference = std::abs(loss(*model.runner, w) - nll[w]);
    EXPECT_LE(difference, 1e-3) << "window " << w;
    worst = std::max(worst, difference);
  }
  RecordProperty("worst_difference", fmt::format("{}", worst));
}

// Token for token, up to the first step at which the two best logits were closer than 0.01.
TEST_F(Storyteller, Bf16GreedyTextIsThatOfTransformers) {
  if (bf16.empty()) GTEST_SKIP() << "QUATRAIN_STORYTELLER_BF16 does not name the BF16 model";
  EngineOptions options;
  options.max_model_len = 512;
  LoadedModel model(bf16, options);
  simdjson::dom::parser parser;
  const simdjson::dom::element cases = parser.load((bf16 / "greedy.json").string());
  for (const simdjson::dom::element one : cases.get_array()) {
    std::vector<std::int32_t> timeline;
    for (const auto id : one["prompt_ids"].get_array())
      timeline.push_back(static_cast<std::int32_t>(id.get_int64().value()));
    Session session(*model.runner);
    std::span<const float> logits = session.feed(timeline);
    auto gap = one["gaps"].get_array().begin();
    std::size_t compared = 0;
    for (const auto id : one["greedy_ids"].get_array()) {
      if ((*gap).get_double().value() < 0.01) break;
      const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
      ASSERT_EQ(best, id.get_int64().value())
          << one["prompt"].get_string().value() << " token " << compared;
      logits = session.append(static_cast<std::int32_t>(best));
      ++compared;
      ++gap;
    }
    EXPECT_GT(compared, 0u);
    RecordProperty(fmt::format("tokens_compared_{}", timeline.size()), static_cast<int>(compared));
  }
}

}  // namespace
}  // namespace quatrain::testing

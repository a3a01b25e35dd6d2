// SPDX-License-Identifier: Apache-2.0
// Synthetic models: published dimensions, the same bytes however they are read, sane activations.
#include "model/synthetic.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "backends/cpu/cpu_ops.h"
#include "model/checkpoint_check.h"
#include "model/weight_table.h"
#include "runtime/model_runner.h"
#include "support/random_model.h"

namespace quatrain {
namespace {

using Ratios = std::vector<std::int64_t>;

std::vector<std::byte> bytes_of(const ModelSource& model, const std::string& name) {
  const TensorInfo* tensor = model.checkpoint.find(name);
  if (tensor == nullptr) fail("no tensor '{}'", name);
  std::vector<std::byte> out(static_cast<std::size_t>(tensor->bytes));
  model.checkpoint.read(*tensor, out);
  return out;
}

TEST(Synthetic, FewLayersHoldEveryKind) {
  const Ratios flash = synthetic_config("flash", 0).compress_ratios;
  const Ratios pro = synthetic_config("pro", 0).compress_ratios;
  EXPECT_EQ(synthetic_ratios(flash, 1), Ratios({4}));
  EXPECT_EQ(synthetic_ratios(flash, 2), Ratios({4, 128}));
  EXPECT_EQ(synthetic_ratios(flash, 3), Ratios({0, 4, 128}));
  EXPECT_EQ(synthetic_ratios(flash, 5), Ratios({0, 4, 128, 4, 128}));
  EXPECT_EQ(synthetic_ratios(pro, 3), Ratios({128, 4, 128}));
}

TEST(Synthetic, FullDepthIsThePublishedSchedule) {
  const V4Config flash = synthetic_config("flash", 0), pro = synthetic_config("pro", 0);
  const auto count = [](const V4Config& c, std::int64_t ratio) {
    return std::ranges::count(c.compress_ratios, ratio);
  };
  EXPECT_EQ(flash.num_layers, 43);
  EXPECT_EQ(count(flash, 0), 2);
  EXPECT_EQ(count(flash, 4), 21);
  EXPECT_EQ(count(flash, 128), 20);
  EXPECT_EQ(pro.num_layers, 61);
  EXPECT_EQ(count(pro, 0), 0);
  EXPECT_EQ(count(pro, 4), 30);
  EXPECT_EQ(count(pro, 128), 31);
  EXPECT_EQ(pro.index_topk, 1024);
  EXPECT_EQ(flash.num_hash_layers, 3);
}

// The published NVFP4 repositories hold 135,235 and 285,660 tensors, of which the MTP block, with
// MXFP4 experts, has 39 and two for each of its expert's linears.
TEST(Synthetic, FullModelsHaveThePublishedNumberOfTensors) {
  EXPECT_EQ(synthetic_model("flash", 0).checkpoint.tensors().size(), 135235u - 39 - 256 * 3 * 2);
  EXPECT_EQ(synthetic_model("pro", 0).checkpoint.tensors().size(), 285660u - 39 - 384 * 3 * 2);
}

TEST(Synthetic, BytesDoNotDependOnHowTheyAreRead) {
  const ModelSource model = synthetic_model("storyteller", 3);
  const ModelSource again = synthetic_model("storyteller", 3);
  for (const char* name :
       {"embed.weight", "head.weight", "layers.1.ffn.experts.3.w1.weight",
        "layers.1.ffn.experts.3.w1.weight_scale", "layers.1.ffn.experts.3.w1.weight_scale_2",
        "layers.0.attn.wq_b.weight", "layers.0.attn.wq_b.scale", "layers.0.hc_attn_fn",
        "layers.0.attn_norm.weight", "layers.0.ffn.gate.tid2eid"}) {
    const TensorInfo& tensor = *model.checkpoint.find(name);
    const std::vector<std::byte> whole = bytes_of(model, name);
    EXPECT_EQ(whole, bytes_of(again, name)) << name;
    // In pieces of odd lengths, which cut elements.
    std::vector<std::byte> pieces(whole.size());
    for (std::size_t at = 0, length = 1; at < whole.size(); length = length * 2 + 1) {
      const std::size_t n = std::min(length, whole.size() - at);
      TensorInfo part = tensor;
      part.offset += static_cast<std::int64_t>(at);
      part.bytes = static_cast<std::int64_t>(n);
      model.checkpoint.read(part, std::span(pieces).subspan(at, n));
      at += n;
    }
    EXPECT_EQ(whole, pieces) << name;
  }
}

TEST(Synthetic, TensorsDiffer) {
  const ModelSource model = synthetic_model("storyteller", 3);
  EXPECT_NE(bytes_of(model, "layers.1.ffn.experts.3.w1.weight"),
            bytes_of(model, "layers.1.ffn.experts.4.w1.weight"));
  EXPECT_NE(bytes_of(model, "layers.1.attn.wq_a.weight"),
            bytes_of(model, "layers.2.attn.wq_a.weight"));
}

TEST(Synthetic, WeightsKeepTheSizeOfTheirInput) {
  const ModelSource model = synthetic_model("storyteller", 3);
  for_each_weight(model.config, false, [&](const WeightEntry& entry) {
    if (!entry.is_linear() || entry.kind == WeightKind::kEmbedding) return;
    const LoadedLinear w =
        model.checkpoint.load(model.checkpoint.linear(entry.name, entry.shape[0], entry.shape[1]));
    std::vector<float> row(static_cast<std::size_t>(entry.shape[1]));
    double squares = 0;
    for (std::int64_t r = 0; r < entry.shape[0]; ++r) {
      decode_row(w.matrix, r, row.data());
      for (const float x : row) squares += double{x} * double{x};
    }
    // Of y = W x for x of deviation 1.
    const double deviation = std::sqrt(squares / static_cast<double>(entry.shape[0]));
    EXPECT_GT(deviation, 0.4) << entry.name;
    EXPECT_LT(deviation, 2.5) << entry.name;
  });
}

TEST(Synthetic, HashTablesHoldDistinctExperts) {
  const ModelSource model = synthetic_model("storyteller", 6);
  const std::int64_t k = model.config.experts_per_token;
  const std::int64_t shape[] = {model.config.vocab_size, k};
  const auto ids = model.checkpoint.read_ints("layers.0.ffn.gate.tid2eid", shape);
  for (std::size_t row = 0; row < ids.size(); row += static_cast<std::size_t>(k)) {
    std::set<std::int64_t> distinct(ids.begin() + static_cast<std::ptrdiff_t>(row),
                                    ids.begin() + static_cast<std::ptrdiff_t>(row) + k);
    ASSERT_EQ(std::ssize(distinct), k);
    ASSERT_GE(*distinct.begin(), 0);
    ASSERT_LT(*distinct.rbegin(), model.config.num_experts);
  }
}

TEST(Synthetic, RunsWithLogitsOfOrderOne) {
  CpuOps cpu(2);
  EngineOptions options;
  options.max_model_len = 300;
  options.max_num_batched_tokens = 300;
  ModelRunner runner(cpu, synthetic_model("storyteller", 5), options);
  std::vector<std::int32_t> tokens(300);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i * 13);
  const SequenceChunk chunk{.tokens = tokens};
  double squares = 0;
  const auto logits = runner.step({&chunk, 1});
  for (const float x : logits) {
    ASSERT_TRUE(std::isfinite(x));
    squares += double{x} * double{x};
  }
  const double rms = std::sqrt(squares / static_cast<double>(logits.size()));
  EXPECT_GT(rms, 0.2);
  EXPECT_LT(rms, 5);
}

TEST(Synthetic, UnknownNamesAndDepthsAreRefused) {
  EXPECT_THROW(synthetic_model("flush", 1), Error);
  EXPECT_THROW(synthetic_model("flash", 44), Error);
  EXPECT_THROW(synthetic_model("flash", -1), Error);
}

TEST(CheckpointCheck, AcceptsWholeModels) {
  for (const bool data : {false, true}) {
    const ModelSource model = synthetic_model("storyteller", 3);
    std::int64_t bytes = 0, total = 0;
    for (const TensorInfo& tensor : model.checkpoint.tensors()) total += tensor.bytes;
    const CheckpointCheck check =
        data ? check_checkpoint_data(model, [&](std::int64_t n) { bytes += n; })
             : check_checkpoint_headers(model);
    EXPECT_EQ(check.expert_linears, 3 * 24 * 3);
    EXPECT_EQ(check.unequal_pairs, 0);
    EXPECT_EQ(check.files, 1);
    EXPECT_EQ(bytes, data ? total : 0) << "every tensor is read once";
  }
}

TEST(CheckpointCheck, NamesWhatIsMissingExtraOrMisshapen) {
  const auto message = [](testing::RandomModel& model) {
    try {
      check_checkpoint_headers(open_model(model.write()));
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  testing::RandomModel whole, missing, extra, misshapen;
  EXPECT_EQ(message(whole), "");
  missing.erase("layers.1.attn.q_norm.weight");
  EXPECT_NE(message(missing).find("layers.1.attn.q_norm.weight"), std::string::npos);
  extra.put("layers.1.attn.k_norm.weight", {2}, {1, 1});
  EXPECT_NE(message(extra).find("layers.1.attn.k_norm.weight"), std::string::npos);
  misshapen.put("norm.weight", {3}, {1, 1, 1});
  EXPECT_NE(message(misshapen).find("expected shape [48], found [3]"), std::string::npos);
}

TEST(CheckpointCheck, FindsBadValuesOnlyWhenItReadsThem) {
  testing::RandomModel model;
  model.floats("layers.0.attn.wq_a.weight")[5] = std::nanf("");
  const ModelSource source = open_model(model.write());
  EXPECT_NO_THROW(check_checkpoint_headers(source));
  EXPECT_THROW(check_checkpoint_data(source, [](std::int64_t) {}), Error);
}

}  // namespace
}  // namespace quatrain

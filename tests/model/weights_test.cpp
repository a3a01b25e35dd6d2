// SPDX-License-Identifier: Apache-2.0
// load_weights: what does not match the architecture is refused with file, tensor, expected and
// found.
#include "model/weights.h"

#include "checkpoint/checkpoint.h"
#include "model/deepseek_v4.h"
#include "support/op_harness.h"
#include "support/random_model.h"

namespace quatrain::testing {
namespace {

ModelWeights load(const RandomModel& model, bool mtp = false) {
  static CpuOps ops(1);
  const std::filesystem::path folder = model.write();
  const V4Config config = read_config(folder);
  return load_weights(Checkpoint::open(folder), config, ops,
                      {.mtp = mtp, .fp8_expert_inputs = false, .progress = {}});
}

void expect_refused(const RandomModel& model, std::initializer_list<const char*> parts,
                    bool mtp = false) {
  try {
    load(model, mtp);
    ADD_FAILURE() << "expected an Error with \"" << *parts.begin() << "\"";
  } catch (const Error& error) {
    const std::string message = error.what();
    for (const char* part : parts)
      EXPECT_NE(message.find(part), message.npos)
          << "\"" << message << "\" lacks \"" << part << "\"";
  }
}

TinyShape quantised() {
  TinyShape shape;
  shape.quantised = true;
  return shape;
}

TEST(Weights, LoadWithTheirShapesAndNames) {
  const RandomModel model;
  const TinyShape& s = model.shape();
  const ModelWeights w = load(model);
  ASSERT_EQ(w.layers.size(), 3u);
  EXPECT_EQ(w.embed.describe(), "F32 [61, 48]");
  EXPECT_EQ(w.head->rows, s.vocab);
  EXPECT_EQ(w.layers[1].attn.wq_b->name, "layers.1.attn.wq_b");
  EXPECT_EQ(w.layers[1].attn.wq_b->rows, s.heads * s.head_dim);
  EXPECT_EQ(w.layers[1].attn.indexer.compressor.wkv->rows, 2 * s.index_dim);
  EXPECT_EQ(w.layers[2].attn.compressor.ape.describe(), "F32 [128, 32]");
  EXPECT_EQ(w.layers[0].attn.compressor.wkv, nullptr) << "no compressor in window layers";
  EXPECT_EQ(w.layers[2].attn.indexer.wq_b, nullptr) << "no indexer in HCA layers";
  EXPECT_TRUE(w.layers[0].ffn.hash_table);
  EXPECT_FALSE(w.layers[0].ffn.bias);
  EXPECT_TRUE(w.layers[1].ffn.bias);
  EXPECT_FALSE(w.layers[1].ffn.hash_table);
  EXPECT_EQ(w.layers[1].ffn.experts->count, s.experts);
  EXPECT_FALSE(w.layers[1].ffn.experts->has_input_scales);
}

TEST(Weights, QuantisedFormatsAreFoundPerTensor) {
  const RandomModel model(quantised());
  const ModelWeights w = load(model);
  EXPECT_EQ(w.embed.dtype(), DType::kBF16);
  EXPECT_EQ(w.layers[0].attn.wkv->format, WeightFormat::kFp8Block);
  EXPECT_EQ(w.layers[0].ffn.shared_w2->format, WeightFormat::kFp8Block);
  EXPECT_EQ(w.layers[1].attn.compressor.wkv->format, WeightFormat::kDense);
  EXPECT_TRUE(w.layers[0].ffn.experts->has_input_scales);
  const std::int64_t values = 48 * 32 / 2, scales = 48 * 32 / 16;
  EXPECT_EQ(w.layers[0].ffn.experts->bytes, 6 * 3 * (values + scales));
}

TEST(Weights, ProgressCountsEveryByteOnce) {
  for (const bool mtp : {false, true}) {
    TinyShape shape = quantised();
    shape.mtp_layers = 1;
    const RandomModel model(shape);
    const std::filesystem::path folder = model.write();
    const Checkpoint checkpoint = Checkpoint::open(folder);
    std::int64_t all = 0, last = 0, promised = 0;
    for (const TensorInfo& t : checkpoint.tensors())
      if (mtp || !t.name.starts_with("mtp.")) all += t.bytes;
    CpuOps ops(1);
    const V4Config config = read_config(folder);
    load_weights(checkpoint, config, ops,
                 {.mtp = mtp, .fp8_expert_inputs = false, .progress = [&](auto done, auto total) {
                    EXPECT_GT(done, last);
                    last = done;
                    promised = total;
                  }});
    EXPECT_EQ(last, all);
    EXPECT_EQ(promised, all);
  }
}

TEST(Weights, EveryMissingTensorIsNamed) {
  TinyShape shape;
  shape.mtp_layers = 1;
  shape.experts = 2;
  RandomModel complete(shape);
  for (const std::string& name : complete.names()) {
    RandomModel model(shape);
    model.erase(name);
    const std::string quoted = fmt::format("'{}'", name);
    expect_refused(model, {quoted.c_str(), "missing"}, true);
  }
}

TEST(Weights, ExtraTensorsAreRefusedButMtpIsTolerated) {
  RandomModel model;
  model.put("mtp.0.something.weight", {3}, {1, 2, 3});
  EXPECT_NO_THROW(load(model));
  model.put("layers.0.attn.extra.weight", {2, 2}, {1, 2, 3, 4});
  model.put("layers.7.attn_norm.weight", {2}, {1, 2});
  expect_refused(model, {"model.safetensors", "layers.0.attn.extra.weight", "2 such tensors"});
}

TEST(Weights, TensorsOfAnotherLayerKindAreRefused) {
  RandomModel bias;  // layer 0 routes by hash
  bias.put("layers.0.ffn.gate.bias", {6}, std::vector<float>(6, 0));
  expect_refused(bias, {"layers.0.ffn.gate.bias"});
  RandomModel learned;
  learned.set_config("num_hash_layers", "0");
  expect_refused(learned, {"layers.0.ffn.gate.bias", "missing"});
  RandomModel hash;
  hash.set_config("num_hash_layers", "2");
  expect_refused(hash, {"layers.1.ffn.gate.tid2eid", "missing"});
  RandomModel ratios;
  ratios.set_config("compress_ratios", "[0, 128, 128]");
  expect_refused(ratios, {"layers.1.attn.compressor", "expected", "found"});
}

TEST(Weights, MisshapedTensorsTellBothShapes) {
  struct Case {
    const char* name;
    std::vector<std::int64_t> shape;
    const char *expected, *found;
  };
  const Case cases[] = {
      {"norm.weight", {47}, "48", "47"},
      {"layers.0.hc_attn_fn", {24, 191}, "[24, 192]", "[24, 191]"},
      {"layers.1.attn.attn_sink", {5}, "4", "5"},
      {"layers.1.attn.compressor.ape", {8, 32}, "[4, 64]", "[8, 32]"},
      {"layers.2.attn.wq_a.weight", {21, 48}, "[20, 48]", "[21, 48]"},
      {"layers.2.ffn.gate.weight", {48, 6}, "[6, 48]", "[48, 6]"},
      {"layers.2.ffn.experts.3.w2.weight", {32, 48}, "[48, 32]", "[32, 48]"},
      {"head.weight", {60, 48}, "[61, 48]", "[60, 48]"},
      {"embed.weight", {61, 48, 1}, "[61, 48]", "[61, 48, 1]"},
  };
  for (const Case& c : cases) {
    RandomModel model;
    std::int64_t n = 1;
    for (const std::int64_t extent : c.shape) n *= extent;
    model.put(c.name, c.shape, std::vector<float>(static_cast<std::size_t>(n), 0.5f));
    expect_refused(model, {"model.safetensors", c.name, c.expected, c.found});
  }
}

TEST(Weights, HashTableNamesOnlyExpertsThatExist) {
  for (const std::int64_t bad : {std::int64_t{-1}, std::int64_t{6}, std::int64_t{1} << 32}) {
    RandomModel model;
    model.ints("layers.0.ffn.gate.tid2eid")[17] = bad;
    const std::string expert = fmt::format("expert {}", bad);
    expect_refused(model, {"model.safetensors", "layers.0.ffn.gate.tid2eid", expert.c_str(),
                           "element 17", "[0, 6)"});
  }
}

TEST(Weights, StaticActivationsNeedEveryInputScale) {
  const Numerics fixed{.sim = false, .expert_activations = ExpertActivations::kStatic};
  const auto build = [&](const RandomModel& model, bool mtp) {
    const ModelWeights w = load(model, mtp);
    const V4Config config = read_config(model.write());
    DeepseekV4(config, w, fixed);
  };
  RandomModel complete(quantised());
  EXPECT_NO_THROW(build(complete, false));
  RandomModel partial(quantised());
  partial.erase("layers.2.ffn.experts.5.w2.input_scale");
  try {
    build(partial, false);
    ADD_FAILURE() << "expected an Error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("layers.2.ffn.experts"), std::string::npos)
        << error.what();
    EXPECT_NE(std::string(error.what()).find("input_scale"), std::string::npos) << error.what();
  }
  // The MTP block has experts of its own, and published ones lack the scale.
  TinyShape shape = quantised();
  shape.mtp_layers = 1;
  RandomModel drafter(shape);
  drafter.erase("mtp.0.ffn.experts.1.w3.input_scale");
  EXPECT_NO_THROW(build(drafter, false));
  EXPECT_THROW(build(drafter, true), Error);
}

TEST(Weights, Fp8LinearActivationsNeedFp8Blocks) {
  const Numerics fp8{
      .sim = false, .expert_activations = {}, .linear_activations = LinearActivations::kFp8};
  const auto build = [&](const RandomModel& model) {
    const ModelWeights w = load(model);
    const V4Config config = read_config(model.write());
    DeepseekV4(config, w, fp8);
  };
  EXPECT_NO_THROW(build(RandomModel(quantised())));
  try {
    build(RandomModel());
    ADD_FAILURE() << "expected an Error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("layers.0.attn.wq_a: FP8 linear activations need"),
              std::string::npos)
        << error.what();
  }
}

// The first matrix in the order of loading is named.
TEST(Weights, Fp8ExpertInputsNeedScalesThatArePowersOfTwo) {
  const RandomModel model(quantised());
  const V4Config config = read_config(model.write());
  CpuOps ops(1);
  try {
    load_weights(Checkpoint::open(model.write()), config, ops,
                 {.mtp = false, .fp8_expert_inputs = true, .progress = {}});
    ADD_FAILURE() << "expected an Error";
  } catch (const Error& error) {
    for (const char* part : {"layers.0.ffn.experts.0.w1", "row 0", "columns", "powers of two"})
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

// Widths that the model takes in full precision but no grid of blocks fits.
TEST(Weights, RoundingNeedsWidthsThatItsBlocksDivide) {
  TinyShape shape;
  shape.hidden = 44;
  shape.index_dim = 12;
  const RandomModel model(shape);
  const ModelWeights w = load(model);
  const V4Config config = read_config(model.write());
  EXPECT_NO_THROW(DeepseekV4(config, w, {}));
  EXPECT_THROW(DeepseekV4(config, w, {.sim = true, .expert_activations = {}}), Error);
  EXPECT_THROW(
      DeepseekV4(config, w, {.sim = false, .expert_activations = ExpertActivations::kNvfp4}),
      Error);
}

}  // namespace
}  // namespace quatrain::testing

// SPDX-License-Identifier: Apache-2.0
// config.json: every spelling, every refusal.
#include "model/config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "checkpoint/scratch.h"

namespace quatrain::test {
namespace {

using nlohmann::json;

/// A small model in the official spelling.
json official() { return json::parse(kOfficialConfig); }

/// The same model as transformers writes it.
json transformers() {
  json c = official();
  for (const char* key : {"compress_ratios", "num_hash_layers", "rope_scaling", "topk_method"})
    c.erase(key);
  c["layer_types"] = {"sliding_attention",           "heavily_compressed_attention",
                      "compressed_sparse_attention", "heavily_compressed_attention",
                      "compressed_sparse_attention", "compressed_sparse_attention"};
  c["compress_rates"] = {{"compressed_sparse_attention", 4}, {"heavily_compressed_attention", 128}};
  c["mlp_layer_types"] = {"hash_moe", "hash_moe", "moe", "moe", "moe", "moe"};
  c["partial_rotary_factor"] = 0.5;
  c["pad_token_id"] = nullptr;
  c["rope_parameters"] = json::parse(R"({
    "main": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    "compress": {"rope_type": "yarn", "rope_theta": 160000.0, "factor": 4.0, "beta_fast": 32,
                 "beta_slow": 1, "attention_factor": 1.0,
                 "original_max_position_embeddings": 64}})");
  return c;
}

V4Config parse(const json& c) { return parse_config(c.dump(), "config.json"); }

std::string refusal(const json& c) {
  return message_of([&] { parse(c); });
}

json with(json c, const std::string& key, const json& value) {
  c[key] = value;
  return c;
}

json without(json c, const std::string& key) {
  c.erase(key);
  return c;
}

void expect_model(const V4Config& c) {
  EXPECT_EQ(c.vocab_size, 512);
  EXPECT_EQ(c.hidden_size, 128);
  EXPECT_EQ(c.moe_intermediate_size, 64);
  EXPECT_EQ(c.num_layers, 6);
  EXPECT_EQ(c.rope_dim, 64);
  EXPECT_EQ(c.compress_ratios, (std::vector<std::int64_t>{0, 128, 4, 128, 4, 4, 0}));
  EXPECT_EQ(c.num_hash_layers, 2);
  EXPECT_TRUE(c.is_hash_layer(1));
  EXPECT_FALSE(c.is_hash_layer(2));
  EXPECT_EQ(c.num_experts, 8);
  EXPECT_EQ(c.experts_per_token, 3);
  EXPECT_EQ(c.routed_scaling_factor, 1.5);
  EXPECT_EQ(c.swiglu_limit, 10.0);
  EXPECT_EQ(c.rope_theta, 10000.0);
  EXPECT_EQ(c.compress_rope_theta, 160000.0);
  ASSERT_TRUE(c.has_yarn);
  EXPECT_EQ(c.yarn.factor, 4.0);
  EXPECT_EQ(c.yarn.original_max_positions, 64.0);
  EXPECT_EQ(c.yarn.beta_fast, 32.0);
  EXPECT_EQ(c.yarn.beta_slow, 1.0);
  EXPECT_EQ(c.num_mtp_layers, 1);
  EXPECT_EQ(c.eos_token_ids, (std::vector<std::int64_t>{1}));
}

TEST(Config, BothSpellingsMeanTheSame) {
  expect_model(parse(official()));
  expect_model(parse(transformers()));
}

TEST(Config, AlternativeKeys) {
  json c = without(with(official(), "n_hash_layers", 2), "num_hash_layers");
  c["rope_scaling"].erase("type");
  c["rope_scaling"]["rope_type"] = "yarn";
  c["num_local_experts"] = c["n_routed_experts"];
  c.erase("n_routed_experts");
  c["intermediate_size"] = c["moe_intermediate_size"];
  c.erase("moe_intermediate_size");
  c.erase("qk_rope_head_dim");
  c["partial_rotary_factor"] = 0.5;
  expect_model(parse(c));
}

TEST(Config, Defaults) {
  json c = official();
  for (const char* key :
       {"n_shared_experts", "hc_eps", "rms_norm_eps", "rope_theta", "compress_rope_theta",
        "num_nextn_predict_layers", "bos_token_id", "eos_token_id", "scoring_func"})
    c.erase(key);
  const V4Config config = parse(c);
  EXPECT_EQ(config.num_shared_experts, 1);
  EXPECT_EQ(config.hc_eps, 1e-6);
  EXPECT_EQ(config.num_mtp_layers, 0);
  EXPECT_EQ(config.compress_ratios.size(), 6u);
  EXPECT_FALSE(parse(with(official(), "rope_scaling", nullptr)).has_yarn);
  EXPECT_EQ(parse(with(official(), "eos_token_id", {1, 5})).eos_token_ids.size(), 2u);
  EXPECT_EQ(parse(with(official(), "swiglu_limit", 0)).swiglu_limit, 0.0);
}

// Trap 37: without the key, hash layers would silently become learned ones.
TEST(Config, Trap37MissingHashLayersIsAnError) {
  EXPECT_TRUE(contains(refusal(without(official(), "num_hash_layers")),
                       "config.json: field 'num_hash_layers' is missing"));
  EXPECT_TRUE(contains(refusal(without(transformers(), "mlp_layer_types")), "num_hash_layers"));
  EXPECT_EQ(parse(with(official(), "num_hash_layers", 0)).num_hash_layers, 0);
}

// Trap 51: the list is longer than the backbone; its length is not the number of layers.
TEST(Config, Trap51RatiosBeyondTheLayersDoNotCount) {
  json c = official();
  for (int extra = 0; extra < 4; ++extra) {
    const V4Config config = parse(c);
    EXPECT_EQ(config.num_layers, 6);
    EXPECT_EQ(config.compress_ratios.size(), 7u);  // one MTP layer
    c["compress_ratios"].push_back(0);
  }
  c = official();
  c["compress_ratios"].erase(6);  // no entry for the MTP layer
  EXPECT_EQ(parse(c).compress_ratios.back(), 0);
  c["compress_ratios"].erase(5);
  EXPECT_TRUE(contains(refusal(c), "'compress_ratios': expected at least 6 entries, found 5"));
  EXPECT_TRUE(contains(refusal(with(official(), "compress_ratios", {0, 128, 4, 128, 4, 4, 4})),
                       "'compress_ratios'[6]: expected 0 after the 6 layers"));
}

TEST(Config, UnsupportedArchitecturesAreNamed) {
  const std::vector<std::tuple<std::string, json, std::string>> cases = {
      {"model_type", "deepseek_v41", "another architecture"},
      {"model_type", "deepseek_v3", "expected \"deepseek_v4\""},
      {"scoring_func", "sigmoid", "only \"sqrtsoftplus\""},
      {"topk_method", "greedy", "only \"noaux_tc\""},
      {"hidden_act", "gelu", "only \"silu\""},
      {"tie_word_embeddings", true, "only false"},
      {"attention_bias", true, "only false"},
      {"norm_topk_prob", false, "only true"},
      {"num_key_value_heads", 2, "expected 1 to 1"},
      {"n_group", 8, "expected 1 to 1"},
      {"compress_ratios", {0, 64, 4, 4, 4, 4, 0}, "expected 0, 4 or 128, found 64"},
      {"num_hidden_layers", 1025, "expected 1 to 1024"},
      {"num_hidden_layers", 0, "expected 1 to 1024"},
      {"n_routed_experts", 4097, "expected 1 to 4096"},
      {"num_experts_per_tok", 9, "at most 8 experts"},
      {"o_groups", 3, "do not divide"},
      {"qk_rope_head_dim", 63, "even"},
      {"qk_rope_head_dim", 66, "at most head_dim"},
      {"hidden_size", "128", "expected an integer"},
      {"hidden_size", 128.5, "expected an integer"},
      {"hidden_size", -1, "expected 1 to"},
      {"vocab_size", 1e30, "expected an integer"},
      {"rms_norm_eps", "small", "expected a number"},
      {"rope_theta", 0, "expected 1 to"},
      {"eos_token_id", 512, "expected 0 to 511"},
      {"eos_token_id", json::array(), "the list is empty"},
      {"eos_token_id", {1, "x"}, "expected an integer"},
      {"num_hash_layers", 7, "expected 0 to 6"},
      {"n_hash_layers", 3, "contradict"},
      {"partial_rotary_factor", 0.25, "contradict"},
      {"partial_rotary_factor", 0.3, "not a whole number"},
      {"layer_types", {"sliding_attention"}, "at least 6"},
      {"layer_types", json(6, "sliding_attention"), "contradict"},
      {"layer_types", json(6, "full_attention"), "unknown layer type"},
      {"mlp_layer_types", json(6, "hash_moe"), "contradict"},
      {"mlp_layer_types", {"moe", "hash_moe", "moe", "moe", "moe", "moe"}, "must come first"},
      {"mlp_layer_types", {"hash_moe"}, "expected 6 entries"},
      {"mlp_layer_types", json(6, "dense"), "unknown layer type"},
      {"rope_scaling", {{"type", "linear"}, {"factor", 4}}, "only \"yarn\""},
      {"rope_scaling", {{"type", "yarn"}}, "'rope_scaling.factor' is missing"},
      {"rope_scaling", "yarn", "expected an object"},
      {"rope_parameters", json::object(), "'rope_parameters.main' is missing"},
  };
  for (const auto& [key, value, expected] : cases) {
    const std::string message = refusal(with(official(), key, value));
    EXPECT_TRUE(contains(message, expected)) << key << " = " << value;
    EXPECT_TRUE(contains(message, "config.json: ")) << key;
  }
  json c = official();
  c["rope_scaling"]["attention_factor"] = 1.2;
  EXPECT_TRUE(contains(refusal(c), "'rope_scaling.attention_factor': only 1"));
  c = transformers();
  c["rope_parameters"]["main"]["rope_theta"] = 20000.0;
  EXPECT_TRUE(contains(refusal(c), "contradict"));
  c = transformers();
  c["compress_rates"]["compressed_sparse_attention"] = 8;
  EXPECT_TRUE(contains(refusal(c), "compress_rates.compressed_sparse_attention"));
}

TEST(Config, EveryDimensionIsRequired) {
  for (const char* key : {"model_type",
                          "vocab_size",
                          "hidden_size",
                          "num_hidden_layers",
                          "moe_intermediate_size",
                          "num_attention_heads",
                          "head_dim",
                          "qk_rope_head_dim",
                          "q_lora_rank",
                          "o_groups",
                          "o_lora_rank",
                          "sliding_window",
                          "compress_ratios",
                          "n_routed_experts",
                          "num_experts_per_tok",
                          "routed_scaling_factor",
                          "swiglu_limit",
                          "hc_mult",
                          "hc_sinkhorn_iters",
                          "index_n_heads",
                          "index_head_dim",
                          "index_topk",
                          "max_position_embeddings"})
    EXPECT_TRUE(contains(refusal(without(official(), key)), "is missing")) << key;
}

TEST(Config, BrokenText) {
  const auto text = [](std::string_view t) {
    return message_of([&] { parse_config(t, "config.json"); });
  };
  EXPECT_TRUE(contains(text(""), "not valid JSON"));
  EXPECT_TRUE(contains(text("{"), "not valid JSON"));
  EXPECT_TRUE(contains(text("[]"), "expected an object"));
  EXPECT_TRUE(contains(text(R"({"model_type": "deepseek_v4", "model_type": "x"})"),
                       "'model_type' appears twice"));
  const ScratchFolder folder;
  EXPECT_TRUE(contains(message_of([&] { read_config(folder.path()); }), "cannot be opened"));
}

}  // namespace
}  // namespace quatrain::test

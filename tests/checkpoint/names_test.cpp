// SPDX-License-Identifier: Apache-2.0
// Names: both spellings of every tensor, prefixes, fused experts, collisions.
#include "checkpoint/names.h"

#include <gtest/gtest.h>

#include "checkpoint/scratch.h"

namespace quatrain::test {
namespace {

// official, transformers (without "model.")
const std::vector<std::pair<std::string, std::string>> kPairs = {
    {"embed.weight", "embed_tokens.weight"},
    {"head.weight", "lm_head.weight"},
    {"norm.weight", "norm.weight"},
    {"hc_head_fn", "hc_head.hc_fn"},
    {"hc_head_base", "hc_head.hc_base"},
    {"hc_head_scale", "hc_head.hc_scale"},
    {"layers.12.attn_norm.weight", "layers.12.input_layernorm.weight"},
    {"layers.12.ffn_norm.weight", "layers.12.post_attention_layernorm.weight"},
    {"layers.3.hc_attn_fn", "layers.3.attn_hc.fn"},
    {"layers.3.hc_attn_base", "layers.3.attn_hc.base"},
    {"layers.3.hc_ffn_scale", "layers.3.ffn_hc.scale"},
    {"layers.0.attn.attn_sink", "layers.0.self_attn.sinks"},
    {"layers.0.attn.wq_a.weight", "layers.0.self_attn.q_a_proj.weight"},
    {"layers.0.attn.wq_b.weight", "layers.0.self_attn.q_b_proj.weight"},
    {"layers.0.attn.wkv.weight", "layers.0.self_attn.kv_proj.weight"},
    {"layers.0.attn.wo_a.weight", "layers.0.self_attn.o_a_proj.weight"},
    {"layers.0.attn.wo_b.weight_scale", "layers.0.self_attn.o_b_proj.weight_scale"},
    {"layers.0.attn.q_norm.weight", "layers.0.self_attn.q_a_norm.weight"},
    {"layers.0.attn.kv_norm.weight", "layers.0.self_attn.kv_norm.weight"},
    {"layers.2.attn.compressor.wkv.weight", "layers.2.self_attn.compressor.kv_proj.weight"},
    {"layers.2.attn.compressor.wgate.weight", "layers.2.self_attn.compressor.gate_proj.weight"},
    {"layers.2.attn.compressor.ape", "layers.2.self_attn.compressor.position_bias"},
    {"layers.2.attn.compressor.norm.weight", "layers.2.self_attn.compressor.kv_norm.weight"},
    {"layers.2.attn.indexer.wq_b.weight", "layers.2.self_attn.compressor.indexer.q_b_proj.weight"},
    {"layers.2.attn.indexer.weights_proj.weight",
     "layers.2.self_attn.compressor.indexer.scorer.weights_proj.weight"},
    {"layers.2.attn.indexer.compressor.wkv.weight",
     "layers.2.self_attn.compressor.indexer.kv_proj.weight"},
    {"layers.2.attn.indexer.compressor.wgate.weight",
     "layers.2.self_attn.compressor.indexer.gate_proj.weight"},
    {"layers.2.attn.indexer.compressor.ape", "layers.2.self_attn.compressor.indexer.position_bias"},
    {"layers.2.attn.indexer.compressor.norm.weight",
     "layers.2.self_attn.compressor.indexer.kv_norm.weight"},
    {"layers.4.ffn.gate.weight", "layers.4.mlp.gate.weight"},
    {"layers.4.ffn.gate.bias", "layers.4.mlp.gate.e_score_correction_bias"},
    {"layers.1.ffn.gate.tid2eid", "layers.1.mlp.gate.tid2eid"},
    {"layers.4.ffn.shared_experts.w1.weight", "layers.4.mlp.shared_experts.gate_proj.weight"},
    {"layers.4.ffn.shared_experts.w2.weight", "layers.4.mlp.shared_experts.down_proj.weight"},
    {"layers.4.ffn.shared_experts.w3.weight", "layers.4.mlp.shared_experts.up_proj.weight"},
    {"layers.4.ffn.experts.17.w1.weight_scale_2",
     "layers.4.mlp.experts.17.gate_proj.weight_scale_2"},
    {"layers.4.ffn.experts.17.w2.weight_packed", "layers.4.mlp.experts.17.down_proj.weight_packed"},
    {"layers.4.ffn.experts.17.w3.scale", "layers.4.mlp.experts.17.up_proj.scale"},
    {"mtp.0.e_proj.weight", "mtp.0.e_proj.weight"},
    {"mtp.0.attn.wq_a.weight", "mtp.0.self_attn.q_a_proj.weight"},
};

TEST(Names, EverySpellingHasOneMeaning) {
  for (const auto& [official, other] : kPairs) {
    EXPECT_EQ(official_name(official), official);
    EXPECT_EQ(official_name("model." + official), official);
    EXPECT_EQ(official_name(other), official);
    EXPECT_EQ(official_name("model." + other), official);
  }
}

TEST(Names, UnknownNamesPassThrough) {
  for (const std::string name :
       {"vision.patch.weight", "layers", "layers.", "layers.x.input_layernorm.weight", "mtp.0",
        "layers.1.ffn.experts.w1", "layers.99999999999999999999.attn.foo", ""})
    EXPECT_EQ(official_name(name), name);
}

std::vector<TensorInfo> slices(const std::string& name, std::vector<std::int64_t> shape,
                               DType dtype = DType::kBF16) {
  const std::int64_t bytes = TensorSpec{name, dtype, shape}.bytes();
  std::vector<TensorInfo> out;
  append_official({name, dtype, std::move(shape), 1000, bytes}, 2, "file", out);
  return out;
}

TEST(Names, FusedExpertsAreSlices) {
  for (const std::string name :
       {"model.layers.5.mlp.experts.gate_up_proj", "layers.5.ffn.experts.gate_up_proj.weight"}) {
    const auto out = slices(name, {3, 8, 16});
    ASSERT_EQ(out.size(), 6u);
    for (std::size_t e = 0; e < 3; ++e)
      for (std::size_t half = 0; half < 2; ++half) {
        const TensorInfo& t = out[e * 2 + half];
        EXPECT_EQ(t.name, fmt::format("layers.5.ffn.experts.{}.w{}.weight", e, half == 0 ? 1 : 3));
        EXPECT_EQ(t.stored_name, name);
        EXPECT_EQ(t.shape, (std::vector<std::int64_t>{4, 16}));
        EXPECT_EQ(t.bytes, 4 * 16 * 2);
        EXPECT_EQ(t.offset, 1000 + static_cast<std::int64_t>(e * 2 + half) * 4 * 16 * 2);
        EXPECT_EQ(t.file, 2);
      }
  }
  const auto down = slices("model.layers.5.mlp.experts.down_proj", {3, 16, 4});
  ASSERT_EQ(down.size(), 3u);
  EXPECT_EQ(down[2].name, "layers.5.ffn.experts.2.w2.weight");
  EXPECT_EQ(down[2].shape, (std::vector<std::int64_t>{16, 4}));
  EXPECT_EQ(down[2].offset, 1000 + 2 * 16 * 4 * 2);
}

TEST(Names, FusedScalesAndScalars) {
  const auto scale =
      slices("layers.0.ffn.experts.gate_up_proj_weight_scale", {2, 4, 1}, DType::kU8);
  ASSERT_EQ(scale.size(), 4u);
  EXPECT_EQ(scale[3].name, "layers.0.ffn.experts.1.w3.weight_scale");
  const auto global = slices("layers.0.ffn.experts.gate_up_proj.weight_scale_2", {2}, DType::kF32);
  ASSERT_EQ(global.size(), 4u);
  EXPECT_EQ(global[2].name, "layers.0.ffn.experts.1.w1.weight_scale_2");
  EXPECT_EQ(global[3].offset, 1004);
  EXPECT_TRUE(global[3].shape.empty());
  const auto shared = slices("layers.0.mlp.shared_experts.gate_up_proj.weight", {6, 8});
  ASSERT_EQ(shared.size(), 2u);
  EXPECT_EQ(shared[1].name, "layers.0.ffn.shared_experts.w3.weight");
  EXPECT_EQ(shared[1].shape, (std::vector<std::int64_t>{3, 8}));
}

TEST(Names, FusedShapesAreChecked) {
  const std::string name = "layers.0.ffn.experts.gate_up_proj";
  EXPECT_TRUE(contains(message_of([&] { slices(name, {3, 7, 16}); }), "even number of rows"));
  EXPECT_TRUE(contains(message_of([&] { slices(name, {4097, 2, 1}); }), "at most 4096"));
  EXPECT_TRUE(contains(message_of([&] { slices(name, {3, 8}); }), "rank 3"));
  EXPECT_TRUE(contains(message_of([&] { slices(name, {3, 0, 4}); }), "empty"));
}

TEST(Names, TwoSpellingsOfOneTensorCollide) {
  const ScratchFolder folder;
  write_model(folder.path(), {tensor_of<float>("norm.weight", DType::kF32, {1}, {1.0f}),
                              tensor_of<float>("model.norm.weight", DType::kF32, {1}, {1.0f})});
  EXPECT_TRUE(contains(message_of([&] { Checkpoint::open(folder.path()); }),
                       "both mean tensor 'norm.weight'"));
}

}  // namespace
}  // namespace quatrain::test

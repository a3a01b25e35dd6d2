// SPDX-License-Identifier: Apache-2.0
#include "model/synthetic.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "core/error.h"
#include "model/synthetic_data.h"

namespace quatrain {
namespace {

// The fields of config.json in which the published models differ.
struct Preset {
  std::string_view name;
  std::int64_t vocab, hidden, inner, layers, heads, head_dim, q_lora, o_groups, o_lora;
  std::int64_t experts, hash_layers;
  double routed_scale;
  std::int64_t index_heads, index_dim, index_topk;
  bool window_first;  // layers 0 and 1 see the window only; otherwise they are HCA
};

constexpr Preset kPresets[] = {
    {"flash", 129280, 4096, 2048, 43, 64, 512, 1024, 8, 1024, 256, 3, 1.5, 64, 128, 512, true},
    {"pro", 129280, 7168, 3072, 61, 128, 512, 1536, 16, 1024, 384, 3, 2.5, 64, 128, 1024, false},
    {"storyteller", 4096, 384, 128, 6, 6, 128, 192, 2, 96, 24, 2, 1.5, 8, 64, 64, true},
};

// 0 0 4 128 4 128 … (Flash) or 128 128 4 128 4 … (Pro).
std::vector<std::int64_t> published_ratios(const Preset& preset) {
  std::vector<std::int64_t> ratios;
  for (std::int64_t l = 0; l < preset.layers; ++l)
    ratios.push_back(l < 2 ? (preset.window_first ? 0 : 128) : (l % 2 == 0 ? 4 : 128));
  return ratios;
}

std::string config_json(const Preset& p, const std::vector<std::int64_t>& ratios) {
  const auto layers = static_cast<std::int64_t>(ratios.size());
  // A short model keeps a layer that routes by its scores.
  const std::int64_t hash_layers = std::min(p.hash_layers, layers / 2);
  return fmt::format(
      R"({{"model_type": "deepseek_v4", "vocab_size": {}, "hidden_size": {},
"moe_intermediate_size": {}, "num_hidden_layers": {}, "num_attention_heads": {},
"num_key_value_heads": 1, "head_dim": {}, "qk_rope_head_dim": 64, "q_lora_rank": {},
"o_groups": {}, "o_lora_rank": {}, "n_routed_experts": {}, "n_shared_experts": 1,
"num_experts_per_tok": 6, "routed_scaling_factor": {}, "scoring_func": "sqrtsoftplus",
"topk_method": "noaux_tc", "norm_topk_prob": true, "num_hash_layers": {}, "swiglu_limit": 10.0,
"sliding_window": 128, "index_n_heads": {}, "index_head_dim": {}, "index_topk": {}, "hc_mult": 4,
"hc_sinkhorn_iters": 20, "hc_eps": 1e-06, "rms_norm_eps": 1e-06, "rope_theta": 10000,
"compress_rope_theta": 160000, "rope_scaling": {{"type": "yarn", "factor": 16,
"original_max_position_embeddings": 65536, "beta_fast": 32, "beta_slow": 1}},
"max_position_embeddings": 1048576, "compress_ratios": [{}], "num_nextn_predict_layers": 0,
"bos_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": false, "attention_bias": false,
"hidden_act": "silu"}})",
      p.vocab, p.hidden, p.inner, layers, p.heads, p.head_dim, p.q_lora, p.o_groups, p.o_lora,
      p.experts, p.routed_scale, hash_layers, p.index_heads, p.index_dim, p.index_topk,
      fmt::join(ratios, ","));
}

}  // namespace

std::vector<std::int64_t> synthetic_ratios(const std::vector<std::int64_t>& full,
                                           std::int64_t layers) {
  if (layers == static_cast<std::int64_t>(full.size())) return full;
  // The first of 4, 128 (one, two layers), then the published order without its second layer.
  std::vector<std::int64_t> ratios;
  const bool has_window = std::ranges::count(full, 0) > 0;
  if (layers >= 3) ratios.push_back(has_window ? 0 : 128);
  for (std::int64_t next = 4; static_cast<std::int64_t>(ratios.size()) < layers; next = 132 - next)
    ratios.push_back(next);
  return ratios;
}

V4Config synthetic_config(std::string_view name, std::int64_t layers) {
  const auto* preset = std::ranges::find(kPresets, name, &Preset::name);
  if (preset == std::end(kPresets))
    fail("--synthetic: expected flash, pro or storyteller, found '{}'", name);
  if (layers == 0) layers = preset->layers;
  if (layers < 1 || layers > preset->layers)
    fail("--layers: {} has 1 to {} layers, found {}", name, preset->layers, layers);
  return parse_config(config_json(*preset, synthetic_ratios(published_ratios(*preset), layers)),
                      fmt::format("synthetic {}", name));
}

ModelSource synthetic_model(std::string_view name, std::int64_t layers) {
  V4Config config = synthetic_config(name, layers);
  const std::string title = fmt::format("synthetic-{}-{}L", name, config.num_layers);
  Checkpoint checkpoint = Checkpoint::from_file(synthetic_file(config, title));
  return {.name = title, .config = std::move(config), .checkpoint = std::move(checkpoint)};
}

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
#include "model/weight_table.h"

#include <fmt/format.h>

namespace quatrain {
namespace {

using Kind = WeightKind;

class Table {
 public:
  Table(const V4Config& config, const std::function<void(const WeightEntry&)>& visit)
      : c_(config), visit_(visit) {}

  void top() {
    add(Kind::kEmbedding, "embed", {c_.vocab_size, c_.hidden_size});
    for (std::int64_t l = 0; l < c_.num_layers; ++l)
      layer(fmt::format("layers.{}", l), c_.ratio(l), c_.is_hash_layer(l));
    site("hc_head", true);
    add(Kind::kNorm, "norm.weight", {c_.hidden_size});
    add(Kind::kFine, "head", {c_.vocab_size, c_.hidden_size});
  }

  void mtp(const std::string& base) {
    for (const char* norm : {"enorm", "hnorm", "norm"})
      add(Kind::kNorm, fmt::format("{}.{}.weight", base, norm), {c_.hidden_size});
    for (const char* projection : {"e_proj", "h_proj"})
      add(Kind::kProjection, fmt::format("{}.{}", base, projection),
          {c_.hidden_size, c_.hidden_size});
    layer(base, 0, false);
    site(base + ".hc_head", true);
  }

 private:
  void add(Kind kind, std::string name, std::vector<std::int64_t> shape) {
    visit_({.kind = kind, .name = std::move(name), .shape = std::move(shape)});
  }

  void site(const std::string& prefix, bool head) {
    const std::int64_t mixes = head ? c_.hc_mult : (2 + c_.hc_mult) * c_.hc_mult;
    add(Kind::kMix, prefix + "_fn", {mixes, c_.hc_mult * c_.hidden_size});
    add(Kind::kBias, prefix + "_base", {mixes});
    add(Kind::kMixScale, prefix + "_scale", {head ? 1 : 3});
  }

  void compressor(const std::string& base, std::int64_t ratio, std::int64_t width) {
    const std::int64_t channels = ratio == 4 ? 2 * width : width;
    add(Kind::kFine, base + ".wkv", {channels, c_.hidden_size});
    add(Kind::kFine, base + ".wgate", {channels, c_.hidden_size});
    add(Kind::kBias, base + ".ape", {ratio, channels});
    add(Kind::kNorm, base + ".norm.weight", {width});
  }

  void attention(const std::string& base, std::int64_t ratio) {
    const std::int64_t heads_width = c_.num_heads * c_.head_dim;
    const std::int64_t o_rows = c_.o_groups * c_.o_lora_rank;
    add(Kind::kProjection, base + ".wq_a", {c_.q_lora_rank, c_.hidden_size});
    add(Kind::kProjection, base + ".wq_b", {heads_width, c_.q_lora_rank});
    add(Kind::kProjection, base + ".wkv", {c_.head_dim, c_.hidden_size});
    add(Kind::kProjection, base + ".wo_a", {o_rows, heads_width / c_.o_groups});
    add(Kind::kProjection, base + ".wo_b", {c_.hidden_size, o_rows});
    add(Kind::kNorm, base + ".q_norm.weight", {c_.q_lora_rank});
    add(Kind::kNorm, base + ".kv_norm.weight", {c_.head_dim});
    add(Kind::kBias, base + ".attn_sink", {c_.num_heads});
    if (ratio > 0) compressor(base + ".compressor", ratio, c_.head_dim);
    if (ratio != 4) return;
    add(Kind::kProjection, base + ".indexer.wq_b",
        {c_.index_num_heads * c_.index_head_dim, c_.q_lora_rank});
    add(Kind::kFine, base + ".indexer.weights_proj", {c_.index_num_heads, c_.hidden_size});
    compressor(base + ".indexer.compressor", ratio, c_.index_head_dim);
  }

  void swiglu(Kind kind, const std::string& base, std::int64_t inner) {
    add(kind, base + ".w1", {inner, c_.hidden_size});
    add(kind, base + ".w3", {inner, c_.hidden_size});
    add(kind, base + ".w2", {c_.hidden_size, inner});
  }

  void layer(const std::string& base, std::int64_t ratio, bool hash) {
    site(base + ".hc_attn", false);
    site(base + ".hc_ffn", false);
    add(Kind::kNorm, base + ".attn_norm.weight", {c_.hidden_size});
    add(Kind::kNorm, base + ".ffn_norm.weight", {c_.hidden_size});
    attention(base + ".attn", ratio);
    add(Kind::kFine, base + ".ffn.gate", {c_.num_experts, c_.hidden_size});
    if (hash)
      add(Kind::kHashTable, base + ".ffn.gate.tid2eid", {c_.vocab_size, c_.experts_per_token});
    else
      add(Kind::kBias, base + ".ffn.gate.bias", {c_.num_experts});
    for (std::int64_t e = 0; e < c_.num_experts; ++e)
      swiglu(Kind::kExpert, fmt::format("{}.ffn.experts.{}", base, e), c_.moe_intermediate_size);
    swiglu(Kind::kProjection, base + ".ffn.shared_experts",
           c_.moe_intermediate_size * c_.num_shared_experts);
  }

  const V4Config& c_;
  const std::function<void(const WeightEntry&)>& visit_;
};

}  // namespace

void for_each_weight(const V4Config& config, bool mtp,
                     const std::function<void(const WeightEntry&)>& visit) {
  Table table(config, visit);
  table.top();
  if (!mtp) return;
  for (std::int64_t m = 0; m < config.num_mtp_layers; ++m) table.mtp(fmt::format("mtp.{}", m));
}

}  // namespace quatrain

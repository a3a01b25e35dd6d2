// SPDX-License-Identifier: Apache-2.0
// V4Config: the architecture of a DeepSeek-V4 checkpoint, from its config.json.
//
// Immutable once parsed. Unknown or contradictory architecture values are refused with the field's
// name; fields that do not change inference are ignored. Symbols in the comments are the paper's.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace quatrain {

struct YarnConfig {
  double factor = 1.0;
  double original_max_positions = 0.0;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
};

struct V4Config {
  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;            ///< D
  std::int64_t moe_intermediate_size = 0;  ///< I
  std::int64_t num_layers = 0;             ///< L
  std::int64_t num_heads = 0;              ///< H
  std::int64_t head_dim = 0;               ///< latent width, K = V
  std::int64_t rope_dim = 0;               ///< trailing dims that are rotated
  std::int64_t q_lora_rank = 0;
  std::int64_t o_groups = 0;
  std::int64_t o_lora_rank = 0;
  std::int64_t sliding_window = 0;            ///< keys visible, the query's own included
  std::vector<std::int64_t> compress_ratios;  ///< [num_layers + mtp layers]: 0, 4 or 128
  std::int64_t num_hash_layers = 0;
  std::int64_t num_experts = 0;         ///< E, routed
  std::int64_t num_shared_experts = 0;  ///< 1; the shared expert is this many times wider
  std::int64_t experts_per_token = 0;
  double routed_scaling_factor = 1.0;
  double swiglu_limit = 0.0;  ///< 0: no clamp
  std::int64_t hc_mult = 0;   ///< residual streams
  std::int64_t hc_sinkhorn_iters = 0;
  double hc_eps = 0.0;
  std::int64_t index_num_heads = 0;
  std::int64_t index_head_dim = 0;
  std::int64_t index_topk = 0;
  double rms_norm_eps = 0.0;
  double rope_theta = 0.0;           ///< layers of ratio 0
  double compress_rope_theta = 0.0;  ///< layers of ratio > 0, with YaRN
  bool has_yarn = false;
  YarnConfig yarn;
  std::int64_t max_positions = 0;
  std::int64_t num_mtp_layers = 0;  ///< num_nextn_predict_layers
  std::int64_t bos_token_id = 0;
  std::vector<std::int64_t> eos_token_ids;

  bool is_hash_layer(std::int64_t layer) const { return layer < num_hash_layers; }
  std::int64_t ratio(std::int64_t layer) const {
    return compress_ratios[static_cast<std::size_t>(layer)];
  }
};

/// Parses the text of a config.json; `where` names it in messages.
V4Config parse_config(std::string_view json, std::string_view where);

/// Reads `folder`/config.json.
V4Config read_config(const std::filesystem::path& folder);

}  // namespace quatrain

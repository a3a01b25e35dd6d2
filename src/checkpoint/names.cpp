// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/names.h"

#include <array>
#include <optional>
#include <utility>

#include "core/error.h"

namespace quatrain {
namespace {

struct Rename {
  std::string_view from;
  std::string_view to;
};

// Prefixes of names outside layers.
constexpr std::array kTop = {
    Rename{"embed_tokens.", "embed."},
    Rename{"lm_head.", "head."},
    Rename{"hc_head.hc_", "hc_head_"},
};

// Prefixes of what follows "layers.N.". A longer prefix stands before its own beginning.
constexpr std::array kLayer = {
    Rename{"input_layernorm.", "attn_norm."},
    Rename{"post_attention_layernorm.", "ffn_norm."},
    Rename{"attn_hc.", "hc_attn_"},
    Rename{"ffn_hc.", "hc_ffn_"},
    Rename{"self_attn.sinks", "attn.attn_sink"},
    Rename{"self_attn.q_a_proj.", "attn.wq_a."},
    Rename{"self_attn.q_b_proj.", "attn.wq_b."},
    Rename{"self_attn.kv_proj.", "attn.wkv."},
    Rename{"self_attn.o_a_proj.", "attn.wo_a."},
    Rename{"self_attn.o_b_proj.", "attn.wo_b."},
    Rename{"self_attn.q_a_norm.", "attn.q_norm."},
    Rename{"self_attn.compressor.indexer.q_b_proj.", "attn.indexer.wq_b."},
    Rename{"self_attn.compressor.indexer.scorer.", "attn.indexer."},
    Rename{"self_attn.compressor.indexer.kv_proj.", "attn.indexer.compressor.wkv."},
    Rename{"self_attn.compressor.indexer.gate_proj.", "attn.indexer.compressor.wgate."},
    Rename{"self_attn.compressor.indexer.position_bias", "attn.indexer.compressor.ape"},
    Rename{"self_attn.compressor.indexer.kv_norm.", "attn.indexer.compressor.norm."},
    Rename{"self_attn.compressor.kv_proj.", "attn.compressor.wkv."},
    Rename{"self_attn.compressor.gate_proj.", "attn.compressor.wgate."},
    Rename{"self_attn.compressor.position_bias", "attn.compressor.ape"},
    Rename{"self_attn.compressor.kv_norm.", "attn.compressor.norm."},
    Rename{"self_attn.", "attn."},
    Rename{"mlp.gate.e_score_correction_bias", "ffn.gate.bias"},
    Rename{"mlp.", "ffn."},
};

// Prefixes of what follows "shared_experts." or "experts.N.".
constexpr std::array kExpert = {
    Rename{"gate_proj.", "w1."},
    Rename{"up_proj.", "w3."},
    Rename{"down_proj.", "w2."},
};

/// Drops `prefix` from `text` if it begins with it.
bool consume(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

/// Takes "123." off `text`; empty if it does not begin so.
std::string_view consume_index(std::string_view& text) {
  const std::size_t digits = text.find_first_not_of("0123456789");
  if (digits == 0 || digits == text.npos || text[digits] != '.') return {};
  const std::string_view index = text.substr(0, digits + 1);
  text.remove_prefix(digits + 1);
  return index;
}

template <std::size_t N>
std::string rename(std::string_view text, const std::array<Rename, N>& table) {
  for (const Rename& row : table)
    if (consume(text, row.from)) return std::string(row.to).append(text);
  return std::string(text);
}

/// "layers.3." or "mtp.0." taken off the front of `text`; empty for names outside layers.
std::string consume_layer(std::string_view& text) {
  for (const std::string_view prefix : {"layers.", "mtp."}) {
    std::string_view rest = text;
    if (!consume(rest, prefix)) continue;
    const std::string_view index = consume_index(rest);
    if (index.empty()) continue;
    text = rest;
    return std::string(prefix).append(index);
  }
  return {};
}

/// A fused tensor's name, taken apart: "layers.3.ffn.experts." + {w1, w3} + ".weight".
struct Fused {
  std::string prefix{};
  bool per_expert = false;
  bool gate_up = false;
  std::string suffix{};
};

std::optional<Fused> parse_fused(std::string_view official) {
  std::string_view rest = official;
  Fused out{.prefix = consume_layer(rest)};
  if (out.prefix.empty() || !consume(rest, "ffn.")) return std::nullopt;
  out.per_expert = consume(rest, "experts.");
  if (!out.per_expert && !consume(rest, "shared_experts.")) return std::nullopt;
  out.prefix += out.per_expert ? "ffn.experts." : "ffn.shared_experts.";
  out.gate_up = consume(rest, "gate_up_proj");
  if (!out.gate_up && !(out.per_expert && consume(rest, "down_proj"))) return std::nullopt;
  if (rest.empty()) rest = ".weight";
  // Parameters of a fused module are spelled with a dot or with an underscore.
  if (rest.front() != '.' && rest.front() != '_') return std::nullopt;
  out.suffix = fmt::format(".{}", rest.substr(1));
  return out;
}

/// Appends rows [begin, begin + rows) of the matrix that `whole` describes, or all of a scalar.
void append_rows(TensorInfo whole, std::int64_t begin, std::int64_t rows, std::string name,
                 std::vector<TensorInfo>& out) {
  if (!whole.shape.empty()) {
    const std::int64_t row_bytes = whole.bytes / whole.shape.front();
    whole.offset += begin * row_bytes;
    whole.bytes = rows * row_bytes;
    whole.shape.front() = rows;
  }
  whole.name = std::move(name);
  out.push_back(std::move(whole));
}

/// Appends the two halves of a gate_up matrix, or one down matrix.
void append_projections(const TensorInfo& matrix, const Fused& fused, const std::string& prefix,
                        std::string_view where, std::vector<TensorInfo>& out) {
  const std::int64_t rows = matrix.shape.empty() ? 0 : matrix.shape.front();
  if (!fused.gate_up) return append_rows(matrix, 0, rows, prefix + "w2" + fused.suffix, out);
  if (rows % 2 != 0)
    fail("{}: tensor '{}': gate and up need an even number of rows, found {}", where,
         matrix.stored_name, rows);
  append_rows(matrix, 0, rows / 2, prefix + "w1" + fused.suffix, out);
  append_rows(matrix, rows / 2, rows / 2, prefix + "w3" + fused.suffix, out);
}

void append_fused(const TensorInfo& whole, const Fused& fused, std::string_view where,
                  std::vector<TensorInfo>& out) {
  constexpr std::int64_t kMaxExperts = 4096;
  const std::size_t rank = whole.shape.size();
  const bool scalar = fused.per_expert && rank == 1;
  if (!scalar && rank != (fused.per_expert ? 3u : 2u))
    fail("{}: tensor '{}': expected a fused tensor of rank {}, found shape [{}]", where,
         whole.stored_name, fused.per_expert ? 3 : 2, fmt::join(whole.shape, ", "));
  if (whole.bytes == 0) fail("{}: tensor '{}': a fused tensor is empty", where, whole.stored_name);
  if (!fused.per_expert) return append_projections(whole, fused, fused.prefix, where, out);

  const std::int64_t experts = whole.shape.front();
  if (experts > kMaxExperts)
    fail("{}: tensor '{}': {} experts, at most {} are supported", where, whole.stored_name, experts,
         kMaxExperts);
  TensorInfo expert = whole;
  expert.shape.erase(expert.shape.begin());
  expert.bytes = whole.bytes / experts;
  for (std::int64_t e = 0; e < experts; ++e) {
    expert.offset = whole.offset + e * expert.bytes;
    append_projections(expert, fused, fmt::format("{}{}.", fused.prefix, e), where, out);
  }
}

}  // namespace

std::string official_name(std::string_view stored) {
  std::string_view rest = stored;
  consume(rest, "model.");
  const std::string layer = consume_layer(rest);
  if (layer.empty()) return rename(rest, kTop);
  const std::string module = rename(rest, kLayer);

  std::string_view tail = module;
  if (consume(tail, "ffn.shared_experts."))
    return layer + "ffn.shared_experts." + rename(tail, kExpert);
  if (consume(tail, "ffn.experts."))
    if (const std::string_view expert = consume_index(tail); !expert.empty())
      return fmt::format("{}ffn.experts.{}{}", layer, expert, rename(tail, kExpert));
  return layer + module;
}

void append_official(const StoredTensor& stored, int file, std::string_view where,
                     std::vector<TensorInfo>& out) {
  TensorInfo info{.name = official_name(stored.name),
                  .stored_name = stored.name,
                  .dtype = stored.dtype,
                  .shape = stored.shape,
                  .file = file,
                  .offset = stored.offset,
                  .bytes = stored.bytes};
  if (const std::optional<Fused> fused = parse_fused(info.name))
    append_fused(info, *fused, where, out);
  else
    out.push_back(std::move(info));
}

}  // namespace quatrain

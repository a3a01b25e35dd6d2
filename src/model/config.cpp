// SPDX-License-Identifier: Apache-2.0
#include "model/config.h"

#include <simdjson.h>

#include <cmath>
#include <initializer_list>
#include <optional>
#include <unordered_set>

#include "core/error.h"
#include "core/file.h"
#include "core/json.h"

namespace quatrain {
namespace {

namespace dom = simdjson::dom;

constexpr std::int64_t kMaxConfigBytes = 4 << 20;
constexpr std::int64_t kCsaRatio = 4;
constexpr std::int64_t kHcaRatio = 128;
constexpr std::int64_t kMaxLayers = 1024;
constexpr std::int64_t kMaxMtpLayers = 16;
constexpr std::size_t kMaxEosTokens = 64;

struct Range {
  double lowest;
  double highest;
};

/// One JSON object with typed, checked access. A field that is absent or null is the same thing.
class Fields {
 public:
  Fields(dom::object object, std::string path) : object_(object), path_(std::move(path)) {
    std::unordered_set<std::string_view> keys;
    for (const auto field : object_)
      if (!keys.insert(field.key).second) fail("{} appears twice", at(field.key));
  }

  /// "config.json: field 'rope_scaling.factor'"
  std::string at(std::string_view key) const {
    const std::string quoted = json_quote(key);
    return fmt::format("{}{}'", path_, quoted.substr(1, quoted.size() - 2));
  }

  std::optional<dom::element> find(std::string_view key) const {
    dom::element value;
    if (object_.at_key(key).get(value) || value.is_null()) return std::nullopt;
    return value;
  }

  std::optional<std::int64_t> integer(std::string_view key, std::int64_t lowest,
                                      std::int64_t highest) const {
    const std::optional<dom::element> value = find(key);
    if (!value) return std::nullopt;
    return as_integer(*value, at(key), lowest, highest);
  }

  std::int64_t need_integer(std::string_view key, std::int64_t lowest, std::int64_t highest) const {
    return need(integer(key, lowest, highest), key);
  }

  std::optional<double> number(std::string_view key, Range range) const {
    const std::optional<dom::element> value = find(key);
    if (!value) return std::nullopt;
    double out = 0;
    if (value->get(out)) fail("{}: expected a number", at(key));
    if (!(out >= range.lowest && out <= range.highest))
      fail("{}: expected {} to {}, found {}", at(key), range.lowest, range.highest, out);
    return out;
  }

  double need_number(std::string_view key, Range range) const {
    return need(number(key, range), key);
  }

  std::optional<std::string_view> text(std::string_view key) const {
    const std::optional<dom::element> value = find(key);
    if (!value) return std::nullopt;
    std::string_view out;
    if (value->get(out)) fail("{}: expected a string", at(key));
    return out;
  }

  std::optional<dom::array> list(std::string_view key) const {
    const std::optional<dom::element> value = find(key);
    if (!value) return std::nullopt;
    dom::array out;
    if (value->get(out)) fail("{}: expected a list", at(key));
    return out;
  }

  std::optional<Fields> object(std::string_view key) const {
    const std::optional<dom::element> value = find(key);
    if (!value) return std::nullopt;
    dom::object out;
    if (value->get(out)) fail("{}: expected an object", at(key));
    return Fields(out, fmt::format("{}{}.", path_, key));
  }

  /// Refuses any value but the one that the engine implements.
  void only_text(std::string_view key, std::string_view supported) const {
    const std::optional<std::string_view> found = text(key);
    if (found && *found != supported)
      fail("{}: only \"{}\" is supported, found {}", at(key), supported, json_quote(*found));
  }

  void only_flag(std::string_view key, bool supported) const {
    const std::optional<dom::element> value = find(key);
    if (!value) return;
    bool found = false;
    if (value->get(found)) fail("{}: expected true or false", at(key));
    if (found != supported) fail("{}: only {} is supported, found {}", at(key), supported, found);
  }

  static std::int64_t as_integer(dom::element value, const std::string& where, std::int64_t lowest,
                                 std::int64_t highest) {
    std::int64_t out = 0;
    if (value.get(out)) fail("{}: expected an integer", where);
    if (out < lowest || out > highest)
      fail("{}: expected {} to {}, found {}", where, lowest, highest, out);
    return out;
  }

  template <class T>
  T need(const std::optional<T>& value, std::string_view key) const {
    if (!value) fail("{} is missing", at(key));
    return *value;
  }

 private:
  dom::object object_;
  std::string path_;
};

/// The value of a field that two spellings carry: either alone, or both if they agree.
template <class T>
std::optional<T> agree(const Fields& fields, std::string_view a, const std::optional<T>& x,
                       std::string_view b, const std::optional<T>& y) {
  if (x && y && !(*x == *y)) fail("{} and {} contradict each other", fields.at(a), fields.at(b));
  return x ? x : y;
}

void check_kind(const Fields& f) {
  const std::string_view type = f.need(f.text("model_type"), "model_type");
  if (type == "deepseek_v41")
    fail("{}: deepseek_v41 is another architecture (shared KV across layers, engram tables)",
         f.at("model_type"));
  if (type != "deepseek_v4")
    fail("{}: expected \"deepseek_v4\", found {}", f.at("model_type"), json_quote(type));
  f.only_text("scoring_func", "sqrtsoftplus");
  f.only_text("topk_method", "noaux_tc");
  f.only_text("hidden_act", "silu");
  f.only_flag("norm_topk_prob", true);
  f.only_flag("tie_word_embeddings", false);
  f.only_flag("attention_bias", false);
  f.only_flag("mlp_bias", false);
  f.integer("num_key_value_heads", 1, 1);
  f.integer("n_group", 1, 1);
  f.integer("topk_group", 1, 1);
}

void parse_sizes(const Fields& f, V4Config& c) {
  constexpr std::int64_t kWidth = 1 << 18;
  c.vocab_size = f.need_integer("vocab_size", 1, 1 << 24);
  c.hidden_size = f.need_integer("hidden_size", 1, kWidth);
  c.moe_intermediate_size = f.need_integer(
      f.find("moe_intermediate_size") ? "moe_intermediate_size" : "intermediate_size", 1, kWidth);
  c.num_layers = f.need_integer("num_hidden_layers", 1, kMaxLayers);
  c.num_heads = f.need_integer("num_attention_heads", 1, 4096);
  c.head_dim = f.need_integer("head_dim", 1, 8192);
  c.q_lora_rank = f.need_integer("q_lora_rank", 1, kWidth);
  c.o_groups = f.need_integer("o_groups", 1, 4096);
  c.o_lora_rank = f.need_integer("o_lora_rank", 1, kWidth);
  c.sliding_window = f.need_integer("sliding_window", 1, 1 << 20);
  c.num_experts = f.need(agree(f, "n_routed_experts", f.integer("n_routed_experts", 1, 4096),
                               "num_local_experts", f.integer("num_local_experts", 1, 4096)),
                         "n_routed_experts");
  c.num_shared_experts = f.integer("n_shared_experts", 1, 64).value_or(1);
  c.experts_per_token = f.need_integer("num_experts_per_tok", 1, 64);
  c.routed_scaling_factor = f.need_number("routed_scaling_factor", {1e-6, 1e6});
  c.swiglu_limit = f.need_number("swiglu_limit", {0, 1e6});
  c.hc_mult = f.need_integer("hc_mult", 1, 8);
  c.hc_sinkhorn_iters = f.need_integer("hc_sinkhorn_iters", 1, 1000);
  c.hc_eps = f.number("hc_eps", {0, 1}).value_or(1e-6);
  c.rms_norm_eps = f.number("rms_norm_eps", {0, 1}).value_or(1e-6);
  c.index_num_heads = f.need_integer("index_n_heads", 1, 4096);
  c.index_head_dim = f.need_integer("index_head_dim", 1, 8192);
  c.index_topk = f.need_integer("index_topk", 1, 1 << 20);
  c.max_positions = f.need_integer("max_position_embeddings", 1, std::int64_t{1} << 28);
  c.num_mtp_layers = f.integer("num_nextn_predict_layers", 0, kMaxMtpLayers).value_or(0);
}

void parse_rope_dim(const Fields& f, V4Config& c) {
  std::optional<std::int64_t> by_factor;
  if (const auto factor = f.number("partial_rotary_factor", {0, 1})) {
    const double dims = *factor * static_cast<double>(c.head_dim);
    by_factor = std::llround(dims);
    if (std::abs(dims - static_cast<double>(*by_factor)) > 1e-6)
      fail("{}: {} of {} dimensions is not a whole number", f.at("partial_rotary_factor"), *factor,
           c.head_dim);
  }
  c.rope_dim = f.need(agree(f, "qk_rope_head_dim", f.integer("qk_rope_head_dim", 1, 8192),
                            "partial_rotary_factor", by_factor),
                      "qk_rope_head_dim");
}

constexpr Range kTheta = {1, 1e12};

/// A block of scaling parameters; its kind is called "type" or "rope_type".
void parse_yarn(const Fields& f, V4Config& c) {
  const auto type = agree(f, "type", f.text("type"), "rope_type", f.text("rope_type"));
  if (!type || *type == "default") return;
  if (*type != "yarn")
    fail("{}: only \"yarn\" is supported, found {}", f.at("type"), json_quote(*type));
  const double attention_factor = f.number("attention_factor", {-1e6, 1e6}).value_or(1.0);
  if (attention_factor != 1.0)
    fail("{}: only 1 is supported, found {}", f.at("attention_factor"), attention_factor);
  c.has_yarn = true;
  c.yarn.factor = f.need_number("factor", {1, 1e6});
  c.yarn.original_max_positions = f.need_number("original_max_position_embeddings", {1, 1e9});
  c.yarn.beta_fast = f.number("beta_fast", {1e-3, 1e6}).value_or(32.0);
  c.yarn.beta_slow = f.number("beta_slow", {1e-3, 1e6}).value_or(1.0);
  if (c.yarn.beta_fast <= c.yarn.beta_slow)
    fail("{}: expected more than beta_slow = {}, found {}", f.at("beta_fast"), c.yarn.beta_slow,
         c.yarn.beta_fast);
}

void parse_rope(const Fields& f, V4Config& c) {
  const std::optional<Fields> scaling = f.object("rope_scaling");
  const std::optional<Fields> parameters = f.object("rope_parameters");
  std::optional<double> main_theta, compress_theta;
  if (scaling) parse_yarn(*scaling, c);
  if (parameters) {
    const Fields main = parameters->need(parameters->object("main"), "main");
    const Fields compress = parameters->need(parameters->object("compress"), "compress");
    main.only_text("rope_type", "default");
    main_theta = main.number("rope_theta", kTheta);
    compress_theta = compress.number("rope_theta", kTheta);
    if (scaling) fail("{} and {} are both given", f.at("rope_scaling"), f.at("rope_parameters"));
    parse_yarn(compress, c);
  }
  c.rope_theta = agree(f, "rope_theta", f.number("rope_theta", kTheta),
                       "rope_parameters.main.rope_theta", main_theta)
                     .value_or(10000.0);
  c.compress_rope_theta = agree(f, "compress_rope_theta", f.number("compress_rope_theta", kTheta),
                                "rope_parameters.compress.rope_theta", compress_theta)
                              .value_or(160000.0);
}

std::int64_t check_ratio(std::int64_t ratio, const std::string& where) {
  if (ratio != 0 && ratio != kCsaRatio && ratio != kHcaRatio)
    fail("{}: expected 0, {} or {}, found {}", where, kCsaRatio, kHcaRatio, ratio);
  return ratio;
}

std::optional<std::vector<std::int64_t>> ratios_by_number(const Fields& f) {
  const std::optional<dom::array> list = f.list("compress_ratios");
  if (!list) return std::nullopt;
  std::vector<std::int64_t> out;
  for (const dom::element value : *list) {
    const std::string where = fmt::format("{}[{}]", f.at("compress_ratios"), out.size());
    out.push_back(check_ratio(Fields::as_integer(value, where, 0, INT32_MAX), where));
  }
  return out;
}

std::optional<std::vector<std::int64_t>> ratios_by_type(const Fields& f) {
  const std::optional<dom::array> list = f.list("layer_types");
  if (!list) return std::nullopt;
  if (const std::optional<Fields> rates = f.object("compress_rates")) {
    rates->integer("compressed_sparse_attention", kCsaRatio, kCsaRatio);
    rates->integer("heavily_compressed_attention", kHcaRatio, kHcaRatio);
  }
  std::vector<std::int64_t> out;
  for (const dom::element value : *list) {
    std::string_view type;
    if (value.get(type)) fail("{}[{}]: expected a string", f.at("layer_types"), out.size());
    if (type == "sliding_attention")
      out.push_back(0);
    else if (type == "compressed_sparse_attention")
      out.push_back(kCsaRatio);
    else if (type == "heavily_compressed_attention")
      out.push_back(kHcaRatio);
    else
      fail("{}[{}]: unknown layer type {}", f.at("layer_types"), out.size(), json_quote(type));
  }
  return out;
}

/// Both lists may name MTP layers after the backbone's; those are always window-only.
void parse_schedule(const Fields& f, V4Config& c) {
  auto numbers = ratios_by_number(f);
  auto types = ratios_by_type(f);
  const auto layers = static_cast<std::size_t>(c.num_layers);
  const auto all = static_cast<std::size_t>(c.num_layers + c.num_mtp_layers);
  const auto complete = [&](auto& list, std::string_view key) {
    if (!list) return;
    if (list->size() < layers)
      fail("{}: expected at least {} entries, found {}", f.at(key), layers, list->size());
    for (std::size_t i = layers; i < list->size(); ++i)
      if ((*list)[i] != 0)
        fail("{}[{}]: expected 0 after the {} layers, found {}", f.at(key), i, layers, (*list)[i]);
    list->resize(all, 0);
  };
  complete(numbers, "compress_ratios");
  complete(types, "layer_types");
  c.compress_ratios =
      f.need(agree(f, "compress_ratios", numbers, "layer_types", types), "compress_ratios");
}

/// Number of leading "hash_moe" entries of mlp_layer_types.
std::optional<std::int64_t> hash_layers_by_type(const Fields& f, std::int64_t layers) {
  const std::optional<dom::array> list = f.list("mlp_layer_types");
  if (!list) return std::nullopt;
  std::int64_t hash = 0, i = 0;
  for (const dom::element value : *list) {
    std::string_view type;
    if (value.get(type)) fail("{}[{}]: expected a string", f.at("mlp_layer_types"), i);
    if (type != "hash_moe" && type != "moe")
      fail("{}[{}]: unknown layer type {}", f.at("mlp_layer_types"), i, json_quote(type));
    if (type == "hash_moe" && hash != i)
      fail("{}[{}]: hash layers must come first", f.at("mlp_layer_types"), i);
    hash += type == "hash_moe";
    ++i;
  }
  if (i < layers) fail("{}: expected {} entries, found {}", f.at("mlp_layer_types"), layers, i);
  return hash;
}

void parse_hash_layers(const Fields& f, V4Config& c) {
  const auto named = agree(f, "num_hash_layers", f.integer("num_hash_layers", 0, c.num_layers),
                           "n_hash_layers", f.integer("n_hash_layers", 0, c.num_layers));
  // No default: a missing count would turn hash layers into learned ones without a sign.
  c.num_hash_layers = f.need(
      agree(f, "num_hash_layers", named, "mlp_layer_types", hash_layers_by_type(f, c.num_layers)),
      "num_hash_layers");
  if (c.num_hash_layers > c.num_layers)
    fail("{}: {} hash layers in {} layers", f.at("mlp_layer_types"), c.num_hash_layers,
         c.num_layers);
}

void parse_tokens(const Fields& f, V4Config& c) {
  const std::int64_t last = c.vocab_size - 1;
  c.bos_token_id = f.integer("bos_token_id", 0, last).value_or(0);
  const std::optional<dom::element> eos = f.find("eos_token_id");
  if (!eos) {
    c.eos_token_ids = {1};
  } else if (!eos->is_array()) {
    c.eos_token_ids = {Fields::as_integer(*eos, f.at("eos_token_id"), 0, last)};
  } else {
    const std::optional<dom::array> ids = f.list("eos_token_id");
    for (const dom::element id : *ids) {
      const std::string where = fmt::format("{}[{}]", f.at("eos_token_id"), c.eos_token_ids.size());
      if (c.eos_token_ids.size() == kMaxEosTokens)
        fail("{}: more than {} tokens", f.at("eos_token_id"), kMaxEosTokens);
      c.eos_token_ids.push_back(Fields::as_integer(id, where, 0, last));
    }
    if (c.eos_token_ids.empty()) fail("{}: the list is empty", f.at("eos_token_id"));
  }
}

void check_divisibility(const Fields& f, const V4Config& c) {
  if (c.num_heads % c.o_groups != 0)
    fail("{}: {} heads do not divide into {} groups", f.at("o_groups"), c.num_heads, c.o_groups);
  if (c.rope_dim % 2 != 0)
    fail("{}: expected an even number, found {}", f.at("qk_rope_head_dim"), c.rope_dim);
  if (c.rope_dim > c.head_dim || c.rope_dim > c.index_head_dim)
    fail("{}: expected at most head_dim = {} and index_head_dim = {}, found {}",
         f.at("qk_rope_head_dim"), c.head_dim, c.index_head_dim, c.rope_dim);
  if (c.experts_per_token > c.num_experts)
    fail("{}: expected at most {} experts, found {}", f.at("num_experts_per_tok"), c.num_experts,
         c.experts_per_token);
}

}  // namespace

V4Config parse_config(std::string_view json, std::string_view where) {
  if (std::ssize(json) > kMaxConfigBytes)
    fail("{}: has {} bytes, at most {} are allowed", where, json.size(), kMaxConfigBytes);
  dom::parser parser;
  dom::element root;
  if (const auto error = parser.parse(json.data(), json.size()).get(root))
    fail("{}: not valid JSON: {}", where, simdjson::error_message(error));
  dom::object object;
  if (root.get(object)) fail("{}: expected an object", where);
  const Fields fields(object, fmt::format("{}: field '", where));
  V4Config config;
  check_kind(fields);
  parse_sizes(fields, config);
  parse_rope_dim(fields, config);
  parse_rope(fields, config);
  parse_schedule(fields, config);
  parse_hash_layers(fields, config);
  parse_tokens(fields, config);
  check_divisibility(fields, config);
  return config;
}

V4Config read_config(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "config.json";
  return parse_config(read_text_file(path, kMaxConfigBytes), path.string());
}

}  // namespace quatrain

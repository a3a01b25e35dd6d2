// SPDX-License-Identifier: Apache-2.0
// quatrain inspect: what a model folder holds, from its headers; --deep reads the weights too.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "apps/commands.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/linear_format.h"
#include "checkpoint/quantise.h"
#include "core/json.h"
#include "core/progress.h"
#include "model/config.h"

namespace quatrain::apps {
namespace {

struct InspectFlags {
  std::string model;
  bool json = false;
  bool deep = false;
  std::int64_t max_model_len = 0;  // 0: what the model allows
};

/// All tensors of one kind in one format.
struct Group {
  std::int64_t linears = 0;
  std::int64_t tensors = 0;
  std::int64_t parameters = 0;
  std::int64_t bytes = 0;
};

struct DeepResult {
  std::int64_t nvfp4_linears = 0;
  std::int64_t casts = 0;  // of these, exact images of MXFP4
};

/// BF16 cache of latents and indexer keys: a CSA layer keeps one row of each per 4 tokens, an HCA
/// layer one latent per 128, every layer a ring of the last window.
struct CachePlan {
  std::int64_t positions = 0;
  double bytes_per_token = 0;
  std::int64_t ring_bytes = 0;

  double total() const {
    return bytes_per_token * static_cast<double>(positions) + static_cast<double>(ring_bytes);
  }
};

struct Inspection {
  V4Config config;
  std::size_t files = 0;
  std::map<std::pair<std::size_t, std::string>, Group> groups;  // (index into kKinds, format)
  Group total;
  CachePlan cache;
  std::optional<DeepResult> deep;
};

struct Kind {
  std::string_view name;
  std::string_view part;  // of the tensor's name; the first match counts
};

constexpr Kind kKinds[] = {
    {"mtp", "mtp."},
    {"mHC", "hc_"},
    {"routed experts", ".ffn.experts."},
    {"shared experts", ".ffn.shared_experts."},
    {"router", ".ffn.gate."},
    {"indexer", ".attn.indexer."},
    {"compressor", ".attn.compressor."},
    {"attention", ".attn."},
    {"norms", "norm."},
    {"embedding", "embed."},
    {"head", "head."},
    {"other", ""},
};

std::size_t kind_of(std::string_view name) {
  std::size_t i = 0;
  while (name.find(kKinds[i].part) == name.npos) ++i;
  return i;
}

/// Base names of everything that looks like a linear: a matrix named weight or weight_packed.
std::vector<std::string> linear_names(const Checkpoint& checkpoint) {
  std::vector<std::string> out;
  for (const TensorInfo& tensor : checkpoint.tensors())
    for (const std::string_view suffix : {".weight", ".weight_packed"})
      if (tensor.shape.size() == 2 && tensor.name.ends_with(suffix))
        out.push_back(tensor.name.substr(0, tensor.name.size() - suffix.size()));
  return out;
}

LinearSource open_linear(const Checkpoint& checkpoint, const std::string& base) {
  const LinearShape shape = stored_shape(checkpoint, base);
  return checkpoint.linear(base, shape.rows, shape.cols);
}

std::string format_of(const LinearSource& linear) {
  const bool dense = linear.format == WeightFormat::kDense;
  return std::string(dense ? name_of(linear.weight->dtype) : name_of(linear.format));
}

void add_tensor(Group& group, const TensorInfo& tensor) {
  ++group.tensors;
  group.bytes += tensor.bytes;
}

void count_tensors(const Checkpoint& checkpoint, Inspection& out) {
  std::unordered_set<const TensorInfo*> counted;
  for (const std::string& base : linear_names(checkpoint)) {
    const LinearSource linear = open_linear(checkpoint, base);
    Group& group = out.groups[{kind_of(base + "."), format_of(linear)}];
    ++group.linears;
    group.parameters += linear.rows * linear.cols;
    for (const TensorInfo* tensor : linear.tensors) add_tensor(group, *tensor);
    counted.insert(linear.tensors.begin(), linear.tensors.end());
  }
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    if (counted.contains(&tensor)) continue;
    Group& group = out.groups[{kind_of(tensor.name), std::string(name_of(tensor.dtype))}];
    group.parameters += tensor.elements();
    add_tensor(group, tensor);
  }
  for (const auto& [key, group] : out.groups) {
    out.total.linears += group.linears;
    out.total.tensors += group.tensors;
    out.total.parameters += group.parameters;
    out.total.bytes += group.bytes;
  }
}

/// Reads every linear, which checks its scales, and looks for exact images of MXFP4.
DeepResult look_deep(const Checkpoint& checkpoint, std::int64_t bytes) {
  DeepResult out;
  ProgressBar bar("reading", bytes);
  for (const std::string& base : linear_names(checkpoint)) {
    const LoadedLinear linear = checkpoint.load(open_linear(checkpoint, base));
    bar.advance(linear.matrix.bytes());
    if (linear.matrix.format != WeightFormat::kNvfp4) continue;
    ++out.nvfp4_linears;
    out.casts += is_pow2_paired(linear.matrix);
  }
  bar.finish();
  return out;
}

std::int64_t layers_of_ratio(const V4Config& c, std::int64_t ratio) {
  return std::count(c.compress_ratios.begin(), c.compress_ratios.begin() + c.num_layers, ratio);
}

CachePlan plan_cache(const V4Config& c, std::int64_t max_model_len) {
  constexpr std::int64_t kElement = 2;  // bytes of a BF16
  const std::int64_t latent = c.head_dim * kElement, key = c.index_head_dim * kElement;
  CachePlan out;
  out.positions = max_model_len > 0 ? max_model_len : c.max_positions;
  out.bytes_per_token = static_cast<double>(layers_of_ratio(c, 4) * (latent + key)) / 4.0 +
                        static_cast<double>(layers_of_ratio(c, 128) * latent) / 128.0;
  out.ring_bytes = std::ssize(c.compress_ratios) * c.sliding_window * latent;
  return out;
}

Inspection inspect_model(const InspectFlags& flags) {
  Inspection out;
  out.config = read_config(flags.model);
  const Checkpoint checkpoint = Checkpoint::open(flags.model);
  out.files = checkpoint.files().size();
  count_tensors(checkpoint, out);
  out.cache = plan_cache(out.config, flags.max_model_len);
  if (flags.deep) out.deep = look_deep(checkpoint, out.total.bytes);
  return out;
}

/// "1.23 GB", in powers of ten like file listings and rates.
std::string show_bytes(double bytes) {
  constexpr std::string_view kUnits[] = {"B", "kB", "MB", "GB", "TB"};
  std::size_t unit = 0;
  for (; bytes >= 1000.0 && unit + 1 < std::size(kUnits); ++unit) bytes /= 1000.0;
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.2f} {}", bytes, kUnits[unit]);
}

template <class... Args>
void line(std::string_view label, fmt::format_string<Args...> format, Args&&... args) {
  fmt::print("{:<18}{}\n", label, fmt::format(format, std::forward<Args>(args)...));
}

void print_architecture(const V4Config& c) {
  fmt::print("Architecture: DeepSeek-V4\n");
  line("  layers", "{} ({} window, {} CSA, {} HCA; {} route by token id), {} MTP", c.num_layers,
       layers_of_ratio(c, 0), layers_of_ratio(c, 4), layers_of_ratio(c, 128), c.num_hash_layers,
       c.num_mtp_layers);
  line("  width", "{}, {} residual streams ({} Sinkhorn steps)", c.hidden_size, c.hc_mult,
       c.hc_sinkhorn_iters);
  line("  attention", "{} heads x {} ({} rotated), query rank {}, output {} groups x {}",
       c.num_heads, c.head_dim, c.rope_dim, c.q_lora_rank, c.o_groups, c.o_lora_rank);
  line("  indexer", "{} heads x {}, top {}", c.index_num_heads, c.index_head_dim, c.index_topk);
  line("  experts", "{} routed x {}, {} per token, {} shared", c.num_experts,
       c.moe_intermediate_size, c.experts_per_token, c.num_shared_experts);
  line("  vocabulary", "{}", c.vocab_size);
  line("  positions", "{}, window {}{}", c.max_positions, c.sliding_window,
       c.has_yarn ? fmt::format(", YaRN x{} from {}", c.yarn.factor, c.yarn.original_max_positions)
                  : "");
}

void print_text(const Inspection& in) {
  print_architecture(in.config);
  fmt::print("\nTensors: {} in {} file(s)\n", in.total.tensors, in.files);
  const auto row = [](auto kind, auto format, auto linears, auto tensors, auto parameters,
                      auto bytes) {
    fmt::print("  {:<16}{:<16}{:>8}{:>9}{:>16}{:>12}\n", kind, format, linears, tensors, parameters,
               bytes);
  };
  row("kind", "format", "linears", "tensors", "parameters", "size");
  for (const auto& [key, group] : in.groups)
    row(kKinds[key.first].name, key.second, group.linears, group.tensors, group.parameters,
        show_bytes(static_cast<double>(group.bytes)));
  row("total", "", in.total.linears, in.total.tensors, in.total.parameters,
      show_bytes(static_cast<double>(in.total.bytes)));
  if (in.deep)
    fmt::print("  {} of {} NVFP4 linears are exact images of MXFP4\n", in.deep->casts,
               in.deep->nvfp4_linears);
  fmt::print("\nMemory\n");
  line("  weights", "{}", show_bytes(static_cast<double>(in.total.bytes)));
  line("  cache", "{} for a sequence of {} tokens ({:.1f} B a token in BF16, {} fixed)",
       show_bytes(in.cache.total()), in.cache.positions, in.cache.bytes_per_token,
       show_bytes(static_cast<double>(in.cache.ring_bytes)));
}

std::string json_group(const Group& g) {
  return fmt::format(R"("linears": {}, "tensors": {}, "parameters": {}, "bytes": {})", g.linears,
                     g.tensors, g.parameters, g.bytes);
}

void print_json(const Inspection& in) {
  const V4Config& c = in.config;
  fmt::print("{{\n  \"architecture\": {{\"model_type\": \"deepseek_v4\"");
  const std::pair<std::string_view, std::int64_t> sizes[] = {
      {"layers", c.num_layers},
      {"window_layers", layers_of_ratio(c, 0)},
      {"csa_layers", layers_of_ratio(c, 4)},
      {"hca_layers", layers_of_ratio(c, 128)},
      {"hash_layers", c.num_hash_layers},
      {"mtp_layers", c.num_mtp_layers},
      {"hidden_size", c.hidden_size},
      {"residual_streams", c.hc_mult},
      {"heads", c.num_heads},
      {"head_dim", c.head_dim},
      {"rope_dim", c.rope_dim},
      {"q_lora_rank", c.q_lora_rank},
      {"o_groups", c.o_groups},
      {"o_lora_rank", c.o_lora_rank},
      {"index_heads", c.index_num_heads},
      {"index_head_dim", c.index_head_dim},
      {"index_topk", c.index_topk},
      {"experts", c.num_experts},
      {"experts_per_token", c.experts_per_token},
      {"shared_experts", c.num_shared_experts},
      {"expert_width", c.moe_intermediate_size},
      {"vocab_size", c.vocab_size},
      {"max_positions", c.max_positions},
      {"sliding_window", c.sliding_window}};
  for (const auto& [key, value] : sizes) fmt::print(", \"{}\": {}", key, value);
  fmt::print("}},\n  \"files\": {},\n  \"groups\": [", in.files);
  bool first = true;
  for (const auto& [key, group] : in.groups) {
    fmt::print("{}\n    {{\"kind\": {}, \"format\": {}, {}}}", first ? "" : ",",
               json_quote(kKinds[key.first].name), json_quote(key.second), json_group(group));
    first = false;
  }
  fmt::print("\n  ],\n  \"total\": {{{}}},\n", json_group(in.total));
  if (in.deep)
    fmt::print("  \"nvfp4\": {{\"linears\": {}, \"exact_mxfp4\": {}}},\n", in.deep->nvfp4_linears,
               in.deep->casts);
  fmt::print(
      "  \"cache\": {{\"positions\": {}, \"bytes_per_token\": {:.3f}, \"fixed_bytes\": {}, "
      "\"total_bytes\": {:.0f}}}\n}}\n",
      in.cache.positions, in.cache.bytes_per_token, in.cache.ring_bytes, in.cache.total());
}

}  // namespace

void add_inspect(CLI::App& app) {
  auto flags = std::make_shared<InspectFlags>();
  CLI::App* verb = app.add_subcommand("inspect", "Show a model's architecture, formats and sizes");
  verb->add_option("model", flags->model, "Model folder")->required();
  verb->add_flag("--json", flags->json, "Print JSON");
  verb->add_flag("--deep", flags->deep,
                 "Read all weights: check scales, find exact images of MXFP4");
  verb->add_option("--max-model-len", flags->max_model_len, "Tokens to plan the cache for")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 28));
  verb->callback([flags] {
    const Inspection inspection = inspect_model(*flags);
    if (flags->json)
      print_json(inspection);
    else
      print_text(inspection);
  });
}

}  // namespace quatrain::apps

// SPDX-License-Identifier: Apache-2.0
#include "support/random_model.h"

#include <unistd.h>

#include <cmath>
#include <cstring>
#include <random>
#include <span>

#include "checkpoint/safetensors_writer.h"
#include "core/codec.h"
#include "core/error.h"
#include "core/file.h"

namespace quatrain::testing {

// Fills the tensors of a model, named as the official checkpoints name them.
class RandomModel::Builder {
 public:
  Builder(RandomModel& model, unsigned seed) : model_(model), shape_(model.shape_), random_(seed) {}

  void build() {
    dense("embed", shape_.vocab, shape_.hidden, 1.0f);
    for (std::size_t l = 0; l < shape_.ratios.size(); ++l)
      layer(fmt::format("layers.{}", l), shape_.ratios[l],
            static_cast<std::int64_t>(l) < shape_.hash_layers);
    hyper_connection("hc_head", true);
    norm("norm.weight", shape_.hidden);
    dense("head", shape_.vocab, shape_.hidden, gain(shape_.hidden));
    for (std::int64_t m = 0; m < shape_.mtp_layers; ++m) mtp(fmt::format("mtp.{}", m));
  }

 private:
  static float gain(std::int64_t cols) { return 1 / std::sqrt(static_cast<float>(cols)); }

  float normal() { return normal_(random_); }
  std::uint8_t byte() { return static_cast<std::uint8_t>(random_() & 0xFF); }

  void vector(const std::string& name, std::vector<std::int64_t> shape, float mean, float spread,
              DType dtype = DType::kF32) {
    std::int64_t n = 1;
    for (const std::int64_t extent : shape) n *= extent;
    Stored tensor{.dtype = dtype, .shape = std::move(shape), .floats = {}, .ints = {}, .bytes = {}};
    for (std::int64_t i = 0; i < n; ++i) {
      const float x = mean + spread * normal();
      tensor.floats.push_back(dtype == DType::kBF16 ? bf16_round(x) : x);
    }
    model_.tensors_[name] = std::move(tensor);
  }

  void norm(const std::string& name, std::int64_t width) { vector(name, {width}, 1, 0.3f); }

  // BF16 in quantised models, as the published ones are.
  void dense(const std::string& base, std::int64_t rows, std::int64_t cols, float spread) {
    vector(base + ".weight", {rows, cols}, 0, spread,
           shape_.quantised ? DType::kBF16 : DType::kF32);
  }

  void bytes(const std::string& name, DType dtype, std::vector<std::int64_t> shape,
             std::vector<std::uint8_t> values) {
    model_.tensors_[name] = {.dtype = dtype,
                             .shape = std::move(shape),
                             .floats = {},
                             .ints = {},
                             .bytes = std::move(values)};
  }

  // FP8 with a power of two per 128x128.
  void fp8(const std::string& base, std::int64_t rows, std::int64_t cols) {
    if (!shape_.quantised) return dense(base, rows, cols, gain(cols));
    std::vector<std::uint8_t> values, scales;
    for (std::int64_t i = 0; i < rows * cols; ++i) values.push_back(e4m3_encode(16 * normal()));
    const std::int64_t down = (rows + 127) / 128, across = (cols + 127) / 128;
    for (std::int64_t i = 0; i < down * across; ++i)
      scales.push_back(ue8m0_encode_up(gain(cols) / 16));
    bytes(base + ".weight", DType::kF8E4M3, {rows, cols}, std::move(values));
    bytes(base + ".scale", DType::kF8E8M0, {down, across}, std::move(scales));
  }

  // NVFP4 as ModelOpt stores it, with a calibrated input_scale.
  void nvfp4(const std::string& base, std::int64_t rows, std::int64_t cols) {
    if (!shape_.quantised) return dense(base, rows, cols, gain(cols));
    std::vector<std::uint8_t> values, scales;
    for (std::int64_t i = 0; i < rows * cols / 2; ++i) values.push_back(byte());
    for (std::int64_t i = 0; i < rows * cols / 16; ++i)
      scales.push_back(e4m3_encode(100 * (1 + std::abs(normal()))));
    bytes(base + ".weight", DType::kU8, {rows, cols / 2}, std::move(values));
    bytes(base + ".weight_scale", DType::kF8E4M3, {rows, cols / 16}, std::move(scales));
    model_.put(base + ".weight_scale_2", {}, {gain(cols) / 600});
    model_.put(base + ".input_scale", {}, {6.0f / 2688});
  }

  void hyper_connection(const std::string& prefix, bool head) {
    const std::int64_t hc = shape_.hc, mixes = head ? hc : (2 + hc) * hc;
    vector(prefix + "_fn", {mixes, hc * shape_.hidden}, 0, gain(hc * shape_.hidden));
    vector(prefix + "_base", {mixes}, 0, 1);
    vector(prefix + "_scale", {head ? 1 : 3}, 1, 0.3f);
  }

  void compressor(const std::string& base, std::int64_t ratio, std::int64_t width) {
    const std::int64_t channels = ratio == 4 ? 2 * width : width;
    dense(base + ".wkv", channels, shape_.hidden, gain(shape_.hidden));
    dense(base + ".wgate", channels, shape_.hidden, gain(shape_.hidden));
    vector(base + ".ape", {ratio, channels}, 0, 1);
    norm(base + ".norm.weight", width);
  }

  void attention(const std::string& base, std::int64_t ratio) {
    const std::int64_t heads_width = shape_.heads * shape_.head_dim;
    const std::int64_t o_rows = shape_.o_groups * shape_.o_lora;
    fp8(base + ".wq_a", shape_.q_lora, shape_.hidden);
    fp8(base + ".wq_b", heads_width, shape_.q_lora);
    fp8(base + ".wkv", shape_.head_dim, shape_.hidden);
    fp8(base + ".wo_a", o_rows, heads_width / shape_.o_groups);
    fp8(base + ".wo_b", shape_.hidden, o_rows);
    norm(base + ".q_norm.weight", shape_.q_lora);
    norm(base + ".kv_norm.weight", shape_.head_dim);
    vector(base + ".attn_sink", {shape_.heads}, 0, 1);
    if (ratio > 0) compressor(base + ".compressor", ratio, shape_.head_dim);
    if (ratio != 4) return;
    fp8(base + ".indexer.wq_b", shape_.index_heads * shape_.index_dim, shape_.q_lora);
    dense(base + ".indexer.weights_proj", shape_.index_heads, shape_.hidden, gain(shape_.hidden));
    compressor(base + ".indexer.compressor", 4, shape_.index_dim);
  }

  void ffn(const std::string& base, bool hash) {
    dense(base + ".gate", shape_.experts, shape_.hidden, gain(shape_.hidden));
    if (hash) {
      Stored table{.dtype = DType::kI64,
                   .shape = {shape_.vocab, shape_.experts_per_token},
                   .floats = {},
                   .ints = {},
                   .bytes = {}};
      for (std::int64_t i = 0; i < shape_.vocab * shape_.experts_per_token; ++i)
        table.ints.push_back(static_cast<std::int64_t>(random_() % shape_.experts));
      model_.tensors_[base + ".gate.tid2eid"] = std::move(table);
    } else {
      vector(base + ".gate.bias", {shape_.experts}, 0, 0.3f);
    }
    for (std::int64_t e = 0; e < shape_.experts; ++e) {
      const std::string expert = fmt::format("{}.experts.{}", base, e);
      nvfp4(expert + ".w1", shape_.inner, shape_.hidden);
      nvfp4(expert + ".w3", shape_.inner, shape_.hidden);
      nvfp4(expert + ".w2", shape_.hidden, shape_.inner);
    }
    const std::int64_t shared = shape_.inner * shape_.shared_experts;
    fp8(base + ".shared_experts.w1", shared, shape_.hidden);
    fp8(base + ".shared_experts.w3", shared, shape_.hidden);
    fp8(base + ".shared_experts.w2", shape_.hidden, shared);
  }

  void layer(const std::string& base, std::int64_t ratio, bool hash) {
    hyper_connection(base + ".hc_attn", false);
    hyper_connection(base + ".hc_ffn", false);
    norm(base + ".attn_norm.weight", shape_.hidden);
    norm(base + ".ffn_norm.weight", shape_.hidden);
    attention(base + ".attn", ratio);
    ffn(base + ".ffn", hash);
  }

  void mtp(const std::string& base) {
    norm(base + ".enorm.weight", shape_.hidden);
    norm(base + ".hnorm.weight", shape_.hidden);
    fp8(base + ".e_proj", shape_.hidden, shape_.hidden);
    fp8(base + ".h_proj", shape_.hidden, shape_.hidden);
    layer(base, 0, false);
    hyper_connection(base + ".hc_head", true);
    norm(base + ".norm.weight", shape_.hidden);
  }

  RandomModel& model_;
  const TinyShape& shape_;
  std::mt19937 random_;
  std::normal_distribution<float> normal_{0, 1};
};

RandomModel::RandomModel(const TinyShape& shape, unsigned seed) : shape_(shape) {
  static int count = 0;
  folder_ = std::filesystem::temp_directory_path() /
            fmt::format("quatrain-model-{}-{}", ::getpid(), count++);
  Builder(*this, seed).build();
  const auto number = [](auto value) { return fmt::format("{}", value); };
  config_ = {
      {"model_type", "\"deepseek_v4\""},
      {"vocab_size", number(shape.vocab)},
      {"hidden_size", number(shape.hidden)},
      {"moe_intermediate_size", number(shape.inner)},
      {"num_hidden_layers", number(shape.ratios.size())},
      {"num_attention_heads", number(shape.heads)},
      {"num_key_value_heads", "1"},
      {"head_dim", number(shape.head_dim)},
      {"qk_rope_head_dim", number(shape.rope_dim)},
      {"q_lora_rank", number(shape.q_lora)},
      {"o_groups", number(shape.o_groups)},
      {"o_lora_rank", number(shape.o_lora)},
      {"sliding_window", number(shape.window)},
      {"compress_ratios", fmt::format("[{}]", fmt::join(shape.ratios, ","))},
      {"num_hash_layers", number(shape.hash_layers)},
      {"n_routed_experts", number(shape.experts)},
      {"n_shared_experts", number(shape.shared_experts)},
      {"num_experts_per_tok", number(shape.experts_per_token)},
      {"routed_scaling_factor", number(shape.routed_scale)},
      {"swiglu_limit", number(shape.swiglu_limit)},
      {"hc_mult", number(shape.hc)},
      {"hc_sinkhorn_iters", "20"},
      {"hc_eps", "1e-6"},
      {"index_n_heads", number(shape.index_heads)},
      {"index_head_dim", number(shape.index_dim)},
      {"index_topk", number(shape.index_topk)},
      {"rms_norm_eps", "1e-6"},
      {"rope_theta", "10000"},
      {"compress_rope_theta", "160000"},
      {"rope_scaling", R"({"type":"yarn","factor":16,"original_max_position_embeddings":65536,)"
                       R"("beta_fast":32,"beta_slow":1})"},
      {"max_position_embeddings", number(shape.max_positions)},
      {"num_nextn_predict_layers", number(shape.mtp_layers)},
  };
}

RandomModel::~RandomModel() {
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

std::vector<float>& RandomModel::floats(const std::string& name) {
  QT_CHECK(has(name) && !tensors_[name].floats.empty(), "no float tensor '{}'", name);
  return tensors_[name].floats;
}

const std::vector<float>& RandomModel::floats(const std::string& name) const {
  return const_cast<RandomModel*>(this)->floats(name);
}

std::vector<std::int64_t>& RandomModel::ints(const std::string& name) {
  QT_CHECK(has(name) && !tensors_[name].ints.empty(), "no integer tensor '{}'", name);
  return tensors_[name].ints;
}

const std::vector<std::int64_t>& RandomModel::ints(const std::string& name) const {
  return const_cast<RandomModel*>(this)->ints(name);
}

std::vector<std::string> RandomModel::names() const {
  std::vector<std::string> out;
  for (const auto& [name, tensor] : tensors_) out.push_back(name);
  return out;
}

void RandomModel::erase(const std::string& name) {
  QT_CHECK_EQ(tensors_.erase(name), 1u, "tensors named " + name);
}

void RandomModel::rename(const std::string& from, const std::string& to) {
  QT_CHECK(has(from), "no tensor '{}'", from);
  tensors_[to] = std::move(tensors_[from]);
  tensors_.erase(from);
}

void RandomModel::put(const std::string& name, std::vector<std::int64_t> shape,
                      std::vector<float> values) {
  tensors_[name] = {.dtype = DType::kF32,
                    .shape = std::move(shape),
                    .floats = std::move(values),
                    .ints = {},
                    .bytes = {}};
}

void RandomModel::set_config(const std::string& field, const std::string& json) {
  config_.erase(field);
  if (!json.empty()) config_[field] = json;
}

std::vector<std::byte> RandomModel::encoded(const Stored& tensor) const {
  std::vector<std::byte> out;
  const auto append = [&](const auto& value) {
    const auto bytes = std::as_bytes(std::span(&value, 1));
    out.insert(out.end(), bytes.begin(), bytes.end());
  };
  for (const float x : tensor.floats)
    tensor.dtype == DType::kBF16 ? append(bf16_encode(x)) : append(x);
  for (const std::int64_t i : tensor.ints) append(i);
  for (const std::uint8_t b : tensor.bytes) append(b);
  return out;
}

const std::filesystem::path& RandomModel::write() const {
  std::filesystem::remove_all(folder_);
  std::filesystem::create_directories(folder_);
  std::string json;
  for (const auto& [field, value] : config_)
    json += fmt::format("{}\"{}\": {}", json.empty() ? "{" : ",\n ", field, value);
  write_text_file(folder_ / "config.json", json + "}\n");
  std::vector<TensorSpec> specs;
  for (const auto& [name, tensor] : tensors_) specs.push_back({name, tensor.dtype, tensor.shape});
  SafetensorsFile file(folder_ / "model.safetensors", std::move(specs));
  for (const auto& [name, tensor] : tensors_) file.write(name, encoded(tensor));
  file.commit();
  return folder_;
}

}  // namespace quatrain::testing

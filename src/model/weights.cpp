// SPDX-License-Identifier: Apache-2.0
#include "model/weights.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <span>
#include <unordered_set>

#include "core/codec.h"

namespace quatrain {
namespace {

class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const V4Config& config, Ops& ops, const LoadOptions& options)
      : checkpoint_(checkpoint), config_(config), ops_(ops), options_(options) {
    for (const TensorInfo& tensor : checkpoint.tensors())
      if (options.mtp || !is_mtp(tensor)) total_ += tensor.bytes;
  }

  ModelWeights load() {
    ModelWeights w;
    memory_ = &w.memory;
    w.embed = embedding();
    for (std::int64_t l = 0; l < config_.num_layers; ++l)
      w.layers.push_back(
          layer(fmt::format("layers.{}", l), config_.ratio(l), config_.is_hash_layer(l)));
    w.hc_head = hyper_connection("hc_head", true);
    w.norm = vector("norm.weight", {config_.hidden_size});
    w.head = linear("head", config_.vocab_size, config_.hidden_size);
    if (options_.mtp)
      for (std::int64_t m = 0; m < config_.num_mtp_layers; ++m)
        w.mtp.push_back(mtp(fmt::format("mtp.{}", m)));
    refuse_unused();
    const auto half = config_.rope_dim / 2;
    w.inv_freq = upload(DType::kF32, {half},
                        rope_frequencies(config_.rope_dim, config_.rope_theta, nullptr).data());
    w.compress_inv_freq = upload(DType::kF32, {half},
                                 rope_frequencies(config_.rope_dim, config_.compress_rope_theta,
                                                  config_.has_yarn ? &config_.yarn : nullptr)
                                     .data());
    return w;
  }

 private:
  static bool is_mtp(const TensorInfo& tensor) { return tensor.name.starts_with("mtp."); }

  Tensor upload(DType dtype, std::initializer_list<std::int64_t> shape, const void* data) {
    Tensor view(nullptr, dtype, shape);
    memory_->push_back(ops_.allocate(view.bytes()));
    const Tensor tensor(memory_->back().data(), dtype, shape);
    ops_.upload(tensor, data);
    return tensor;
  }

  void consumed(const TensorInfo& tensor) {
    if (!used_.insert(&tensor).second) return;
    done_ += tensor.bytes;
    if (options_.progress) options_.progress(done_, total_);
  }

  Tensor vector(const std::string& name, std::initializer_list<std::int64_t> shape) {
    const std::vector<float> values =
        checkpoint_.read_f32(name, std::span(shape.begin(), shape.size()));
    consumed(*checkpoint_.find(name));
    return upload(DType::kF32, shape, values.data());
  }

  LoadedLinear load_linear(const std::string& base, std::int64_t rows, std::int64_t cols) {
    const LinearSource source = checkpoint_.linear(base, rows, cols);
    LoadedLinear loaded = checkpoint_.load(source);
    for (const TensorInfo* tensor : source.tensors) consumed(*tensor);
    return loaded;
  }

  LinearPtr linear(const std::string& base, std::int64_t rows, std::int64_t cols) {
    return ops_.pack_linear(load_linear(base, rows, cols).matrix);
  }

  Tensor embedding() {
    const LoadedLinear loaded = load_linear("embed", config_.vocab_size, config_.hidden_size);
    const QuantMatrix& m = loaded.matrix;
    if (m.format == WeightFormat::kDense && m.dtype == DType::kBF16)
      return upload(DType::kBF16, {m.rows, m.cols}, m.values);
    std::vector<float> values(static_cast<std::size_t>(m.rows * m.cols));
    for (std::int64_t r = 0; r < m.rows; ++r) decode_row(m, r, values.data() + r * m.cols);
    return upload(DType::kF32, {m.rows, m.cols}, values.data());
  }

  // `prefix`_fn, _base, _scale; the head has no post and comb parts.
  HcWeights hyper_connection(const std::string& prefix, bool head) {
    const std::int64_t hc = config_.hc_mult;
    const std::int64_t mixes = head ? hc : (2 + hc) * hc;
    return {.fn = vector(prefix + "_fn", {mixes, hc * config_.hidden_size}),
            .base = vector(prefix + "_base", {mixes}),
            .scale = vector(prefix + "_scale", {head ? 1 : 3})};
  }

  CompressorWeights compressor(const std::string& base, std::int64_t ratio, std::int64_t width) {
    const std::int64_t channels = ratio == 4 ? 2 * width : width;
    CompressorWeights w;
    w.wkv = linear(base + ".wkv", channels, config_.hidden_size);
    w.wgate = linear(base + ".wgate", channels, config_.hidden_size);
    w.ape = vector(base + ".ape", {ratio, channels});
    w.norm = vector(base + ".norm.weight", {width});
    return w;
  }

  AttentionWeights attention(const std::string& base, std::int64_t ratio) {
    const std::int64_t hidden = config_.hidden_size;
    const std::int64_t heads_width = config_.num_heads * config_.head_dim;
    const std::int64_t o_rows = config_.o_groups * config_.o_lora_rank;
    AttentionWeights w;
    w.wq_a = linear(base + ".wq_a", config_.q_lora_rank, hidden);
    w.wq_b = linear(base + ".wq_b", heads_width, config_.q_lora_rank);
    w.wkv = linear(base + ".wkv", config_.head_dim, hidden);
    w.wo_a = linear(base + ".wo_a", o_rows, heads_width / config_.o_groups);
    w.wo_b = linear(base + ".wo_b", hidden, o_rows);
    w.q_norm = vector(base + ".q_norm.weight", {config_.q_lora_rank});
    w.kv_norm = vector(base + ".kv_norm.weight", {config_.head_dim});
    w.sinks = vector(base + ".attn_sink", {config_.num_heads});
    if (ratio > 0) w.compressor = compressor(base + ".compressor", ratio, config_.head_dim);
    if (ratio == 4) {
      const std::string indexer = base + ".indexer";
      w.indexer.wq_b = linear(indexer + ".wq_b", config_.index_num_heads * config_.index_head_dim,
                              config_.q_lora_rank);
      w.indexer.weights_proj = linear(indexer + ".weights_proj", config_.index_num_heads, hidden);
      w.indexer.compressor = compressor(indexer + ".compressor", ratio, config_.index_head_dim);
    }
    return w;
  }

  // Every row names experts that exist; ids fit 32 bits.
  Tensor hash_table(const std::string& name) {
    const std::int64_t shape[] = {config_.vocab_size, config_.experts_per_token};
    const std::vector<std::int64_t> wide = checkpoint_.read_ints(name, shape);
    consumed(*checkpoint_.find(name));
    std::vector<std::int32_t> ids(wide.size());
    for (std::size_t i = 0; i < wide.size(); ++i) {
      if (wide[i] < 0 || wide[i] >= config_.num_experts)
        fail("{}: expert {} at element {} is outside [0, {})",
             checkpoint_.where(*checkpoint_.find(name)), wide[i], i, config_.num_experts);
      ids[i] = static_cast<std::int32_t>(wide[i]);
    }
    return upload(DType::kI32, {shape[0], shape[1]}, ids.data());
  }

  FfnWeights ffn(const std::string& base, bool hash) {
    const std::int64_t hidden = config_.hidden_size;
    const std::int64_t inner = config_.moe_intermediate_size;
    const std::int64_t shared = inner * config_.num_shared_experts;
    FfnWeights w;
    w.gate = linear(base + ".gate", config_.num_experts, hidden);
    if (hash)
      w.hash_table = hash_table(base + ".gate.tid2eid");
    else
      w.bias = vector(base + ".gate.bias", {config_.num_experts});
    w.experts = ops_.make_experts(base + ".experts", config_.num_experts, hidden, inner);
    for (std::int64_t e = 0; e < config_.num_experts; ++e) {
      const std::string expert = fmt::format("{}.experts.{}", base, e);
      const LoadedLinear w1 = load_linear(expert + ".w1", inner, hidden);
      const LoadedLinear w3 = load_linear(expert + ".w3", inner, hidden);
      const LoadedLinear w2 = load_linear(expert + ".w2", hidden, inner);
      ops_.pack_expert(*w.experts, e, w1.matrix, w3.matrix, w2.matrix);
      // Gate and up read the same rounded input, so one calibrated scale must serve both.
      if (w1.matrix.input_scale != w3.matrix.input_scale) w.experts->has_input_scales = false;
    }
    w.shared_w1 = linear(base + ".shared_experts.w1", shared, hidden);
    w.shared_w3 = linear(base + ".shared_experts.w3", shared, hidden);
    w.shared_w2 = linear(base + ".shared_experts.w2", hidden, shared);
    return w;
  }

  LayerWeights layer(const std::string& base, std::int64_t ratio, bool hash) {
    LayerWeights w;
    w.ratio = ratio;
    w.hc_attn = hyper_connection(base + ".hc_attn", false);
    w.hc_ffn = hyper_connection(base + ".hc_ffn", false);
    w.attn_norm = vector(base + ".attn_norm.weight", {config_.hidden_size});
    w.ffn_norm = vector(base + ".ffn_norm.weight", {config_.hidden_size});
    w.attn = attention(base + ".attn", ratio);
    w.ffn = ffn(base + ".ffn", hash);
    return w;
  }

  MtpWeights mtp(const std::string& base) {
    const std::int64_t hidden = config_.hidden_size;
    MtpWeights w;
    w.enorm = vector(base + ".enorm.weight", {hidden});
    w.hnorm = vector(base + ".hnorm.weight", {hidden});
    w.e_proj = linear(base + ".e_proj", hidden, hidden);
    w.h_proj = linear(base + ".h_proj", hidden, hidden);
    w.layer = layer(base, 0, false);
    w.hc_head = hyper_connection(base + ".hc_head", true);
    w.norm = vector(base + ".norm.weight", {hidden});
    return w;
  }

  void refuse_unused() {
    std::int64_t unused = 0;
    const TensorInfo* first = nullptr;
    for (const TensorInfo& tensor : checkpoint_.tensors()) {
      if (is_mtp(tensor) || used_.contains(&tensor)) continue;
      if (unused++ == 0) first = &tensor;
    }
    if (unused > 0)
      fail("{} is not part of the architecture that config.json describes ({} such tensors)",
           checkpoint_.where(*first), unused);
  }

  const Checkpoint& checkpoint_;
  const V4Config& config_;
  Ops& ops_;
  const LoadOptions& options_;
  std::vector<Buffer>* memory_ = nullptr;
  std::unordered_set<const TensorInfo*> used_;
  std::int64_t done_ = 0;
  std::int64_t total_ = 0;
};

}  // namespace

ModelWeights load_weights(const Checkpoint& checkpoint, const V4Config& config, Ops& ops,
                          const LoadOptions& options) {
  return Loader(checkpoint, config, ops, options).load();
}

std::vector<float> rope_frequencies(std::int64_t rope_dim, double theta, const YarnConfig* yarn) {
  const auto dims = static_cast<double>(rope_dim);
  std::vector<float> frequencies;
  double low = 0;
  double high = 0;
  if (yarn != nullptr) {
    const auto correction = [&](double rotations) {
      return dims * std::log(yarn->original_max_positions / (rotations * 2 * std::numbers::pi)) /
             (2 * std::log(theta));
    };
    low = std::clamp(std::floor(correction(yarn->beta_fast)), 0.0, dims - 1);
    high = std::clamp(std::ceil(correction(yarn->beta_slow)), 0.0, dims - 1);
    if (low == high) high += 0.001;  // a ramp of no width is a step
  }
  for (std::int64_t i = 0; i < rope_dim / 2; ++i) {
    double f = std::pow(theta, -2.0 * static_cast<double>(i) / dims);
    if (yarn != nullptr) {
      const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
      f = f * (1 - ramp) + f / yarn->factor * ramp;
    }
    frequencies.push_back(static_cast<float>(f));
  }
  return frequencies;
}

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
#include "model/weights.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <numbers>
#include <numeric>
#include <span>
#include <unordered_set>

#include "checkpoint/linear_stream.h"
#include "core/codec.h"

namespace quatrain {
namespace {

// Of one or two dimensions.
Tensor view(void* data, DType dtype, std::span<const std::int64_t> shape) {
  if (shape.size() == 1) return Tensor(data, dtype, {shape[0]});
  return Tensor(data, dtype, {shape[0], shape[1]});
}

// Where the loader's tensors go: into a list that checks them, or to the device.
class TensorSink {
 public:
  virtual ~TensorSink() = default;
  virtual void enter(WeightGroup group) { (void)group; }
  virtual Tensor vector(const std::string& name, std::span<const std::int64_t> shape) = 0;
  virtual Tensor hash_table(const std::string& name, std::span<const std::int64_t> shape) = 0;
  virtual Tensor embedding(const std::string& base, std::int64_t rows, std::int64_t cols) = 0;
  virtual LinearPtr linear(const std::string& base, std::int64_t rows, std::int64_t cols) = 0;
  virtual std::unique_ptr<PackedExperts> experts(const std::string& base, std::int64_t count,
                                                 std::int64_t hidden, std::int64_t inner) = 0;
};

// Finds and checks every tensor.
class ListingSink final : public TensorSink {
 public:
  ListingSink(const Checkpoint& checkpoint, WeightList& list)
      : checkpoint_(checkpoint), list_(list) {}

  void enter(WeightGroup group) override { group_ = group; }

  Tensor vector(const std::string& name, std::span<const std::int64_t> shape) override {
    const TensorInfo& tensor = checkpoint_.expect(name, shape);
    list_.vector_elements += tensor.elements();
    used(tensor);
    return view(nullptr, DType::kF32, shape);
  }
  Tensor hash_table(const std::string& name, std::span<const std::int64_t> shape) override {
    vector(name, shape);
    return view(nullptr, DType::kI32, shape);
  }
  Tensor embedding(const std::string& base, std::int64_t rows, std::int64_t cols) override {
    linear(base, rows, cols);
    return Tensor(nullptr, DType::kF32, {rows, cols});
  }
  LinearPtr linear(const std::string& base, std::int64_t rows, std::int64_t cols) override {
    LinearSource source = checkpoint_.linear(base, rows, cols);
    list_.linear_bytes[static_cast<int>(group_)] +=
        source.weight->bytes + (source.scale ? source.scale->bytes : 0);
    auto handle = std::make_unique<PackedLinear>();
    handle->name = base;
    handle->format = source.format;
    handle->rows = rows;
    handle->cols = cols;
    handle->bytes = source.weight->bytes + (source.scale ? source.scale->bytes : 0);
    for (const TensorInfo* tensor : source.tensors) used(*tensor);
    list_.linears.push_back(std::move(source));
    return handle;
  }
  std::unique_ptr<PackedExperts> experts(const std::string& base, std::int64_t count,
                                         std::int64_t hidden, std::int64_t inner) override {
    auto all = std::make_unique<PackedExperts>();
    all->name = base;
    all->count = count;
    all->hidden = hidden;
    all->intermediate = inner;
    const auto add = [&](const std::string& name, std::int64_t rows, std::int64_t cols) {
      all->bytes += linear(name, rows, cols)->bytes;
      all->has_input_scales = all->has_input_scales && list_.linears.back().input_scale != nullptr;
    };
    for (std::int64_t e = 0; e < count; ++e) {
      const std::string expert = fmt::format("{}.{}", base, e);
      add(expert + ".w1", inner, hidden);
      add(expert + ".w3", inner, hidden);
      add(expert + ".w2", hidden, inner);
    }
    return all;
  }

  void refuse_unused(bool mtp) const {
    std::int64_t unused = 0;
    const TensorInfo* first = nullptr;
    for (const TensorInfo& tensor : checkpoint_.tensors()) {
      if (used_.contains(&tensor) || (!mtp && tensor.name.starts_with("mtp."))) continue;
      if (unused++ == 0) first = &tensor;
    }
    if (unused > 0)
      fail("{} is not part of the architecture that config.json describes ({} such tensors)",
           checkpoint_.where(*first), unused);
  }

 private:
  void used(const TensorInfo& tensor) {
    if (used_.insert(&tensor).second) list_.file_bytes += tensor.bytes;
  }

  const Checkpoint& checkpoint_;
  WeightList& list_;
  WeightGroup group_ = WeightGroup::kOther;
  std::unordered_set<const TensorInfo*> used_;
};

// Takes linears from the stream, hands them to the backend, and gives their memory back when the
// backend has read them.
class LoadingSink final : public TensorSink {
 public:
  LoadingSink(const Checkpoint& checkpoint, const V4Config& config, Ops& ops,
              const WeightList& list, const LoadOptions& options, std::vector<Buffer>& memory)
      : checkpoint_(checkpoint),
        config_(config),
        ops_(ops),
        list_(list),
        options_(options),
        memory_(memory),
        ring_(ops.allocate_host(LinearStream::ring_bytes(list.linears, kLoadRingBytes))),
        stream_(checkpoint, list.linears,
                {static_cast<std::byte*>(ring_.data()), static_cast<std::size_t>(ring_.bytes())},
                kReaders) {}
  // The ring is not freed while the device reads it, however loading ends.
  ~LoadingSink() override {
    for (const auto& fence : in_flight_) fence->wait();
  }

  Tensor upload(DType dtype, std::span<const std::int64_t> shape, const void* data) {
    memory_.push_back(ops_.allocate(view(nullptr, dtype, shape).bytes()));
    const Tensor tensor = view(memory_.back().data(), dtype, shape);
    ops_.upload(tensor, data);
    return tensor;
  }

  Tensor vector(const std::string& name, std::span<const std::int64_t> shape) override {
    const std::vector<float> values = checkpoint_.read_f32(name, shape);
    read(*checkpoint_.find(name));
    return upload(DType::kF32, shape, values.data());
  }

  // Every row names experts that exist; ids fit 32 bits.
  Tensor hash_table(const std::string& name, std::span<const std::int64_t> shape) override {
    const std::vector<std::int64_t> wide = checkpoint_.read_ints(name, shape);
    const TensorInfo& tensor = *checkpoint_.find(name);
    read(tensor);
    std::vector<std::int32_t> ids(wide.size());
    for (std::size_t i = 0; i < wide.size(); ++i) {
      if (wide[i] < 0 || wide[i] >= config_.num_experts)
        fail("{}: expert {} at element {} is outside [0, {})", checkpoint_.where(tensor), wide[i],
             i, config_.num_experts);
      ids[i] = static_cast<std::int32_t>(wide[i]);
    }
    return upload(DType::kI32, shape, ids.data());
  }

  Tensor embedding(const std::string&, std::int64_t, std::int64_t) override {
    const QuantMatrix m = take();
    const std::int64_t shape[] = {m.rows, m.cols};
    Tensor table;
    if (m.format == WeightFormat::kDense && m.dtype == DType::kBF16) {
      table = upload(DType::kBF16, shape, m.values);
    } else {
      std::vector<float> values(static_cast<std::size_t>(m.rows * m.cols));
      for (std::int64_t r = 0; r < m.rows; ++r) decode_row(m, r, values.data() + r * m.cols);
      table = upload(DType::kF32, shape, values.data());
    }
    done(1);
    return table;
  }

  LinearPtr linear(const std::string&, std::int64_t, std::int64_t) override {
    LinearPtr packed = ops_.pack_linear(take());
    done(1);
    return packed;
  }

  std::unique_ptr<PackedExperts> experts(const std::string& base, std::int64_t count,
                                         std::int64_t hidden, std::int64_t inner) override {
    auto all = ops_.make_experts(base, count, hidden, inner);
    all->fp8_inputs = options_.fp8_expert_inputs;
    for (std::int64_t e = 0; e < count; ++e) {
      const QuantMatrix w1 = take(), w3 = take(), w2 = take();
      ops_.pack_expert(*all, e, w1, w3, w2);
      // Gate and up read the same rounded input, so one calibrated scale must serve both.
      if (w1.input_scale != w3.input_scale) all->has_input_scales = false;
      done(3);
    }
    return all;
  }

 private:
  static constexpr int kReaders = 8;

  QuantMatrix take() {
    while (!in_flight_.empty() && (in_flight_.front()->reached() || !stream_.is_ready())) {
      in_flight_.front()->wait();
      in_flight_.pop_front();
      stream_.release();
    }
    const QuantMatrix matrix = stream_.next();
    for (const TensorInfo* tensor : list_.linears[taken_].tensors) read(*tensor);
    ++taken_;
    return matrix;
  }

  // The backend has been given the last `count` linears.
  void done(int count) {
    for (int i = 0; i < count; ++i) {
      if (auto fence = ops_.fence())
        in_flight_.push_back(std::move(fence));
      else
        stream_.release();
    }
  }

  void read(const TensorInfo& tensor) {
    done_ += tensor.bytes;
    if (options_.progress) options_.progress(done_, list_.file_bytes);
  }

  const Checkpoint& checkpoint_;
  const V4Config& config_;
  Ops& ops_;
  const WeightList& list_;
  const LoadOptions& options_;
  std::vector<Buffer>& memory_;
  Buffer ring_;
  LinearStream stream_;
  std::deque<std::unique_ptr<Ops::Fence>> in_flight_;  // of linears to release, oldest first
  std::size_t taken_ = 0;
  std::int64_t done_ = 0;
};

// The table: which tensors a model has, with their shapes, in the order of loading.
class Loader {
 public:
  Loader(const V4Config& config, TensorSink& sink) : config_(config), sink_(sink) {}

  ModelWeights load(bool with_mtp) {
    ModelWeights w;
    sink_.enter(WeightGroup::kEmbedding);
    w.embed = sink_.embedding("embed", config_.vocab_size, config_.hidden_size);
    for (std::int64_t l = 0; l < config_.num_layers; ++l)
      w.layers.push_back(
          layer(fmt::format("layers.{}", l), config_.ratio(l), config_.is_hash_layer(l)));
    sink_.enter(WeightGroup::kEmbedding);
    w.hc_head = hyper_connection("hc_head", true);
    w.norm = vector("norm.weight", {config_.hidden_size});
    w.head = linear("head", config_.vocab_size, config_.hidden_size);
    if (with_mtp)
      for (std::int64_t m = 0; m < config_.num_mtp_layers; ++m)
        w.mtp.push_back(mtp(fmt::format("mtp.{}", m)));
    return w;
  }

 private:
  Tensor vector(const std::string& name, std::initializer_list<std::int64_t> shape) {
    return sink_.vector(name, std::span(shape.begin(), shape.size()));
  }
  LinearPtr linear(const std::string& base, std::int64_t rows, std::int64_t cols) {
    return sink_.linear(base, rows, cols);
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
    sink_.enter(WeightGroup::kAttention);
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

  FfnWeights ffn(const std::string& base, bool hash) {
    const std::int64_t hidden = config_.hidden_size;
    const std::int64_t inner = config_.moe_intermediate_size;
    const std::int64_t shared = inner * config_.num_shared_experts;
    FfnWeights w;
    sink_.enter(WeightGroup::kOther);
    w.gate = linear(base + ".gate", config_.num_experts, hidden);
    if (hash) {
      const std::int64_t shape[] = {config_.vocab_size, config_.experts_per_token};
      w.hash_table = sink_.hash_table(base + ".gate.tid2eid", shape);
    } else {
      w.bias = vector(base + ".gate.bias", {config_.num_experts});
    }
    sink_.enter(WeightGroup::kExperts);
    w.experts = sink_.experts(base + ".experts", config_.num_experts, hidden, inner);
    sink_.enter(WeightGroup::kShared);
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
    sink_.enter(WeightGroup::kOther);
    w.enorm = vector(base + ".enorm.weight", {hidden});
    w.hnorm = vector(base + ".hnorm.weight", {hidden});
    w.e_proj = linear(base + ".e_proj", hidden, hidden);
    w.h_proj = linear(base + ".h_proj", hidden, hidden);
    w.layer = layer(base, 0, false);
    w.hc_head = hyper_connection(base + ".hc_head", true);
    w.norm = vector(base + ".norm.weight", {hidden});
    return w;
  }

  const V4Config& config_;
  TensorSink& sink_;
};

}  // namespace

std::string_view name_of(WeightGroup group) {
  constexpr std::string_view kNames[kWeightGroups] = {"experts", "attention", "shared experts",
                                                      "embedding and head", "other"};
  return kNames[static_cast<int>(group)];
}

std::int64_t WeightList::bytes() const {
  return std::accumulate(linear_bytes, linear_bytes + kWeightGroups, 4 * vector_elements);
}

WeightList list_weights(const Checkpoint& checkpoint, const V4Config& config, bool mtp) {
  WeightList list;
  ListingSink sink(checkpoint, list);
  list.model = Loader(config, sink).load(mtp);
  const std::int64_t half[] = {config.rope_dim / 2};
  list.model.inv_freq = list.model.compress_inv_freq = view(nullptr, DType::kF32, half);
  sink.refuse_unused(mtp);
  return list;
}

ModelWeights load_weights(const Checkpoint& checkpoint, const V4Config& config, Ops& ops,
                          const WeightList& list, const LoadOptions& options) {
  std::vector<Buffer> memory;
  LoadingSink sink(checkpoint, config, ops, list, options, memory);
  ModelWeights w = Loader(config, sink).load(options.mtp);
  const std::int64_t half[] = {config.rope_dim / 2};
  w.inv_freq = sink.upload(DType::kF32, half,
                           rope_frequencies(config.rope_dim, config.rope_theta, nullptr).data());
  w.compress_inv_freq = sink.upload(DType::kF32, half,
                                    rope_frequencies(config.rope_dim, config.compress_rope_theta,
                                                     config.has_yarn ? &config.yarn : nullptr)
                                        .data());
  w.memory = std::move(memory);
  return w;
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

// SPDX-License-Identifier: Apache-2.0
// Interceptor: forwards every operation to another Ops and shows each call to a subclass.
//
// Tracing, checking, comparing and counting are subclasses that override before() and after(), so
// that none of them touches the model.
#pragma once

#include <array>
#include <string>
#include <utility>

#include "ops/ops.h"

namespace quatrain {

/// One call seen from outside: its tensors by name.
struct OpCall {
  struct Field {
    const char* name;
    Tensor tensor;
    bool is_output;
  };
  const char* name = "";
  const PackedLinear* linear = nullptr;    ///< of linear and grouped_linear
  const PackedExperts* experts = nullptr;  ///< of experts
  std::array<Field, 8> fields{};
  int count = 0;

  void in(const char* field, const Tensor& t) { add(field, t, false); }
  void out(const char* field, const Tensor& t) { add(field, t, true); }

 private:
  void add(const char* field, const Tensor& t, bool is_output) {
    QT_CHECK(count < static_cast<int>(fields.size()), "{} has too many fields", name);
    if (t) fields[static_cast<std::size_t>(count++)] = {field, t, is_output};
  }
};

/// A weight's name inside its layer: "wq_a" of "layers.3.attn.wq_a", "indexer.wq_b", "gate",
/// "shared_experts.w1", "head".
inline std::string short_weight_name(const std::string& name) {
  for (const char* part : {".attn.", ".ffn."})
    if (const std::size_t at = name.find(part); at != name.npos)
      return name.substr(at + std::string_view(part).size());
  return name;
}

template <class Args>
OpCall describe_call(const Args& args) {
  OpCall call;
  call.name = Args::kName;
  args.fields(call);
  if constexpr (requires { args.w->rows; }) call.linear = args.w;
  if constexpr (requires { args.w->count; }) call.experts = args.w;
  return call;
}

class Interceptor : public Ops {
 public:
  explicit Interceptor(Ops& inner) : inner_(inner) {}

  std::string_view backend_name() const override { return inner_.backend_name(); }
  std::vector<std::string> kernel_choices() const override { return inner_.kernel_choices(); }
  DType activation_dtype() const override { return inner_.activation_dtype(); }
  DType cache_dtype() const override { return inner_.cache_dtype(); }
  std::int64_t prompt_rows() const override { return inner_.prompt_rows(); }
  MemoryInfo memory() override { return inner_.memory(); }
  Buffer allocate(std::int64_t bytes) override { return inner_.allocate(bytes); }
  void upload(const Tensor& device, const void* host) override { inner_.upload(device, host); }
  void download(void* host, const Tensor& device) override { inner_.download(host, device); }
  void zero(const Tensor& device) override { inner_.zero(device); }
  void copy(const Tensor& to, const Tensor& from) override { inner_.copy(to, from); }
  Buffer allocate_host(std::int64_t bytes) override { return inner_.allocate_host(bytes); }
  void start_download(void* host, const Tensor& device) override {
    inner_.start_download(host, device);
  }
  void wait() override { inner_.wait(); }
  std::unique_ptr<Fence> fence() override { return inner_.fence(); }
  std::unique_ptr<PackedLinear> pack_linear(const QuantMatrix& w) override {
    return inner_.pack_linear(w);
  }
  std::unique_ptr<PackedExperts> make_experts(std::string name, std::int64_t count,
                                              std::int64_t hidden,
                                              std::int64_t intermediate) override {
    return inner_.make_experts(std::move(name), count, hidden, intermediate);
  }
  void pack_expert(PackedExperts& experts, std::int64_t e, const QuantMatrix& w1,
                   const QuantMatrix& w3, const QuantMatrix& w2) override {
    inner_.pack_expert(experts, e, w1, w3, w2);
  }
  void reserve(const StepLimits& limits) override { inner_.reserve(limits); }
  std::int64_t reserve_bytes(const StepLimits& limits) override {
    return inner_.reserve_bytes(limits);
  }
  bool can_record() const override { return inner_.can_record(); }
  std::unique_ptr<Recording> record(const std::function<void()>& body) override {
    return inner_.record(body);
  }
  std::unique_ptr<OpClock> make_clock(std::int64_t points) override {
    return inner_.make_clock(points);
  }
  void scope(std::string_view part, std::int64_t layer) override {
    part_ = part;
    layer_ = layer;
    inner_.scope(part, layer);
  }

#define QT_FORWARD(Args, method)               \
  void method(const op::Args& args) override { \
    const OpCall call = describe_call(args);   \
    before(call);                              \
    inner_.method(args);                       \
    after(call);                               \
  }
  QT_FOR_EACH_OP(QT_FORWARD)
#undef QT_FORWARD

 protected:
  virtual void before(const OpCall& call) { (void)call; }
  virtual void after(const OpCall& call) { (void)call; }

  Ops& inner() { return inner_; }
  std::string_view part() const { return part_; }
  std::int64_t layer() const { return layer_; }

 private:
  Ops& inner_;
  std::string_view part_ = "";
  std::int64_t layer_ = -1;
};

}  // namespace quatrain

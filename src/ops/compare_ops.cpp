// SPDX-License-Identifier: Apache-2.0
#include "ops/compare_ops.h"

#include <cstring>

#include "core/codec.h"
#include "core/step_guard.h"
#include "ops/compare_values.h"

namespace quatrain {
namespace {

// A tensor like `shape`, but for its last dimension.
Tensor with_memory(const Tensor& shape, void* data, DType dtype, std::int64_t width) {
  switch (shape.rank()) {
    case 1:
      return Tensor(data, dtype, {width});
    case 2:
      return Tensor(data, dtype, {shape.dim(0), width});
    case 3:
      return Tensor(data, dtype, {shape.dim(0), shape.dim(1), width});
    default:
      return Tensor(data, dtype, {shape.dim(0), shape.dim(1), shape.dim(2), width});
  }
}

std::vector<std::byte> bytes_of_tensor(Ops& ops, const Tensor& t) {
  std::vector<std::byte> out(static_cast<std::size_t>(t.bytes()));
  ops.download(out.data(), t);
  return out;
}

}  // namespace

// The reference's copies of one call's tensors, and what to compare afterwards.
class CompareOps::Mirror {
 public:
  Mirror(CompareOps& owner, Ops& subject) : owner_(owner), subject_(subject) {}

  Tensor in(const Tensor& t) { return copy(t, activation_type(t)); }
  Tensor constant(const Tensor& t) {
    if (!t) return t;
    const auto found = owner_.constants_.find(t.data());
    if (found != owner_.constants_.end()) return found->second.tensor;
    Constant& made = owner_.constants_[t.data()];
    made.memory = owner_.reference_.allocate(t.bytes());
    made.tensor = with_memory(t, made.memory.data(), t.dtype(), row_width(t));
    owner_.reference_.upload(made.tensor, bytes_of_tensor(subject_, t).data());
    return made.tensor;
  }
  /// An output; what it holds before the call is copied too, for operations in place.
  Tensor out(const std::string& field, const Tensor& t) {
    const Tensor mirror = in(t);
    results_.push_back({field, t, mirror, Kind::kValues, {}});
    return mirror;
  }
  Tensor chosen(const char* field, const Tensor& t) {
    const Tensor mirror = in(t);
    results_.push_back({field, t, mirror, Kind::kIds, {}});
    return mirror;
  }
  /// Ids that were chosen by their scores: differences at the end of the choice are those of noise.
  /// `choose` makes the reference choose as many per row as its argument has place for.
  template <class Choose>
  void allow_near_ties(Choose&& choose) {
    Result& result = results_.back();
    const std::int64_t width = row_width(result.reference);
    const std::int64_t slack = std::max<std::int64_t>(1, width / 32);
    for (const std::int64_t count : {width - slack, width + slack}) {
      if (count == 0) return;
      memory_.push_back(owner_.reference_.allocate(result.reference.bytes() / width * count));
      Tensor ids = with_memory(result.reference, memory_.back().data(), DType::kI32, count);
      choose(ids);
      (count < width ? result.certain : result.likely) = ids;
    }
  }
  /// A cache that the call only reads, of rows of `columns` values.
  Tensor state(const Tensor& t, std::int64_t columns) {
    const bool is_cache = t && t.dtype() == subject_.cache_dtype();
    return copy(t, is_cache ? owner_.reference_.cache_dtype() : t.dtype(), columns);
  }
  /// A cache that the call writes rows of.
  Tensor written(const char* field, const Tensor& t, std::int64_t columns) {
    const Tensor mirror = state(t, columns);
    results_.push_back({field, t, mirror, Kind::kRows, floats(subject_, t, columns)});
    return mirror;
  }

  Batch batch(const Batch& b) {
    return {.token_ids = in(b.token_ids),
            .positions = in(b.positions),
            .slots = in(b.slots),
            .first_rows = in(b.first_rows),
            .block_table = in(b.block_table),
            .is_decode = b.is_decode};
  }
  HcWeights hc(const HcWeights& w) {
    return {.fn = constant(w.fn), .base = constant(w.base), .scale = constant(w.scale)};
  }
  const PackedLinear* linear(const PackedLinear* w) {
    const auto found = owner_.linears_.find(w);
    QT_CHECK(found != owner_.linears_.end(), "{} was not packed through CompareOps", w->name);
    return found->second.get();
  }
  const PackedExperts* experts(const PackedExperts* w) {
    const auto found = owner_.experts_.find(w);
    QT_CHECK(found != owner_.experts_.end(), "{} was not packed through CompareOps", w->name);
    return found->second.get();
  }

  void report(OpDifference difference) {
    for (const Result& result : results_) {
      difference.field = result.field;
      difference.difference = measure(result);
      owner_.differences_.push_back(difference);
    }
  }

 private:
  enum class Kind : std::uint8_t { kValues, kIds, kRows };
  struct Result {
    std::string field;
    Tensor subject, reference;
    Kind kind;
    std::vector<float> before;         // of the subject, for kRows
    Tensor certain = {}, likely = {};  // the reference's first ids, and more of them, for kIds
  };

  DType activation_type(const Tensor& t) const {
    const bool is_activation = t && t.dtype() == subject_.activation_dtype();
    return is_activation ? owner_.reference_.activation_dtype() : t.dtype();
  }

  static std::vector<float> floats(Ops& ops, const Tensor& t, std::int64_t columns) {
    const std::vector<std::byte> bytes = bytes_of_tensor(ops, t);
    return t.dtype() == DType::kU8 ? unpacked(bytes, t, columns) : floats_of(bytes, t);
  }

  Tensor copy(const Tensor& t, DType dtype) { return t ? copy(t, dtype, row_width(t)) : t; }
  Tensor copy(const Tensor& t, DType dtype, std::int64_t columns) {
    if (!t) return t;
    if (dtype == t.dtype()) columns = row_width(t);
    Tensor mirror = with_memory(t, nullptr, dtype, columns);
    memory_.push_back(owner_.reference_.allocate(mirror.bytes()));
    mirror = with_memory(t, memory_.back().data(), dtype, columns);
    if (dtype == t.dtype()) {
      owner_.reference_.upload(mirror, bytes_of_tensor(subject_, t).data());
      return mirror;
    }
    const std::vector<float> wide = floats(subject_, t, columns);
    QT_CHECK(dtype == DType::kF32, "the reference should keep FP32, found {}", name_of(dtype));
    owner_.reference_.upload(mirror, wide.data());
    return mirror;
  }

  double measure(const Result& result) {
    const std::int64_t width = row_width(result.reference);
    const auto ids = [](Ops& ops, const Tensor& t) {
      return IdRows{ints_of(bytes_of_tensor(ops, t)), row_width(t)};
    };
    if (result.likely)
      return choice_difference(ids(subject_, result.subject),
                               ids(owner_.reference_, result.certain),
                               ids(owner_.reference_, result.likely));
    if (result.kind == Kind::kIds)
      return ids_difference(ints_of(bytes_of_tensor(subject_, result.subject)),
                            ints_of(bytes_of_tensor(owner_.reference_, result.reference)), width);
    const std::vector<float> subject = floats(subject_, result.subject, width);
    std::vector<float> reference = floats(owner_.reference_, result.reference, width);
    Distance distance;
    if (result.kind == Kind::kValues) {
      distance.add(subject.data(), reference.data(), std::ssize(subject));
      return distance.value();
    }
    // Where the subject's cache is narrower, so is what the reference would have stored.
    if (result.subject.dtype() == DType::kBF16)
      for (float& x : reference) x = bf16_round(x);
    if (result.subject.dtype() == DType::kF16)
      for (float& x : reference) x = f16_decode(f16_encode(x));
    const auto changed = [&](const std::vector<float>& now, std::int64_t begin) {
      return std::memcmp(now.data() + begin, result.before.data() + begin,
                         static_cast<std::size_t>(width) * sizeof(float)) != 0;
    };
    for (std::int64_t begin = 0; begin < std::ssize(subject); begin += width)
      if (changed(subject, begin) || changed(reference, begin))
        distance.add(subject.data() + begin, reference.data() + begin, width);
    return distance.value();
  }

  CompareOps& owner_;
  Ops& subject_;
  std::vector<Buffer> memory_;
  std::vector<Result> results_;
};

// ---- loading ----

std::unique_ptr<PackedLinear> CompareOps::pack_linear(const QuantMatrix& w) {
  auto packed = inner().pack_linear(w);
  linears_[packed.get()] = reference_.pack_linear(w);
  return packed;
}

std::unique_ptr<PackedExperts> CompareOps::make_experts(std::string name, std::int64_t count,
                                                        std::int64_t hidden,
                                                        std::int64_t intermediate) {
  auto experts = inner().make_experts(name, count, hidden, intermediate);
  experts_[experts.get()] = reference_.make_experts(std::move(name), count, hidden, intermediate);
  return experts;
}

void CompareOps::pack_expert(PackedExperts& experts, std::int64_t e, const QuantMatrix& w1,
                             const QuantMatrix& w3, const QuantMatrix& w2) {
  experts_.at(&experts)->fp8_inputs = experts.fp8_inputs;
  inner().pack_expert(experts, e, w1, w3, w2);
  reference_.pack_expert(*experts_.at(&experts), e, w1, w3, w2);
}

void CompareOps::reserve(const StepLimits& limits) {
  inner().reserve(limits);
  reference_.reserve(limits);
}

// ---- the operations: the same arguments with the reference's tensors ----

namespace {

template <class M>
op::Embed mirrored(const op::Embed& a, M& m) {
  return {.ids = m.in(a.ids), .table = m.constant(a.table), .streams = m.out("streams", a.streams)};
}

template <class M>
op::HcPre mirrored(op::HcPre a, M& m) {
  a.streams = m.in(a.streams);
  a.weights = m.hc(a.weights);
  a.out = m.out("out", a.out);
  a.post = m.out("post", a.post);
  a.comb = m.out("comb", a.comb);
  return a;
}

template <class M>
op::HcPost mirrored(const op::HcPost& a, M& m) {
  return {.f = m.in(a.f),
          .post = m.in(a.post),
          .comb = m.in(a.comb),
          .streams = m.out("streams", a.streams)};
}

template <class M>
op::HcHead mirrored(op::HcHead a, M& m) {
  a.streams = m.in(a.streams);
  a.weights = m.hc(a.weights);
  a.out = m.out("out", a.out);
  return a;
}

template <class M>
op::RmsNorm mirrored(op::RmsNorm a, M& m) {
  a.x = m.in(a.x);
  a.weight = m.constant(a.weight);
  a.out = m.out("out", a.out);
  return a;
}

template <class M>
op::Linear mirrored(op::Linear a, M& m) {
  a.x = m.in(a.x);
  a.w = m.linear(a.w);
  a.out = m.out("out", a.out);
  return a;
}

template <class M>
op::GroupedLinear mirrored(op::GroupedLinear a, M& m) {
  a.x = m.in(a.x);
  a.w = m.linear(a.w);
  a.out = m.out("out", a.out);
  return a;
}

template <class M>
op::Rope mirrored(op::Rope a, M& m) {
  a.x = m.out("x", a.x);
  a.positions = m.in(a.positions);
  a.inv_freq = m.constant(a.inv_freq);
  return a;
}

template <class M>
op::RoundToGrid mirrored(op::RoundToGrid a, M& m) {
  a.x = m.out("x", a.x);
  return a;
}

template <class M>
op::Compress mirrored(op::Compress a, M& m) {
  a.batch = m.batch(a.batch);
  a.values = m.in(a.values);
  a.scores = m.in(a.scores);
  a.bias = m.constant(a.bias);
  a.norm_weight = m.constant(a.norm_weight);
  a.inv_freq = m.constant(a.inv_freq);
  a.state.values = m.written("state.values", a.state.values, row_width(a.state.values));
  a.state.scores = m.written("state.scores", a.state.scores, row_width(a.state.scores));
  a.entries.rows = m.written("entries", a.entries.rows, row_width(a.norm_weight));
  return a;
}

template <class M>
op::IndexSelect mirrored(op::IndexSelect a, M& m) {
  a.batch = m.batch(a.batch);
  a.q = m.in(a.q);
  a.weights = m.in(a.weights);
  a.keys.rows = m.state(a.keys.rows, row_width(a.q));
  a.selected = m.chosen("selected", a.selected);
  a.inv_freq = m.constant(a.inv_freq);
  return a;
}

template <class M>
op::Attend mirrored(op::Attend a, M& m) {
  a.batch = m.batch(a.batch);
  a.q = m.in(a.q);
  a.latents = m.in(a.latents);
  a.ring = m.state(a.ring, row_width(a.latents));
  a.entries.rows = m.state(a.entries.rows, row_width(a.latents));
  a.selected = m.in(a.selected);
  a.sinks = m.constant(a.sinks);
  a.inv_freq = m.constant(a.inv_freq);
  a.out = m.out("out", a.out);
  return a;
}

template <class M>
op::KvStore mirrored(op::KvStore a, M& m) {
  a.batch = m.batch(a.batch);
  a.latents = m.in(a.latents);
  a.ring = m.written("ring", a.ring, row_width(a.latents));
  return a;
}

template <class M>
op::Route mirrored(op::Route a, M& m) {
  a.logits = m.in(a.logits);
  a.bias = m.constant(a.bias);
  a.hash_table = m.constant(a.hash_table);
  a.token_ids = m.in(a.token_ids);
  a.ids = m.chosen("ids", a.ids);
  a.weights = m.out("weights", a.weights);
  return a;
}

template <class M>
op::SwiGlu mirrored(op::SwiGlu a, M& m) {
  a.gate = m.in(a.gate);
  a.up = m.in(a.up);
  a.out = m.out("out", a.out);
  return a;
}

template <class M>
op::Experts mirrored(op::Experts a, M& m) {
  a.batch = m.batch(a.batch);
  a.x = m.in(a.x);
  a.ids = m.in(a.ids);
  a.weights = m.in(a.weights);
  a.w = m.experts(a.w);
  a.out = m.out("out", a.out);
  return a;
}

template <class M>
op::GatherRows mirrored(op::GatherRows a, M& m) {
  a.x = m.in(a.x);
  a.rows = m.in(a.rows);
  a.out = m.out("out", a.out);
  return a;
}

template <class M>
op::AddToStreams mirrored(op::AddToStreams a, M& m) {
  a.e = m.in(a.e);
  a.streams = m.out("streams", a.streams);
  return a;
}

template <class M>
op::Linears mirrored(op::Linears a, M& m) {
  a.x = m.in(a.x);
  for (int i = 0; i < a.count; ++i) {
    auto& product = a.products[static_cast<std::size_t>(i)];
    product.out = m.out(short_weight_name(product.w->name), product.out);
    product.w = m.linear(product.w);
  }
  return a;
}

template <class M>
op::SwiGluLinear mirrored(op::SwiGluLinear a, M& m) {
  a.gate = m.in(a.gate);
  a.up = m.in(a.up);
  a.w = m.linear(a.w);
  a.out = m.out("out", a.out);
  return a;
}

template <class M>
op::HcPreNorm mirrored(op::HcPreNorm a, M& m) {
  a.pre = mirrored(a.pre, m);
  a.norm_weight = m.constant(a.norm_weight);
  return a;
}

template <class M>
op::HcPostPreNorm mirrored(op::HcPostPreNorm a, M& m) {
  a.post = mirrored(a.post, m);
  a.next = mirrored(a.next, m);
  a.next.pre.streams = a.post.streams;
  return a;
}

template <class M>
op::NormRope mirrored(op::NormRope a, M& m) {
  a.positions = m.in(a.positions);
  for (int i = 0; i < a.count; ++i) {
    auto& rows = a.rows[static_cast<std::size_t>(i)];
    rows.x = m.out(i == 0 ? "x" : "x1", rows.x);
    rows.weight = m.constant(rows.weight);
    rows.inv_freq = m.constant(rows.inv_freq);
  }
  return a;
}

template <class M>
op::AttentionInputs mirrored(op::AttentionInputs a, M& m) {
  a.rows = mirrored(a.rows, m);
  for (int i = 0; i < a.count; ++i) {
    auto& compressor = a.compressors[static_cast<std::size_t>(i)];
    compressor = mirrored(compressor, m);
  }
  return a;
}

template <class M>
op::AttendStore mirrored(const op::AttendStore& a, M& m) {
  op::AttendStore mirror{.attend = mirrored(a.attend, m), .queries = a.queries};
  if (a.queries.count > 0) {
    auto& rows = mirror.queries.rows[0];
    rows.x = mirror.attend.q;
    rows.weight = m.constant(rows.weight);
    rows.inv_freq = m.constant(rows.inv_freq);
    mirror.queries.positions = mirror.attend.batch.positions;
  }
  mirror.attend.ring = m.written("ring", a.attend.ring, row_width(a.attend.latents));
  return mirror;
}

}  // namespace

template <class Args>
void CompareOps::compare(const Args& args, void (Ops::*method)(const Args&)) {
  const StepGuardPause pause(nullptr);
  // Sampling is the same bits everywhere or wrong: its tests compare it, and no distance would.
  if constexpr (std::is_same_v<Args, op::Sample>) {
    (inner().*method)(args);
    return;
  } else {
    compare_values(args, method);
  }
}

template <class Args>
void CompareOps::compare_values(const Args& args, void (Ops::*method)(const Args&)) {
  Mirror mirror(*this, inner());
  const Args copies = mirrored(args, mirror);
  (inner().*method)(args);
  (reference_.*method)(copies);
  if constexpr (std::is_same_v<Args, op::IndexSelect>)
    mirror.allow_near_ties([&](const Tensor& ids) {
      op::IndexSelect other = copies;
      other.inv_freq = {};  // its queries are rotated now
      other.selected = ids;
      reference_.index_select(other);
    });
  const OpCall call = describe_call(args);
  mirror.report({.name = call.name,
                 .weight = call.linear != nullptr ? short_weight_name(call.linear->name) : "",
                 .field = "",
                 .part = std::string(part()),
                 .layer = layer()});
}

#define QT_COMPARED(Args, method) \
  void CompareOps::method(const op::Args& args) { compare(args, &Ops::method); }
QT_FOR_EACH_OP(QT_COMPARED)
#undef QT_COMPARED

}  // namespace quatrain

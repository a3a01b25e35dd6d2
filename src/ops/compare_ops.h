// SPDX-License-Identifier: Apache-2.0
// CompareOps: carries every operation out on two backends and keeps how much they differ.
//
// The model runs on the subject. Before each operation the reference is given copies of exactly
// what the subject's operation will read, states included, so a difference is that operation's own
// and not the sum of all before it. Weights are packed on both. Slow: everything is copied through
// host memory.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "ops/interceptor.h"

namespace quatrain {

/// How one output of one call differed.
struct OpDifference {
  std::string name;    ///< of the operation
  std::string weight;  ///< its weight's name inside the layer; empty where there is none
  std::string field;   ///< of the output, such as "out" or "entries"
  std::string part;    ///< "attn", "ffn", …
  std::int64_t layer = -1;
  /// ‖subject − reference‖ / ‖reference‖; of a state over the rows that the call wrote; of chosen
  /// ids the share that the reference did not choose, nearly (of those chosen by scores, one in 32
  /// may change places with the next ones). Infinite where anything is not finite.
  double difference = 0;

  /// "linear wq_b"
  std::string title() const { return weight.empty() ? name : name + " " + weight; }
};

class CompareOps final : public Interceptor {
 public:
  /// Both must outlive this.
  CompareOps(Ops& subject, Ops& reference) : Interceptor(subject), reference_(reference) {}

  /// Of every output since the last clear(), in order.
  const std::vector<OpDifference>& differences() const { return differences_; }
  void clear() { differences_.clear(); }

  std::unique_ptr<PackedLinear> pack_linear(const QuantMatrix& w) override;
  std::unique_ptr<PackedExperts> make_experts(std::string name, std::int64_t count,
                                              std::int64_t hidden,
                                              std::int64_t intermediate) override;
  void pack_expert(PackedExperts& experts, std::int64_t e, const QuantMatrix& w1,
                   const QuantMatrix& w3, const QuantMatrix& w2) override;
  void reserve(const StepLimits& limits) override;
  bool can_record() const override { return false; }

#define QT_COMPARED(Args, method) void method(const op::Args& args) override;
  QT_FOR_EACH_OP(QT_COMPARED)
#undef QT_COMPARED

 private:
  class Mirror;
  template <class Args>
  void compare(const Args& args, void (Ops::*method)(const Args&));
  template <class Args>
  void compare_values(const Args& args, void (Ops::*method)(const Args&));

  Ops& reference_;
  std::vector<OpDifference> differences_;
  std::map<const PackedLinear*, std::unique_ptr<PackedLinear>> linears_;
  std::map<const PackedExperts*, std::unique_ptr<PackedExperts>> experts_;
  struct Constant {
    Buffer memory;
    Tensor tensor;
  };
  std::map<const void*, Constant> constants_;  // by the subject's address; never written to
};

}  // namespace quatrain

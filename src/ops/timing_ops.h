// SPDX-License-Identifier: Apache-2.0
// TimingOps: how long each operation of a step takes, and what it reads, writes and multiplies.
//
// It marks a clock of the backend after every operation, so on a GPU the device's own events tell
// the time, also inside a recorded step, where no launch from the host comes between operations.
#pragma once

#include <string>
#include <vector>

#include "ops/cost_ops.h"

namespace quatrain {

/// One operation of a step.
struct TimedOp {
  std::string name;    ///< "linear"
  std::string weight;  ///< its weight's name inside the layer ("wq_b"), if any
  std::string part;    ///< "attn", "ffn", "head", …
  std::int64_t layer = -1;
  OpCost cost;
};

class TimingOps final : public Interceptor {
 public:
  /// Costs are counted for sequences of `context` tokens; at most `capacity` operations.
  TimingOps(Ops& inner, std::int64_t context, std::int64_t capacity);

  /// A step begins with its embedding; what the one before took is forgotten.
  void scope(std::string_view part, std::int64_t layer) override;
  /// Of the last step.
  const std::vector<TimedOp>& operations() const { return operations_; }
  /// Of each operation, in the step's last run or replay. Waits for it.
  std::vector<double> microseconds() { return clock_->intervals(); }

#define QT_TIMED(Args, method)                         \
  void method(const op::Args& args) override {         \
    begin();                                           \
    inner().method(args);                              \
    end(describe_call(args), cost_of(args, context_)); \
  }
  QT_FOR_EACH_OP(QT_TIMED)
#undef QT_TIMED

 private:
  void begin();
  void end(const OpCall& call, const OpCost& cost);

  std::int64_t context_;
  std::unique_ptr<OpClock> clock_;
  std::vector<TimedOp> operations_;
};

}  // namespace quatrain

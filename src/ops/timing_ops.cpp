// SPDX-License-Identifier: Apache-2.0
#include "ops/timing_ops.h"

#include "core/step_guard.h"

namespace quatrain {

TimingOps::TimingOps(Ops& inner, std::int64_t context, std::int64_t capacity)
    : Interceptor(inner), context_(context), clock_(inner.make_clock(capacity + 1)) {
  operations_.reserve(static_cast<std::size_t>(capacity));
}

void TimingOps::scope(std::string_view part, std::int64_t layer) {
  Interceptor::scope(part, layer);
  if (part != "embed") return;
  operations_.clear();
  clock_->restart();
}

void TimingOps::begin() {
  if (operations_.empty()) clock_->mark();
}

void TimingOps::end(const OpCall& call, const OpCost& cost) {
  clock_->mark();
  const StepGuardPause pause(nullptr);
  TimedOp& done = operations_.emplace_back();
  done.name = call.name;
  if (call.linear != nullptr) done.weight = short_weight_name(call.linear->name);
  done.part = part();
  done.layer = layer();
  done.cost = cost;
}

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// CostOps: computes nothing and counts what a step would read, write and multiply.
//
// The dry run that sizes the scratch arena runs the model on it; benchmarks take their
// speed-of-light column from it.
#pragma once

#include <cstdint>

#include "ops/interceptor.h"
#include "ops/op_cost.h"

namespace quatrain {

#define QT_DECLARE_COST(Args, method) OpCost cost_of(const op::Args& args, std::int64_t context);
QT_FOR_EACH_OP(QT_DECLARE_COST)
#undef QT_DECLARE_COST

class CostOps final : public Interceptor {
 public:
  /// Counts as if every sequence were `context` tokens long. `model` answers questions about types
  /// and memory; none of its operations runs.
  CostOps(Ops& model, std::int64_t context) : Interceptor(model), context_(context) {}

  const OpCost& total() const { return total_; }

#define QT_COUNTED(Args, method) \
  void method(const op::Args& args) override { total_ += cost_of(args, context_); }
  QT_FOR_EACH_OP(QT_COUNTED)
#undef QT_COUNTED

 private:
  std::int64_t context_;
  OpCost total_;
};

}  // namespace quatrain

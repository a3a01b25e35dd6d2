// SPDX-License-Identifier: Apache-2.0
// The operations of one model as cases: every shape that its layers have, for given numbers of rows
// and lengths of context.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "apps/bench_report.h"
#include "apps/op_bench.h"
#include "model/model_source.h"

namespace quatrain::apps {

struct OpCaseOptions {
  std::string filter;  ///< only operations whose name contains this
  std::vector<std::int64_t> rows;
  std::vector<std::int64_t> contexts;
  /// Up to this many rows each belong to a sequence of their own; more are one sequence's prompt.
  std::int64_t most_sequences = 64;
  ExpertActivations activations = ExpertActivations::kBf16;
  LinearActivations linear_activations = LinearActivations::kFull;
  std::int64_t cycle_bytes = 0;  ///< see Backend
};

/// Measures all cases of `source`, a synthetic model with a CSA and an HCA layer. `done` gets each
/// result as it is there.
void measure_operations(Ops& ops, const ModelSource& source, const std::string& model,
                        const OpCaseOptions& options, int repetitions,
                        const std::function<void(OpResult)>& done);

}  // namespace quatrain::apps

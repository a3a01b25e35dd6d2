// SPDX-License-Identifier: Apache-2.0
// MemoryPlan: what a model with given options takes, known before any weight is read.
//
// Weights come from the headers of the checkpoint, caches and scratch from dry runs of the code
// that makes and uses them, so the plan cannot drift from what is allocated.
#pragma once

#include <string>

#include "runtime/options.h"

namespace quatrain {

struct MemoryPlan {
  std::int64_t weights[kWeightGroups] = {};
  std::int64_t caches = 0;           ///< paged rows of all blocks
  std::int64_t cache_per_token = 0;  ///< of them, for one token of one sequence
  std::int64_t state = 0;            ///< per sequence: window rings, open windows, sampling
  std::int64_t scratch = 0;          ///< the arena and what the backend keeps for itself
  std::int64_t step = 0;             ///< inputs, residual streams and logits of a step
  std::int64_t graphs = 0;           ///< recorded steps; an estimate
  std::int64_t arena = 0;            ///< of scratch, the arena

  std::string backend;
  MemoryInfo memory;  ///< when the plan was made
  EngineOptions options;
  DType cache_dtype = DType::kF32;

  std::int64_t weight_bytes() const;
  std::int64_t total() const;
  /// Bytes that are missing; 0 where all fits or nobody knows what is free.
  std::int64_t missing() const;

  /// A line per kind of memory.
  std::string describe() const;
  /// Throws, when memory is missing: how much, and which flags free it.
  void check() const;
};

/// The plan of a model whose weights are `list`. `options` must be resolved.
MemoryPlan plan_memory(Ops& ops, const V4Config& config, const EngineOptions& options,
                       const WeightList& list);

/// The largest step that `options` allow.
StepLimits step_limits(const V4Config& config, const EngineOptions& options);

/// Row counts that decode steps are recorded for: 1, 2, 4, 8, then every eighth, up to the most
/// that `options` allow.
std::vector<std::int64_t> decode_buckets(const EngineOptions& options);

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// SimulatedEngine: an Engine without a model, which hands out tokens at a given rate.
//
// For load tests of what stands in front of an engine. It keeps the interface's promises: bounded
// queue, priorities, cancelling, draining, statistics with exact block counts. Its tokens repeat
// SimulationOptions::output, or the request's prompt; sampling settings other than stop tokens and
// min_tokens change nothing, and log-probabilities are 0.
#pragma once

#include <memory>

#include "quatrain/engine.h"

namespace quatrain {

struct SimulationOptions {
  double tokens_per_second = 20;          ///< of each running request
  double prompt_tokens_per_second = 1e5;  ///< of each prompt, before its first token
  std::int64_t max_num_seqs = 64;         ///< run at once; the others wait
  std::int64_t max_queued_requests = 1024;
  std::int64_t max_queued_tokens = std::int64_t{1} << 20;
  std::int64_t max_model_len = 8192;
  std::int64_t vocab_size = 4096;
  std::vector<std::int32_t> output =
      {};  ///< token ids below vocab_size, repeated; empty: the prompt
};

/// Throws Error on values out of range.
std::unique_ptr<Engine> make_simulated_engine(SimulationOptions options);

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// RequestSampler: how one request's tokens are drawn, and what its events tell of them.
#pragma once

#include <span>
#include <vector>

#include "ops/sampling.h"
#include "quatrain/engine.h"

namespace quatrain {

class RequestSampler {
 public:
  /// Throws Error naming the first field out of its range. `seed` is for a request without one.
  RequestSampler(const EngineRequest& request, std::int64_t vocab_size, std::uint64_t seed);

  RequestSampler(RequestSampler&&) = default;  // the spans of params_ point into the vectors
  RequestSampler(const RequestSampler&) = delete;

  /// How the device draws the request's tokens.
  const SamplingParams& params() const { return params_; }

  /// Puts what was drawn into the event; a result without a token leaves it without one.
  void take(const SampleResult& result, RequestEvent& event) const;

  /// Scores a token of the prompt by the row before it; empty if the row is not finite.
  std::vector<TokenLogprob> score_prompt(std::span<const float> logits, std::int32_t token,
                                         SamplerWorkspace& workspace) const;

 private:
  std::vector<TokenBias> bias_;
  std::vector<std::int32_t> stop_tokens_;
  SamplingParams params_;
  std::int32_t prompt_logprobs_;
};

}  // namespace quatrain

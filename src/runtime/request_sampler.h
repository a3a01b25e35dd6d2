// SPDX-License-Identifier: Apache-2.0
// RequestSampler: turns rows of logits into the tokens and log-probabilities of one request.
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

  /// Draws the token that follows `tokens`, the first `prompt_size` of which are the prompt. The
  /// status tells whether the event holds a token.
  SampleStatus draw(std::span<const float> logits, std::span<const std::int32_t> tokens,
                    std::int64_t prompt_size, SamplerWorkspace& workspace, RequestEvent& event);

  /// Scores a token of the prompt by the row before it; empty if the row is not finite.
  std::vector<TokenLogprob> score_prompt(std::span<const float> logits, std::int32_t token,
                                         SamplerWorkspace& workspace) const;

 private:
  std::vector<TokenBias> bias_;
  std::vector<std::int32_t> stop_tokens_;
  SamplingParams params_;
  std::int32_t prompt_logprobs_;
  std::vector<std::uint32_t> counts_;  // [vocab] once a token was drawn, if a penalty is on
};

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// ConstrainedSampler: draws a request's tokens on the host, from those that its constraint allows.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "ops/sampling.h"
#include "quatrain/engine.h"

namespace quatrain {

class ConstrainedSampler {
 public:
  explicit ConstrainedSampler(std::shared_ptr<TokenConstraint> constraint);

  /// Draws the token that follows `tokens`, the first `prompt_size` of which are the prompt, and
  /// tells the constraint. Every other token counts as impossible: log-probabilities are those of
  /// the distribution that is left, and alternatives only tokens that were possible. Spans of the
  /// result are valid until the next call that uses the workspace.
  SampleResult draw(std::span<const float> logits, std::span<const std::int32_t> tokens,
                    std::int64_t prompt_size, const SamplingParams& params,
                    SamplerWorkspace& workspace);

 private:
  std::span<const float> mask(std::span<const float> logits);

  std::shared_ptr<TokenConstraint> constraint_;
  std::vector<float> masked_;          // [vocab]
  std::vector<std::uint32_t> counts_;  // [vocab] once a token was drawn, if a penalty is on
};

}  // namespace quatrain

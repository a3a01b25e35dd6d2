// SPDX-License-Identifier: Apache-2.0
#include "runtime/constrained_sampler.h"

#include <algorithm>
#include <limits>

namespace quatrain {

ConstrainedSampler::ConstrainedSampler(std::shared_ptr<TokenConstraint> constraint)
    : constraint_(std::move(constraint)) {}

// A logit that is not finite stays as it is, for the sampler to find.
std::span<const float> ConstrainedSampler::mask(std::span<const float> logits) {
  const std::span<const std::uint32_t> allowed = constraint_->allowed();
  masked_.resize(logits.size());
  for (std::size_t id = 0; id < logits.size(); ++id) {
    const bool is_allowed = id / 32 < allowed.size() && (allowed[id / 32] >> (id % 32) & 1) != 0;
    const bool is_kept = is_allowed || is_unusable_logit(logits[id]);
    masked_[id] = is_kept ? logits[id] : -std::numeric_limits<float>::infinity();
  }
  return masked_;
}

SampleResult ConstrainedSampler::draw(std::span<const float> logits,
                                      std::span<const std::int32_t> tokens,
                                      std::int64_t prompt_size, const SamplingParams& params,
                                      SamplerWorkspace& workspace) {
  const auto prompt = static_cast<std::size_t>(prompt_size);
  if (params.uses_counts()) {
    const bool is_first = counts_.empty();
    if (is_first) counts_.resize(logits.size());
    TokenCounts counts(counts_);
    if (is_first)
      counts.add_prompt(tokens.first(prompt));
    else
      counts.add_output(tokens.back());
  }
  SampleResult result = sample({.logits = mask(logits),
                                .counts = counts_,
                                .position = tokens.size(),
                                .output_length = static_cast<std::int32_t>(tokens.size() - prompt)},
                               params, workspace);
  if (result.status != SampleStatus::kOk) return result;
  const auto possible = std::ranges::find_if(result.top, [this](const ScoredToken& token) {
    return masked_[static_cast<std::size_t>(token.id)] == -std::numeric_limits<float>::infinity();
  });
  result.top = result.top.first(static_cast<std::size_t>(possible - result.top.begin()));
  constraint_->advance(result.token);
  return result;
}

}  // namespace quatrain

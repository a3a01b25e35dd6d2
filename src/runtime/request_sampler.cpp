// SPDX-License-Identifier: Apache-2.0
#include "runtime/request_sampler.h"

#include <algorithm>
#include <limits>
#include <set>

#include "core/error.h"

namespace quatrain {
namespace {

void add_alternatives(const SampleResult& result, std::vector<TokenLogprob>& out) {
  std::int32_t rank = 0;
  for (const ScoredToken& top : result.top) out.push_back({top.id, top.logprob, ++rank});
}

}  // namespace

RequestSampler::RequestSampler(const EngineRequest& request, std::int64_t vocab_size,
                               std::uint64_t seed)
    : stop_tokens_(request.stop_tokens), prompt_logprobs_(request.prompt_logprobs) {
  const RequestSampling& s = request.sampling;
  for (const auto& [id, bias] : s.logit_bias) bias_.push_back({id, bias});
  if (s.min_tokens < 0) fail("min_tokens: expected at least 0, found {}", s.min_tokens);
  // Were every token suppressed, there would be none to draw.
  const std::set<std::int32_t> distinct(stop_tokens_.begin(), stop_tokens_.end());
  if (s.min_tokens > 0 && std::ssize(distinct) >= vocab_size)
    fail("min_tokens: {} tokens without any of {} stop tokens is impossible", s.min_tokens,
         distinct.size());
  // What it allows may be stop tokens alone.
  if (s.min_tokens > 0 && request.constraint)
    fail("min_tokens: expected 0 with a constraint, found {}", s.min_tokens);
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  params_ = {.temperature = s.temperature,
             .top_k = s.top_k,
             .top_p = s.top_p,
             .min_p = s.min_p,
             .repetition_penalty = s.repetition_penalty,
             .presence_penalty = s.presence_penalty,
             .frequency_penalty = s.frequency_penalty,
             .logit_bias = bias_,
             .suppressed_ids = stop_tokens_,
             .min_tokens = static_cast<std::int32_t>(std::min(s.min_tokens, kMost)),
             .logprobs = s.logprobs,
             .seed = s.seed.value_or(seed)};
  params_.validate(static_cast<std::int32_t>(vocab_size));
  if (prompt_logprobs_ < -1 || prompt_logprobs_ > kMaxLogprobs)
    fail("prompt_logprobs: expected a number in [0, {}], or -1 for none, found {}", kMaxLogprobs,
         prompt_logprobs_);
}

void RequestSampler::take(const SampleResult& result, RequestEvent& event) const {
  if (result.status != SampleStatus::kOk) return;
  event.token = result.token;
  if (params_.logprobs < 0) return;
  event.logprob = result.logprob;
  event.rank = result.rank;
  add_alternatives(result, event.alternatives);
}

std::vector<TokenLogprob> RequestSampler::score_prompt(std::span<const float> logits,
                                                       std::int32_t token,
                                                       SamplerWorkspace& workspace) const {
  const SampleResult result = score(logits, token, prompt_logprobs_, workspace);
  if (result.status != SampleStatus::kOk) return {};
  std::vector<TokenLogprob> out{{token, result.logprob, result.rank}};
  add_alternatives(result, out);
  return out;
}

}  // namespace quatrain

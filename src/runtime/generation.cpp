// SPDX-License-Identifier: Apache-2.0
#include "runtime/generation.h"

#include <algorithm>
#include <chrono>

namespace quatrain {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

std::string_view name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kContext:
      return "context full";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kNonFinite:
      return "non-finite logits";
  }
  return "?";
}

GenerationStats generate(Session& session, const V4Config& config, const GenerationRequest& request,
                         const std::function<bool(const SampleResult&)>& on_token,
                         const std::function<bool(std::int64_t)>& on_prompt) {
  const auto vocab = static_cast<std::int32_t>(config.vocab_size);
  request.sampling.validate(vocab);
  SamplerWorkspace workspace(vocab);
  std::vector<std::uint32_t> count_words(
      request.sampling.uses_counts() ? static_cast<std::size_t>(vocab) : 0);
  TokenCounts counts(count_words);
  if (!count_words.empty()) counts.add_prompt(request.prompt);

  GenerationStats stats;
  stats.prompt_tokens = static_cast<std::int64_t>(request.prompt.size());
  stats.cached_tokens = session.cached(request.prompt);
  const double start = now();
  std::span<const float> logits = session.feed(request.prompt, on_prompt);
  const double prompt_end = now();
  stats.prompt_seconds = prompt_end - start;
  const auto finish = [&](FinishReason reason) {
    stats.finish = reason;
    stats.output_seconds = now() - prompt_end;
    return stats;
  };
  if (logits.empty()) return finish(FinishReason::kCancelled);

  if (request.max_tokens == 0) return finish(FinishReason::kLength);
  for (;;) {
    const SampleResult result =
        sample({.logits = logits,
                .counts = count_words,
                .position = session.tokens().size(),
                .output_length = static_cast<std::int32_t>(stats.output_tokens)},
               request.sampling, workspace);
    if (result.status != SampleStatus::kOk) return finish(FinishReason::kNonFinite);
    if (std::ranges::find(request.stop_tokens, result.token) != request.stop_tokens.end())
      return finish(FinishReason::kStop);
    ++stats.output_tokens;
    if (!count_words.empty()) counts.add_output(result.token);
    if (!on_token(result)) return finish(FinishReason::kCancelled);
    if (stats.output_tokens == request.max_tokens) return finish(FinishReason::kLength);
    if (session.room() == 0) return finish(FinishReason::kContext);
    logits = session.append(result.token);
  }
}

}  // namespace quatrain

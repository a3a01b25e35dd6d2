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

GenerationStats generate(Session& session, const GenerationRequest& request,
                         const std::function<bool(const SampleResult&)>& on_token,
                         const std::function<bool(std::int64_t)>& on_prompt) {
  GenerationStats stats;
  stats.prompt_tokens = std::ssize(request.prompt);
  stats.cached_tokens = session.cached(request.prompt);
  const double start = now();
  std::optional<SampleResult> result = session.start(request.prompt, request.sampling, on_prompt);
  const double prompt_end = now();
  stats.prompt_seconds = prompt_end - start;
  const auto finish = [&](FinishReason reason) {
    stats.finish = reason;
    stats.output_seconds = now() - prompt_end;
    return stats;
  };
  if (!result) return finish(FinishReason::kCancelled);

  if (request.max_tokens == 0) return finish(FinishReason::kLength);
  for (;; result = session.next(result->token)) {
    if (result->status != SampleStatus::kOk) return finish(FinishReason::kNonFinite);
    if (std::ranges::find(request.stop_tokens, result->token) != request.stop_tokens.end())
      return finish(FinishReason::kStop);
    ++stats.output_tokens;
    if (!on_token(*result)) return finish(FinishReason::kCancelled);
    if (stats.output_tokens == request.max_tokens) return finish(FinishReason::kLength);
    if (session.room() == 0) return finish(FinishReason::kContext);
  }
}

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// Generation: prompt → tokens, one at a time, for one sequence.
//
// Knows token ids only. Text, and with it stop strings, is the caller's: the callback ends it.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "ops/sampling.h"
#include "runtime/session.h"

namespace quatrain {

enum class FinishReason : std::uint8_t {
  kStop,       ///< a stop token
  kLength,     ///< max_tokens
  kContext,    ///< the context is full
  kCancelled,  ///< the callback said so
  kNonFinite,  ///< the logits were not finite; nothing was sampled from them
};

/// "stop", "length", …
std::string_view name_of(FinishReason reason);

struct GenerationRequest {
  std::span<const std::int32_t> prompt;  ///< the whole prefix, BOS included
  SamplingParams sampling;
  std::int64_t max_tokens = -1;               ///< −1: until the context is full
  std::span<const std::int32_t> stop_tokens;  ///< EOS first; not handed out
};

struct GenerationStats {
  std::int64_t prompt_tokens = 0;
  std::int64_t cached_tokens = 0;  ///< of the prompt, that the session already held
  std::int64_t output_tokens = 0;
  double prompt_seconds = 0;
  double output_seconds = 0;
  FinishReason finish = FinishReason::kLength;
};

/// Runs the request in `session`. `on_token` gets each sampled token, stop tokens excepted, and
/// ends the generation by returning false; the lists in its result are valid until the next token.
GenerationStats generate(Session& session, const GenerationRequest& request,
                         const std::function<bool(const SampleResult&)>& on_token,
                         const std::function<bool(std::int64_t)>& on_prompt = {});

}  // namespace quatrain

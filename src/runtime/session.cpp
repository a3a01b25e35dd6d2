// SPDX-License-Identifier: Apache-2.0
#include "runtime/session.h"

#include <algorithm>

namespace quatrain {

std::int64_t Session::cached(std::span<const std::int32_t> tokens) const {
  // The logits of the last token are wanted, so a timeline that already holds all starts over.
  const bool extends =
      tokens_.size() < tokens.size() && std::equal(tokens_.begin(), tokens_.end(), tokens.begin());
  return extends ? static_cast<std::int64_t>(tokens_.size()) : 0;
}

void Session::step(SequenceChunk chunk, bool sampled) {
  if (sampled && chunk.logits != LogitRows::kNone) {
    chunk.logits = LogitRows::kNone;
    chunk.sample = true;
  }
  logits_ = runner_.step({&chunk, 1});
  if (chunk.sample) sampled_ = runner_.samples().front();
  tokens_.insert(tokens_.end(), chunk.tokens.begin(), chunk.tokens.end());
}

bool Session::run(std::span<const std::int32_t> tokens, const OnChunk& on_chunk, bool sampled) {
  if (tokens.empty()) fail("a prompt needs at least one token");
  tokens_.resize(static_cast<std::size_t>(cached(tokens)));
  while (tokens_.size() < tokens.size()) {
    const std::size_t begin = tokens_.size();
    const std::size_t count = std::min(
        tokens.size() - begin, static_cast<std::size_t>(runner_.options().max_num_batched_tokens));
    const bool last = begin + count == tokens.size();
    step({.slot = slot_,
          .position = static_cast<std::int64_t>(begin),
          .tokens = tokens.subspan(begin, count),
          .logits = last ? LogitRows::kLast : LogitRows::kNone},
         sampled);
    if (on_chunk && !on_chunk(static_cast<std::int64_t>(tokens_.size()))) return false;
  }
  return true;
}

std::span<const float> Session::feed(std::span<const std::int32_t> tokens,
                                     const OnChunk& on_chunk) {
  if (!run(tokens, on_chunk, false)) return {};
  return logits_;
}

std::span<const float> Session::append(std::int32_t token) {
  step({.slot = slot_, .position = std::ssize(tokens_), .tokens = {&token, 1}}, false);
  return logits_;
}

std::optional<SampleResult> Session::start(std::span<const std::int32_t> prompt,
                                           const SamplingParams& params, const OnChunk& on_chunk) {
  runner_.set_sampling(slot_, params, prompt);
  if (!run(prompt, on_chunk, true)) return std::nullopt;
  return sampled_;
}

SampleResult Session::next(std::int32_t token) {
  step({.slot = slot_, .position = std::ssize(tokens_), .tokens = {&token, 1}}, true);
  return sampled_;
}

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// Session: one sequence's timeline in a slot of a ModelRunner.
//
// The caller always passes the whole prefix; the session runs only what its caches do not hold yet.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "runtime/model_runner.h"

namespace quatrain {

class Session {
 public:
  explicit Session(ModelRunner& runner, std::int64_t slot = 0) : runner_(runner), slot_(slot) {}

  /// Called after each chunk of a prompt with the tokens done; false stops.
  using OnChunk = std::function<bool(std::int64_t)>;

  /// Makes the timeline equal to `tokens` and returns the logits [V] after the last of them; valid
  /// until the next step. A timeline that `tokens` extends is continued, any other starts over.
  /// Long prompts run in chunks; an empty span says that `on_chunk` stopped it.
  std::span<const float> feed(std::span<const std::int32_t> tokens, const OnChunk& on_chunk = {});

  /// Appends one token and returns the logits after it.
  std::span<const float> append(std::int32_t token);

  /// Makes `prompt` the timeline and samples what follows it with `params`; nothing when `on_chunk`
  /// stopped it. As feed() otherwise; throws on parameters out of range.
  std::optional<SampleResult> start(std::span<const std::int32_t> prompt,
                                    const SamplingParams& params, const OnChunk& on_chunk = {});

  /// Appends one token and samples the next with the parameters of start().
  SampleResult next(std::int32_t token);

  /// Tokens at the start of `tokens` that feed() would not run again.
  std::int64_t cached(std::span<const std::int32_t> tokens) const;

  std::span<const std::int32_t> tokens() const { return tokens_; }
  std::int64_t capacity() const { return runner_.options().max_model_len; }
  std::int64_t room() const { return capacity() - static_cast<std::int64_t>(tokens_.size()); }

 private:
  bool run(std::span<const std::int32_t> tokens, const OnChunk& on_chunk, bool sampled);
  void step(SequenceChunk chunk, bool sampled);

  ModelRunner& runner_;
  std::int64_t slot_;
  std::vector<std::int32_t> tokens_;
  // Of the last step.
  std::span<const float> logits_;
  SampleResult sampled_;
};

}  // namespace quatrain

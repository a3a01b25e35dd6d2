// SPDX-License-Identifier: Apache-2.0
// Session: one sequence's timeline in a slot of a ModelRunner.
//
// The caller always passes the whole prefix; the session runs only what its caches do not hold yet.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "runtime/model_runner.h"

namespace quatrain {

class Session {
 public:
  explicit Session(ModelRunner& runner, std::int64_t slot = 0) : runner_(runner), slot_(slot) {}

  /// Makes the timeline equal to `tokens` and returns the logits [V] after the last of them; valid
  /// until the next step. A timeline that `tokens` extends is continued, any other starts over.
  /// Long prompts run in chunks; `on_chunk` is told the tokens done and may stop by returning
  /// false, which returns an empty span.
  std::span<const float> feed(std::span<const std::int32_t> tokens,
                              const std::function<bool(std::int64_t)>& on_chunk = {});

  /// Tokens at the start of `tokens` that feed() would not run again.
  std::int64_t cached(std::span<const std::int32_t> tokens) const;

  /// Appends one token and returns the logits after it.
  std::span<const float> append(std::int32_t token);

  std::span<const std::int32_t> tokens() const { return tokens_; }
  std::int64_t capacity() const { return runner_.options().max_model_len; }
  std::int64_t room() const { return capacity() - static_cast<std::int64_t>(tokens_.size()); }

 private:
  ModelRunner& runner_;
  std::int64_t slot_;
  std::vector<std::int32_t> tokens_;
};

}  // namespace quatrain

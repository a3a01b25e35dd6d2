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

std::span<const float> Session::feed(std::span<const std::int32_t> tokens,
                                     const std::function<bool(std::int64_t)>& on_chunk) {
  if (tokens.empty()) fail("a prompt needs at least one token");
  tokens_.resize(static_cast<std::size_t>(cached(tokens)));
  std::span<const float> logits;
  while (tokens_.size() < tokens.size()) {
    const std::size_t begin = tokens_.size();
    const std::size_t count = std::min(
        tokens.size() - begin, static_cast<std::size_t>(runner_.options().max_num_batched_tokens));
    const bool last = begin + count == tokens.size();
    const SequenceChunk chunk{.slot = slot_,
                              .position = static_cast<std::int64_t>(begin),
                              .tokens = tokens.subspan(begin, count),
                              .logits = last ? LogitRows::kLast : LogitRows::kNone};
    logits = runner_.step({&chunk, 1});
    tokens_.insert(tokens_.end(), chunk.tokens.begin(), chunk.tokens.end());
    if (on_chunk && !on_chunk(static_cast<std::int64_t>(tokens_.size()))) return {};
  }
  return logits;
}

std::span<const float> Session::append(std::int32_t token) {
  const SequenceChunk chunk{
      .slot = slot_, .position = static_cast<std::int64_t>(tokens_.size()), .tokens = {&token, 1}};
  const std::span<const float> logits = runner_.step({&chunk, 1});
  tokens_.push_back(token);
  return logits;
}

}  // namespace quatrain

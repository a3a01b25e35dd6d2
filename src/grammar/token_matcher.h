// SPDX-License-Identifier: Apache-2.0
// TokenMatcher: which tokens may come next, so that a text stays within a grammar.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "grammar/automaton.h"
#include "grammar/vocabulary.h"

namespace quatrain::grammar {

/// Follows one text. Not for several threads at a time.
class TokenMatcher {
 public:
  TokenMatcher(std::shared_ptr<const Grammar> grammar,
               std::shared_ptr<const Vocabulary> vocabulary);

  /// Bit id % 32 of word id / 32: the token may come next. The token that ends a text may where
  /// the text is complete. Valid until the next call of anything.
  std::span<const std::uint32_t> allowed();

  /// Takes the token that came. One that was not allowed makes the matcher allow none any more.
  void advance(std::int32_t token);

  /// Whether the text is complete, though more may follow.
  [[nodiscard]] bool may_end() const;
  [[nodiscard]] const Vocabulary& vocabulary() const { return *vocabulary_; }

 private:
  using Threads = std::vector<Automaton::Thread>;
  // The mask of a state, which is described by its threads.
  struct Known {
    std::vector<std::uint64_t> state;
    std::vector<std::uint32_t> mask;
  };

  void compute(std::vector<std::uint32_t>& mask);
  void walk(const Vocabulary::Tree& tree, const Threads& threads, std::vector<std::uint32_t>& mask);

  std::shared_ptr<const Vocabulary> vocabulary_;
  Automaton automaton_;
  Threads threads_;  // of the text so far
  bool is_ended_ = false;

  // Tokens inside one string come from the same state again and again.
  std::array<Known, 4> known_;
  std::size_t oldest_ = 0;

  // Of walk(): the threads of each depth one behind the other, where each depth's begin, and how
  // many cells were there before.
  Threads walked_;
  std::vector<std::size_t> begins_, cells_;
};

}  // namespace quatrain::grammar

// SPDX-License-Identifier: Apache-2.0
// The tokens of a vocabulary, laid out for asking which of them a grammar allows.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "grammar/byte_trie.h"
#include "grammar/text_guard.h"

namespace quatrain::grammar {

/// Constant once built; made once for each tokenizer. About 60 bytes per byte of the vocabulary.
class Vocabulary {
 public:
  /// `tokens[id]` are the bytes of a token; an empty one is never allowed. A control token that a
  /// grammar may ask for has kControlByte in front. `end` ends a text.
  Vocabulary(std::vector<std::string> tokens, std::optional<std::int32_t> end,
             const TextGuard& guard);

  [[nodiscard]] std::int32_t size() const { return static_cast<std::int32_t>(tokens_.size()); }
  [[nodiscard]] std::size_t words() const { return (tokens_.size() + 31) / 32; }
  /// Empty for an id that no token has.
  [[nodiscard]] std::string_view token(std::int32_t id) const {
    return id >= 0 && id < size() ? std::string_view(tokens_[id]) : std::string_view();
  }
  [[nodiscard]] std::optional<std::int32_t> end() const { return end_; }

  /// Tokens by their bytes.
  struct Tree {
    ByteTrie trie;
    std::vector<std::int32_t> ids;  // of the trie's texts
  };
  [[nodiscard]] const Tree& all() const { return all_; }
  /// Those that plain() never has.
  [[nodiscard]] const Tree& others() const { return others_; }

  /// The mask of tokens that consist of at most `room` plain characters and may stand anywhere in a
  /// string: bit id % 32 of word id / 32.
  [[nodiscard]] std::span<const std::uint32_t> plain(std::uint32_t room) const;

 private:
  static constexpr std::uint32_t kLongestPlain = 24;  // in characters; longer tokens are `others`

  Tree tree_of(std::vector<std::int32_t> ids) const;

  std::vector<std::string> tokens_;
  std::optional<std::int32_t> end_;
  Tree all_, others_;
  std::vector<std::uint32_t> plain_;  // [kLongestPlain + 1, words()]
};

}  // namespace quatrain::grammar

// SPDX-License-Identifier: Apache-2.0
// What a Tokenizer holds. Private to tokenizer.cpp and tokenizer_file.cpp.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/bpe.h"
#include "tokenizer/tokenizer.h"

namespace quatrain {

/// Bytes of all tokens, by id.
class TokenBytes {
 public:
  void resize(std::size_t count) { entries_.resize(count); }

  void set(std::int32_t id, std::string_view bytes) {
    entries_[id] = {static_cast<std::uint32_t>(storage_.size()),
                    static_cast<std::uint32_t>(bytes.size())};
    storage_ += bytes;
  }

  [[nodiscard]] std::size_t count() const { return entries_.size(); }

  [[nodiscard]] std::string_view get(std::int32_t id) const {
    return std::string_view(storage_).substr(entries_[id].begin, entries_[id].size);
  }

 private:
  struct Entry {
    std::uint32_t begin = 0, size = 0;  // size 0: no token has this id
  };
  std::vector<Entry> entries_;
  std::string storage_;
};

/// Bytes → id for a set of tokens. Open addressing; the bytes stay in TokenBytes.
class TokenIndex {
 public:
  /// Makes room for `count` tokens; drops what is there.
  void reserve(std::size_t count);
  /// Adds a token whose bytes are not in the index.
  void insert(const TokenBytes& tokens, std::int32_t id);
  /// Id of the token with these bytes, or kNone.
  [[nodiscard]] std::int32_t find(const TokenBytes& tokens, std::string_view bytes) const;

  static constexpr std::int32_t kNone = -1;

 private:
  [[nodiscard]] std::size_t slot_of(std::string_view bytes) const;

  std::vector<std::int32_t> slots_;
  int shift_ = 64;
};

/// Finds the texts of added tokens in a text.
class AddedTokenMatcher {
 public:
  struct Token {
    std::string text;
    std::int32_t id;
  };
  struct Match {
    std::size_t begin, size;
    std::int32_t id;
  };

  AddedTokenMatcher() = default;
  /// The texts must be distinct and not empty.
  explicit AddedTokenMatcher(std::vector<Token> tokens);

  /// The first match at or after `from`: the lowest position, there the longest token.
  [[nodiscard]] std::optional<Match> find(std::string_view text, std::size_t from) const;

  [[nodiscard]] std::optional<std::int32_t> id_of(std::string_view text) const;

 private:
  [[nodiscard]] const Token* longest_prefix(std::string_view text) const;

  std::vector<Token> tokens_;          // sorted by text
  std::array<bool, 256> can_begin_{};  // bytes that a token begins with
};

struct Tokenizer::Data {
  TokenBytes tokens;
  std::vector<bool> special;                 // by id
  TokenIndex vocabulary;                     // tokens of the model, without the added ones
  TokenIndex whole_pieces;                   // those that encoding their own bytes gives back
  std::array<std::int32_t, 256> byte_ids{};  // the token of each single byte
  MergeTable merges;
  AddedTokenMatcher added;
  std::optional<std::int32_t> bos, eos;
  bool add_bos = false;
};

}  // namespace quatrain

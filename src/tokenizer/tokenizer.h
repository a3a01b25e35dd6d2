// SPDX-License-Identifier: Apache-2.0
// The tokenizer of DeepSeek-V4: text ↔ token ids, from tokenizer.json.
//
// Byte-level BPE with the V4 pre-tokenizer and nothing else: files that ask for another algorithm
// are refused. Chat roles are in chat_encoding.h, streaming output in stream_decoder.h.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace quatrain {

/// Well-known control tokens. The bars are U+FF5C, the underscores U+2581.
inline constexpr std::string_view kBosToken = "<｜begin▁of▁sentence｜>";
inline constexpr std::string_view kEosToken = "<｜end▁of▁sentence｜>";

/// What encode() does with the text of an added token, such as "<think>", inside the text.
enum class AddedTokens {
  kMatch,  // it becomes that token: longest match at each position, before anything else
  kText,   // it is text like any other and no added token comes out: for text of users
};

/// Constant after loading, apart from the setters; encode() and decode() may run in any thread.
class Tokenizer {
 public:
  /// Reads tokenizer.json, given as the file or as its folder, and tokenizer_config.json beside it
  /// when there is one. Throws Error naming the file, the field, what was expected and found.
  static Tokenizer load(const std::filesystem::path& path);

  /// The same from the text of tokenizer.json; `name` is used in error messages. The text may be
  /// hostile: sizes and ids are bounded (see tokenizer_file.cpp).
  static Tokenizer parse(std::string_view json, std::string_view name = "tokenizer.json");

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// Ids of `text`. Adds no BOS. Bytes that are not UTF-8 are encoded as they are.
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text,
                                                 AddedTokens added = AddedTokens::kMatch) const;

  /// encode() that appends to `ids`.
  void encode_to(std::string_view text, AddedTokens added, std::vector<std::int32_t>& ids) const;

  /// The bytes of the ids, one after the other: the inverse of encode(). Ids without a token give
  /// nothing. The result is not UTF-8 if the ids begin or end within a character.
  [[nodiscard]] std::string decode(std::span<const std::int32_t> ids,
                                   bool skip_special = false) const;

  /// One more than the highest id. Not every id below needs to have a token.
  [[nodiscard]] std::int32_t vocab_size() const;

  /// Whether a token has this id; any value may be asked.
  [[nodiscard]] bool has_token(std::int32_t id) const;

  /// The bytes of a token; empty when no token has this id.
  [[nodiscard]] std::string_view token(std::int32_t id) const;

  /// The id of the token with exactly these bytes. Added tokens come first.
  [[nodiscard]] std::optional<std::int32_t> id_of(std::string_view bytes) const;

  /// The id of an added token by its text.
  [[nodiscard]] std::optional<std::int32_t> added_id_of(std::string_view text) const;

  /// Whether the id is an added token marked special in the file.
  [[nodiscard]] bool is_special(std::int32_t id) const;

  /// Begin and end of sentence: as tokenizer_config.json names them, otherwise kBosToken and
  /// kEosToken when the vocabulary has them. Generation stops at EOS only.
  [[nodiscard]] std::optional<std::int32_t> bos_id() const;
  [[nodiscard]] std::optional<std::int32_t> eos_id() const;
  void set_bos_id(std::optional<std::int32_t> id);
  void set_eos_id(std::optional<std::int32_t> id);

  /// `add_bos_token` of tokenizer_config.json, false when not given: whether a raw prompt (not a
  /// chat) should begin with BOS. encode() never adds it.
  [[nodiscard]] bool add_bos() const;

 private:
  struct Data;
  friend class TokenizerFile;
  explicit Tokenizer(std::unique_ptr<Data> data);
  void encode_text(std::string_view text, std::vector<std::int32_t>& ids) const;

  std::unique_ptr<Data> data_;
};

}  // namespace quatrain

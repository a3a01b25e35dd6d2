// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/tokenizer_data.h"

namespace quatrain {

// ---- TokenIndex ----

void TokenIndex::reserve(std::size_t count) {
  const std::size_t size = std::bit_ceil(2 * count + 2);  // at most half full
  slots_.assign(size, kNone);
  shift_ = 64 - std::countr_zero(size);
}

std::size_t TokenIndex::slot_of(std::string_view bytes) const {
  std::uint64_t hash = bytes.size();
  while (!bytes.empty()) {
    std::uint64_t word = 0;
    const std::size_t n = std::min<std::size_t>(bytes.size(), 8);
    std::memcpy(&word, bytes.data(), n);
    hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 32;
    bytes.remove_prefix(n);
  }
  return static_cast<std::size_t>((hash * 0x9E3779B97F4A7C15u) >> shift_);
}

void TokenIndex::insert(const TokenBytes& tokens, std::int32_t id) {
  std::size_t i = slot_of(tokens.get(id));
  while (slots_[i] != kNone) i = (i + 1) & (slots_.size() - 1);
  slots_[i] = id;
}

std::int32_t TokenIndex::find(const TokenBytes& tokens, std::string_view bytes) const {
  if (slots_.empty()) return kNone;
  std::size_t i = slot_of(bytes);
  while (slots_[i] != kNone && tokens.get(slots_[i]) != bytes) i = (i + 1) & (slots_.size() - 1);
  return slots_[i];
}

// ---- AddedTokenMatcher ----

AddedTokenMatcher::AddedTokenMatcher(std::vector<Token> tokens) : tokens_(std::move(tokens)) {
  std::sort(tokens_.begin(), tokens_.end(),
            [](const Token& a, const Token& b) { return a.text < b.text; });
  for (const Token& token : tokens_) can_begin_[static_cast<unsigned char>(token.text[0])] = true;
}

// Narrows the sorted range of tokens that share a growing prefix with `text`. In such a range the
// token that equals the prefix, if there is one, comes first.
const AddedTokenMatcher::Token* AddedTokenMatcher::longest_prefix(std::string_view text) const {
  const Token* longest = nullptr;
  auto first = tokens_.begin(), last = tokens_.end();
  for (std::size_t i = 0; i < text.size() && first != last; ++i) {
    const auto byte_at = [i](const Token& token) {  // -1: the token ends before byte i
      return i < token.text.size() ? static_cast<unsigned char>(token.text[i]) : -1;
    };
    const int wanted = static_cast<unsigned char>(text[i]);
    first = std::partition_point(first, last, [&](const Token& t) { return byte_at(t) < wanted; });
    last = std::partition_point(first, last, [&](const Token& t) { return byte_at(t) == wanted; });
    if (first != last && first->text.size() == i + 1) longest = &*first;
  }
  return longest;
}

std::optional<AddedTokenMatcher::Match> AddedTokenMatcher::find(std::string_view text,
                                                                std::size_t from) const {
  for (std::size_t i = from; i < text.size(); ++i) {
    if (!can_begin_[static_cast<unsigned char>(text[i])]) continue;
    if (const Token* token = longest_prefix(text.substr(i)))
      return Match{i, token->text.size(), token->id};
  }
  return std::nullopt;
}

std::optional<std::int32_t> AddedTokenMatcher::id_of(std::string_view text) const {
  const auto it = std::lower_bound(tokens_.begin(), tokens_.end(), text,
                                   [](const Token& t, std::string_view s) { return t.text < s; });
  if (it == tokens_.end() || it->text != text) return std::nullopt;
  return it->id;
}

// ---- Tokenizer ----

Tokenizer::Tokenizer(std::unique_ptr<Data> data) : data_(std::move(data)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

void Tokenizer::encode_text(std::string_view text, std::vector<std::int32_t>& ids) const {
  PreTokenizer pieces(text);
  std::string_view piece;
  while (pieces.next(piece)) {
    const std::int32_t whole = data_->whole_pieces.find(data_->tokens, piece);
    if (whole != TokenIndex::kNone) {
      ids.push_back(whole);
      continue;
    }
    const std::size_t begin = ids.size();
    for (const char c : piece) ids.push_back(data_->byte_ids[static_cast<unsigned char>(c)]);
    const std::size_t count = merge_pairs(data_->merges, std::span(ids).subspan(begin));
    ids.resize(begin + count);
  }
}

void Tokenizer::encode_to(std::string_view text, AddedTokens added,
                          std::vector<std::int32_t>& ids) const {
  std::size_t done = 0;
  if (added == AddedTokens::kMatch) {
    while (const auto match = data_->added.find(text, done)) {
      encode_text(text.substr(done, match->begin - done), ids);
      ids.push_back(match->id);
      done = match->begin + match->size;
    }
  }
  encode_text(text.substr(done), ids);
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, AddedTokens added) const {
  std::vector<std::int32_t> ids;
  encode_to(text, added, ids);
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special) const {
  std::string text;
  for (const std::int32_t id : ids)
    if (!skip_special || !is_special(id)) text += token(id);
  return text;
}

std::int32_t Tokenizer::vocab_size() const {
  return static_cast<std::int32_t>(data_->tokens.count());
}

bool Tokenizer::has_token(std::int32_t id) const { return !token(id).empty(); }

std::string_view Tokenizer::token(std::int32_t id) const {
  return id >= 0 && id < vocab_size() ? data_->tokens.get(id) : std::string_view();
}

std::optional<std::int32_t> Tokenizer::id_of(std::string_view bytes) const {
  if (const auto id = added_id_of(bytes)) return id;
  const std::int32_t id = data_->vocabulary.find(data_->tokens, bytes);
  return id != TokenIndex::kNone ? std::optional(id) : std::nullopt;
}

std::optional<std::int32_t> Tokenizer::added_id_of(std::string_view text) const {
  return data_->added.id_of(text);
}

bool Tokenizer::is_special(std::int32_t id) const {
  return id >= 0 && id < vocab_size() && data_->special[id];
}

std::optional<std::int32_t> Tokenizer::bos_id() const { return data_->bos; }
std::optional<std::int32_t> Tokenizer::eos_id() const { return data_->eos; }
void Tokenizer::set_bos_id(std::optional<std::int32_t> id) { data_->bos = id; }
void Tokenizer::set_eos_id(std::optional<std::int32_t> id) { data_->eos = id; }
bool Tokenizer::add_bos() const { return data_->add_bos; }

}  // namespace quatrain

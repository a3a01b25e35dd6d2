// SPDX-License-Identifier: Apache-2.0
#include "grammar/vocabulary.h"

#include <algorithm>

#include "grammar/grammar.h"
#include "grammar/leaf.h"

namespace quatrain::grammar {
namespace {

// Tokens that can be part of no text: they would only be tried.
bool is_hopeless(std::string_view token) {
  if (token.size() > ByteTrie::kMaxText) return true;
  const bool is_control = token.starts_with(kControlByte);
  if (is_control) return token.size() == 1;
  return std::ranges::any_of(token, [](char c) { return static_cast<unsigned char>(c) >= 0xF8; });
}

}  // namespace

Vocabulary::Vocabulary(std::vector<std::string> tokens, std::optional<std::int32_t> end,
                       const TextGuard& guard)
    : tokens_(std::move(tokens)), end_(end), plain_((kLongestPlain + 1) * words()) {
  std::vector<std::int32_t> all, others;
  for (std::int32_t id = 0; id < size(); ++id) {
    std::string& token = tokens_[id];
    if (id == end_ || is_hopeless(token)) token.clear();
    if (token.empty()) continue;
    all.push_back(id);
    const int characters = plain_characters(token, guard);
    if (characters < 0 || characters > static_cast<int>(kLongestPlain)) {
      others.push_back(id);
      continue;
    }
    for (std::uint32_t room = static_cast<std::uint32_t>(characters); room <= kLongestPlain; ++room)
      plain_[room * words() + static_cast<std::size_t>(id) / 32] |= std::uint32_t{1} << (id % 32);
  }
  all_ = tree_of(std::move(all));
  others_ = tree_of(std::move(others));
}

Vocabulary::Tree Vocabulary::tree_of(std::vector<std::int32_t> ids) const {
  std::ranges::stable_sort(ids, {}, [this](std::int32_t id) { return token(id); });
  std::vector<std::string_view> texts;
  for (const std::int32_t id : ids) texts.push_back(token(id));
  return {ByteTrie(texts), std::move(ids)};
}

std::span<const std::uint32_t> Vocabulary::plain(std::uint32_t room) const {
  return std::span(plain_).subspan(std::min(room, kLongestPlain) * words(), words());
}

}  // namespace quatrain::grammar

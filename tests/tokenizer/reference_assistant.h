// SPDX-License-Identifier: Apache-2.0
// The reading of an answer as functions of the whole text: what the stream is compared with.
#pragma once

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "core/json.h"
#include "tokenizer/assistant_parser.h"
#include "tokenizer/chat_templates.h"
#include "tokenizer/python_json.h"

namespace quatrain::testing::reference {

constexpr auto kNone = std::string_view::npos;
constexpr std::size_t kMaxTagBytes = 4096;

// One tag <｜DSML｜name attributes> or </｜DSML｜name>.
struct Tag {
  std::size_t begin, end;
  bool is_closing;
  bool is_complete;  // has its ">"
  std::string_view name;
  std::string_view attributes;
};

inline std::size_t skip_spaces(std::string_view text, std::size_t i) {
  const std::size_t limit = std::min(text.size(), i + 16);
  while (i < limit && text[i] == ' ') ++i;
  return i;
}

// The tag whose "<" is at `begin`, if it is one.
inline std::optional<Tag> tag_at(std::string_view text, std::size_t begin) {
  Tag tag{};
  tag.begin = begin;
  std::size_t i = skip_spaces(text, begin + 1);
  tag.is_closing = i < text.size() && text[i] == '/';
  if (tag.is_closing) i = skip_spaces(text, i + 1);
  constexpr std::string_view kAsciiDsml = "|DSML|";
  if (text.substr(i).starts_with(chat::kDsml))
    i += chat::kDsml.size();
  else if (text.substr(i).starts_with(kAsciiDsml))
    i += kAsciiDsml.size();
  else
    return std::nullopt;
  i = skip_spaces(text, i);
  const std::size_t name_begin = i;
  while (i < text.size() && ((text[i] >= 'a' && text[i] <= 'z') || text[i] == '_')) ++i;
  tag.name = text.substr(name_begin, i - name_begin);
  const std::size_t limit = std::min(text.size(), begin + kMaxTagBytes);
  const std::size_t attributes_begin = i;
  for (bool in_quotes = false; i < limit && (in_quotes || text[i] != '>'); ++i)
    if (text[i] == '"') in_quotes = !in_quotes;
  tag.is_complete = i < limit;
  tag.attributes = text.substr(attributes_begin, i - attributes_begin);
  tag.end = tag.is_complete ? i + 1 : i;
  return tag;
}

inline std::optional<Tag> next_tag(std::string_view text, std::size_t from) {
  for (auto i = text.find('<', from); i != kNone; i = text.find('<', i + 1))
    if (auto tag = tag_at(text, i)) return tag;
  return std::nullopt;
}

// The value of name="value" among the attributes.
inline std::optional<std::string_view> attribute(const Tag& tag, std::string_view name) {
  const std::string opening = fmt::format(" {}=\"", name);
  const auto begin = tag.attributes.find(opening);
  if (begin == kNone) return std::nullopt;
  const auto value = tag.attributes.substr(begin + opening.size());
  const auto end = value.find('"');
  if (end == kNone) return std::nullopt;
  return value.substr(0, end);
}

// Where the markup of tool calls begins. A marker that is cut off by the end of the text counts.
inline std::size_t find_markup(std::string_view text) {
  const auto tag = next_tag(text, 0);
  const auto bare = text.find(chat::kDsml);
  if (bare != kNone) return std::min(bare, tag ? tag->begin : bare);
  if (tag) return tag->begin;
  if (const auto begin = text.rfind('<'); begin != kNone) {
    std::size_t i = skip_spaces(text, begin + 1);
    if (i < text.size() && text[i] == '/') i = skip_spaces(text, i + 1);
    const auto rest = text.substr(i);
    const bool is_cut_off = (rest.size() >= 4 && chat::kDsml.starts_with(rest)) ||
                            (rest.size() >= 2 && std::string_view("|DSML|").starts_with(rest));
    if (is_cut_off) return begin;
  }
  for (std::size_t n = 4; n < chat::kDsml.size() && n <= text.size(); ++n)
    if (text.ends_with(chat::kDsml.substr(0, n))) return text.size() - n;
  return kNone;
}

// A call whose invoke tag was seen; its parameters as text of a JSON object.
struct OpenCall {
  std::string name;
  std::string members;

  void add(std::string_view key, std::string_view value, bool is_string) {
    simdjson::dom::parser parser;
    simdjson::dom::element parsed;
    const bool is_json = !is_string && detail::parse_json(parser, value, parsed);
    if (!members.empty()) members += ", ";
    members += json_quote(key) + ": " + (is_json ? detail::python_json(parsed) : json_quote(value));
  }

  ToolCall finish() {
    std::string arguments = "{";
    arguments += members;
    arguments += '}';
    simdjson::dom::parser parser;
    simdjson::dom::element parsed;
    // Written once more so that each key appears once.
    if (detail::parse_json(parser, arguments, parsed)) arguments = detail::python_json(parsed);
    return {"", std::move(name), std::move(arguments)};
  }
};

inline std::vector<ToolCall> parse_calls(std::string_view text) {
  std::vector<ToolCall> calls;
  std::optional<OpenCall> open;
  const auto close = [&] {
    if (open) calls.push_back(open->finish());
    open.reset();
  };
  for (auto tag = next_tag(text, 0); tag && tag->is_complete; tag = next_tag(text, tag->end)) {
    if (tag->name == "tool_calls" && tag->is_closing) {
      close();
      break;
    }
    if (tag->name == "invoke") {
      close();
      const auto name = attribute(*tag, "name");
      if (!tag->is_closing && name) open = OpenCall{std::string(*name), ""};
    }
    if (tag->name != "parameter" || tag->is_closing) continue;
    auto end = next_tag(text, tag->end);
    while (end && !(end->is_closing && end->is_complete && end->name == "parameter"))
      end = next_tag(text, end->begin + 1);
    if (!end) break;  // cut off within the value
    const auto key = attribute(*tag, "name");
    if (open && key)
      open->add(*key, text.substr(tag->end, end->begin - tag->end),
                attribute(*tag, "string") != "false");
    tag = end;
  }
  return calls;
}

// The text before the markup without the blank line that belongs to the markup.
inline std::string text_before(std::string_view text, std::size_t markup) {
  text = text.substr(0, markup);
  for (int i = 0; i < 2 && markup != kNone && text.ends_with('\n'); ++i) text.remove_suffix(1);
  return std::string(text);
}

inline AssistantTurn parse_assistant(std::string_view text, ThinkingMode mode) {
  AssistantTurn turn;
  text = text.substr(0, text.find(kEosToken));
  bool in_reasoning = mode == ThinkingMode::kThinking;
  if (text.starts_with(chat::kThink)) {
    in_reasoning = true;
    text.remove_prefix(chat::kThink.size());
  }
  if (in_reasoning) {
    const auto end = text.find(chat::kThinkEnd);
    const auto reasoning = text.substr(0, end);
    const auto markup = find_markup(reasoning);
    if (markup != kNone && (end == kNone || !parse_calls(reasoning.substr(markup)).empty())) {
      turn.reasoning = text_before(reasoning, markup);
      turn.tool_calls = parse_calls(text.substr(markup));
      return turn;
    }
    turn.reasoning = reasoning;
    if (end == kNone) return turn;
    text.remove_prefix(end + chat::kThinkEnd.size());
  }
  const auto markup = find_markup(text);
  turn.content = text_before(text, markup);
  if (markup != kNone) turn.tool_calls = parse_calls(text.substr(markup));
  return turn;
}

}  // namespace quatrain::testing::reference

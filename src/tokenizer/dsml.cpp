// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/dsml.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <utility>

#include "core/json.h"
#include "tokenizer/chat_templates.h"
#include "tokenizer/python_json.h"

namespace quatrain::dsml {
namespace {

constexpr auto kNone = std::string_view::npos;
constexpr std::string_view kAsciiMarker = "|DSML|";

std::size_t skip_spaces(std::string_view text, std::size_t i) {
  const std::size_t limit = std::min(text.size(), i + kMaxSpaces);
  while (i < limit && text[i] == ' ') ++i;
  return i;
}

struct Opening {
  Match match = Match::kNo;
  bool is_closing = false;
  bool marker_begun = false;
  std::size_t end = 0;  // behind the marker
};

Opening read_opening(std::string_view text) {
  Opening opening;
  const bool is_bare = !text.starts_with('<');
  std::size_t i = is_bare ? 0 : skip_spaces(text, 1);
  opening.is_closing = !is_bare && i < text.size() && text[i] == '/';
  if (opening.is_closing) i = skip_spaces(text, i + 1);
  const std::string_view rest = text.substr(i);
  for (const std::string_view marker : {chat::kDsml, kAsciiMarker}) {
    if (is_bare && marker == kAsciiMarker) break;
    if (rest.starts_with(marker)) {
      opening.match = Match::kYes;
      opening.end = i + marker.size();
      return opening;
    }
    if (marker.starts_with(rest)) {
      opening.match = Match::kPartial;
      opening.marker_begun |= rest.size() >= marker.find('D') + 1;
    }
  }
  return opening;
}

}  // namespace

std::optional<std::string_view> Tag::attribute(std::string_view key) const {
  const std::string opening = fmt::format(" {}=\"", key);
  const auto begin = attributes.find(opening);
  if (begin == kNone) return std::nullopt;
  const auto value = attributes.substr(begin + opening.size());
  const auto end = value.find('"');
  if (end == kNone) return std::nullopt;
  return value.substr(0, end);
}

Match match_opening(std::string_view text, bool* marker_begun) {
  const Opening opening = read_opening(text);
  if (marker_begun != nullptr) *marker_begun = opening.marker_begun;
  return opening.match;
}

Match match_tag(std::string_view text, Tag& tag) {
  text = text.substr(0, kMaxTagBytes);
  const Opening opening = read_opening(text);
  if (opening.match != Match::kYes) return opening.match;
  tag.is_closing = opening.is_closing;
  std::size_t i = skip_spaces(text, opening.end);
  const std::size_t name_begin = i;
  while (i < text.size() && ((text[i] >= 'a' && text[i] <= 'z') || text[i] == '_')) ++i;
  tag.name = text.substr(name_begin, i - name_begin);
  const std::size_t attributes_begin = i;
  for (bool in_quotes = false; i < text.size() && (in_quotes || text[i] != '>'); ++i)
    if (text[i] == '"') in_quotes = !in_quotes;
  if (i == text.size()) return text.size() < kMaxTagBytes ? Match::kPartial : Match::kNo;
  tag.attributes = text.substr(attributes_begin, i - attributes_begin);
  tag.size = i + 1;
  return Match::kYes;
}

void CallReader::feed(std::string_view text, std::vector<ToolCall>& calls) {
  if (is_done_) return;
  buffer_ += text;
  read(false, calls);
  buffer_.erase(0, begin_);
  scanned_ -= begin_;
  begin_ = 0;
}

void CallReader::finish(std::vector<ToolCall>& calls) {
  if (!is_done_) read(true, calls);
  *this = CallReader();
  is_done_ = true;
}

bool CallReader::would_finish_call() const {
  CallReader copy = *this;
  std::vector<ToolCall> calls;
  copy.finish(calls);
  return !calls.empty();
}

void CallReader::read(bool is_final, std::vector<ToolCall>& calls) {
  while (!is_done_ && (parameter_ ? read_value(is_final) : read_tag(calls))) {
  }
  if (is_done_) begin_ = scanned_ = buffer_.size();
}

// Reads one tag; false when more text is needed.
bool CallReader::read_tag(std::vector<ToolCall>& calls) {
  begin_ = scanned_ = std::min(buffer_.find('<', scanned_), buffer_.size());
  if (begin_ == buffer_.size()) return false;
  const auto text = std::string_view(buffer_).substr(begin_);
  Tag tag;
  switch (match_tag(text, tag)) {
    case Match::kPartial:
      return false;
    case Match::kNo:
      // A marker whose tag does not end: nothing behind it can be trusted.
      is_done_ = match_opening(text) == Match::kYes;
      ++scanned_;
      return true;
    case Match::kYes:
      open_tag(tag, calls);
      begin_ = scanned_ = begin_ + tag.size;
      return true;
  }
  return false;
}

void CallReader::open_tag(const Tag& tag, std::vector<ToolCall>& calls) {
  if (tag.name == "tool_calls" && tag.is_closing) {
    close_call(calls);
    is_done_ = true;
  } else if (tag.name == "invoke") {
    close_call(calls);
    const auto name = tag.attribute("name");
    if (!tag.is_closing && name) call_ = OpenCall{std::string(*name), ""};
  } else if (tag.name == "parameter" && !tag.is_closing) {
    parameter_ = OpenParameter{};
    if (const auto key = tag.attribute("name")) parameter_->key = std::string(*key);
    parameter_->is_string = tag.attribute("string") != "false";
  }
}

// Reads the value of a parameter with its closing tag; false when more text is needed.
bool CallReader::read_value(bool is_final) {
  for (auto i = buffer_.find('<', scanned_); i != kNone; i = buffer_.find('<', i + 1)) {
    Tag tag;
    const Match match = match_tag(std::string_view(buffer_).substr(i), tag);
    if (match == Match::kPartial && !is_final) {
      scanned_ = i;
      return false;
    }
    if (match != Match::kYes || !tag.is_closing || tag.name != "parameter") continue;
    add_parameter(std::string_view(buffer_).substr(begin_, i - begin_));
    parameter_.reset();
    begin_ = scanned_ = i + tag.size;
    return true;
  }
  scanned_ = buffer_.size();
  return false;
}

void CallReader::add_parameter(std::string_view value) {
  if (!call_ || !parameter_->key) return;
  simdjson::dom::parser parser;
  simdjson::dom::element parsed;
  const bool is_json = !parameter_->is_string && detail::parse_json(parser, value, parsed);
  if (!call_->members.empty()) call_->members += ", ";
  call_->members += json_quote(*parameter_->key) + ": " +
                    (is_json ? detail::python_json(parsed) : json_quote(value));
}

void CallReader::close_call(std::vector<ToolCall>& calls) {
  if (!call_) return;
  std::string arguments = "{";
  arguments += call_->members;
  arguments += '}';
  simdjson::dom::parser parser;
  simdjson::dom::element parsed;
  // Written once more so that each key appears once.
  if (detail::parse_json(parser, arguments, parsed)) arguments = detail::python_json(parsed);
  calls.push_back({"", std::move(call_->name), std::move(arguments)});
  call_.reset();
}

}  // namespace quatrain::dsml

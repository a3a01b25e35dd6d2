// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/python_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>

#include "core/json.h"

namespace quatrain::detail {
namespace {

using simdjson::dom::element;
using simdjson::dom::element_type;

// repr(float): the shortest digits that give the number back, and always a mark of a float.
std::string python_float(double value) {
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".en") == text.npos) text += ".0";
  return text;
}

// The depth is bounded by the parser.
void write(element value, std::string& out) {
  switch (value.type()) {
    case element_type::ARRAY: {
      const char* separator = "[";
      const auto items = value.get_array().value_unsafe();
      for (const element item : items) {
        out += separator;
        write(item, out);
        separator = ", ";
      }
      out += items.size() == 0 ? "[]" : "]";
      return;
    }
    case element_type::OBJECT: {
      const char* separator = "{";
      const auto members = members_of(value.get_object().value_unsafe());
      for (const auto& [key, member] : members) {
        out += separator + json_quote(key) + ": ";
        write(member, out);
        separator = ", ";
      }
      out += members.empty() ? "{}" : "}";
      return;
    }
    case element_type::STRING:
      out += json_quote(value.get_string().value_unsafe());
      return;
    case element_type::DOUBLE:
      out += python_float(value.get_double().value_unsafe());
      return;
    default:
      out += simdjson::minify(value);  // integers, true, false, null
  }
}

}  // namespace

bool parse_json(simdjson::dom::parser& parser, std::string_view text, element& root,
                std::string_view* reason) {
  auto error = parser.allocate(std::max<std::size_t>(text.size(), 64), kMaxChatJsonDepth);
  if (!error) error = parser.parse(text.data(), text.size()).get(root);
  if (error && reason != nullptr) *reason = simdjson::error_message(error);
  return !error;
}

std::vector<std::pair<std::string_view, element>> members_of(simdjson::dom::object object) {
  std::vector<std::pair<std::string_view, element>> members;
  std::unordered_map<std::string_view, std::size_t> seen;
  for (const auto [key, value] : object) {
    const auto [it, is_new] = seen.emplace(key, members.size());
    if (is_new)
      members.emplace_back(key, value);
    else
      members[it->second].second = value;
  }
  return members;
}

std::string python_json(element value) {
  std::string out;
  write(value, out);
  return out;
}

}  // namespace quatrain::detail

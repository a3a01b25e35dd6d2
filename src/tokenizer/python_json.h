// SPDX-License-Identifier: Apache-2.0
// JSON as Python's json.dumps(ensure_ascii=False) writes it, the form V4 was trained on.
//
// Private to the chat sources: it names simdjson types.
#pragma once

#include <simdjson.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace quatrain::detail {

/// How deep chat JSON may nest.
inline constexpr std::size_t kMaxChatJsonDepth = 100;

/// Parses into `parser`; false when the text is not JSON or nests deeper than kMaxChatJsonDepth.
/// `reason`, if given, receives why.
bool parse_json(simdjson::dom::parser& parser, std::string_view text, simdjson::dom::element& root,
                std::string_view* reason = nullptr);

/// The members in the order of first appearance. Of a repeated key the last value counts, as in
/// Python.
std::vector<std::pair<std::string_view, simdjson::dom::element>> members_of(
    simdjson::dom::object object);

/// The value on one line: separators ", " and ": ", keys in their order, raw UTF-8, numbers as
/// Python prints them.
std::string python_json(simdjson::dom::element value);

}  // namespace quatrain::detail

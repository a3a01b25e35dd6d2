// SPDX-License-Identifier: Apache-2.0
// What form a request wants its answer in: response_format, tool_choice and its like.
//
// Private to the readers of requests.
#pragma once

#include <cstddef>

#include "server/api_request.h"
#include "server/json_field.h"

namespace quatrain::server {

inline constexpr std::size_t kMaxTools = 1'024;

/// The form as said, checked but for the schemas.
struct AnswerForm {
  enum class Calls : std::uint8_t { kNone, kAllowed, kForced };
  Calls calls = Calls::kNone;
  bool hides_tools = false;         // tool_choice "none"
  std::string function;             // the one that must be called; empty: any
  bool parallel = true;             // several calls may come
  std::optional<JsonField> format;  // of response_format; none: text
};

AnswerForm read_answer_form(const JsonField& root, bool is_chat);

/// Compiles the form into request.grammar, which stays null if it binds nothing. request.sampling,
/// ignore_eos and the thinking mode must be known.
void constrain(const JsonField& root, const AnswerForm& form, const RequestDefaults& defaults,
               GenerationRequest& request);

}  // namespace quatrain::server

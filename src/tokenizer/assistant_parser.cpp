// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/assistant_parser.h"

#include <utility>

#include "tokenizer/assistant_stream.h"

namespace quatrain {

AssistantTurn parse_assistant(std::string_view text, ThinkingMode mode) {
  AssistantStream stream(mode);
  AssistantTurn turn;
  const auto add = [&turn](AssistantDelta&& delta) {
    turn.reasoning += delta.reasoning;
    turn.content += delta.content;
    for (ToolCall& call : delta.tool_calls) turn.tool_calls.push_back(std::move(call));
  };
  add(stream.feed(text));
  add(stream.finish());
  return turn;
}

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// Fuzzes the reader of chat messages, the chat encoding and the parser of answers.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "core/error.h"
#include "tokenizer/assistant_parser.h"
#include "tokenizer/chat_encoding.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  for (const auto mode : {quatrain::ThinkingMode::kChat, quatrain::ThinkingMode::kThinking}) {
    const auto turn = quatrain::parse_assistant(input, mode);
    for (const auto& call : turn.tool_calls)
      if (!call.arguments.starts_with('{')) std::abort();
    try {
      const auto messages = quatrain::parse_messages(input);
      const auto prompt = quatrain::render_chat(messages, {.mode = mode}, messages);
      std::size_t done = 0;
      for (const auto& span : prompt.controls) {
        if (span.begin < done || span.size > prompt.text.size() - span.begin) std::abort();
        done = span.begin + span.size;
      }
    } catch (const quatrain::Error&) {
    }
  }
  return 0;
}

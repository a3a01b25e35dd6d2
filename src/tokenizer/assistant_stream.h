// SPDX-License-Identifier: Apache-2.0
// Takes an answer of the model apart while it is being written: reasoning, content, tool calls.
//
// The text must still hold its special tokens. Stop strings are stop_matcher.h's.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/chat_encoding.h"
#include "tokenizer/dsml.h"

namespace quatrain {

/// What a piece of text added to the answer.
struct AssistantDelta {
  std::string reasoning;
  std::string content;
  std::vector<ToolCall> tool_calls;  // whole calls, without ids; arguments are JSON objects
};

/// Feeding a text in any pieces gives the same sums of deltas; parse_assistant()
/// (assistant_parser.h) says what they are. Text that could still become markup is held back, and a
/// call is handed out when it is complete, so neither markup nor half a call is ever seen.
class AssistantStream {
 public:
  explicit AssistantStream(ThinkingMode mode)
      : section_(Section::kStart), is_thinking_(mode == ThinkingMode::kThinking) {}

  AssistantDelta feed(std::string_view text);
  /// The text has ended; nothing may be fed afterwards.
  AssistantDelta finish();

  /// Whether text that comes next would be reasoning.
  [[nodiscard]] bool in_reasoning() const {
    return section_ == Section::kReasoning || section_ == Section::kReasoningCalls ||
           (section_ == Section::kStart && is_thinking_);
  }

 private:
  enum class Section : unsigned char {
    kStart,
    kReasoning,
    kReasoningCalls,  // markup inside open reasoning: calls, or only spoken about
    kContent,
    kCalls,
  };

  void cut_at_eos();
  bool step(bool is_final, AssistantDelta& out);
  bool step_start(bool is_final);
  bool step_text(bool is_final, AssistantDelta& out);
  bool step_reasoning_calls(bool is_final, AssistantDelta& out);
  void take_text(std::size_t size, AssistantDelta& out);

  Section section_;
  bool is_thinking_;
  bool is_ended_ = false;      // EOS was seen
  std::string raw_;            // may begin EOS
  std::string pending_;        // before EOS, not handed out yet
  std::size_t calls_fed_ = 0;  // kReasoningCalls: up to where in pending_ calls_ has the markup
  dsml::CallReader calls_;
};

}  // namespace quatrain

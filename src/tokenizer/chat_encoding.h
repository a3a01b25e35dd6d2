// SPDX-License-Identifier: Apache-2.0
// DeepSeek-V4's chat encoding: messages → prompt → ids.
//
// V4 has no template file; this is its encoder in code. Reading the answer back is in
// assistant_parser.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/chat_message.h"
#include "tokenizer/tokenizer.h"

namespace quatrain {

/// Ends the reasoning.
inline constexpr std::string_view kThinkEndToken = "</think>";
/// Marks the tags of tool calls.
inline constexpr std::string_view kCallMarker = "｜DSML｜";

enum class ThinkingMode { kChat, kThinking };

/// In thinking mode, how long the model is asked to think.
enum class ReasoningEffort { kLow, kHigh, kMax };

/// What the efforts mean to a checkpoint: the preview asks with a text only at kMax; releases of
/// the 0731 type at kHigh, and with a stronger text at kMax.
enum class EffortTable { kPreview, k0731 };

struct ChatOptions {
  ThinkingMode mode = ThinkingMode::kThinking;
  ReasoningEffort effort = ReasoningEffort::kLow;
  EffortTable effort_table = EffortTable::kPreview;
  /// Leave the reasoning of earlier turns out (thinking mode). Never done when a message has tools.
  bool drop_thinking = true;
  bool add_bos = true;  // not when there is a context
  /// The text of messages may write control tokens, as in the reference encoder. Off: "<think>"
  /// in a user's message is seven characters and nothing more.
  bool trust_text = false;
};

/// A rendered prompt. Only the control spans are control tokens; the rest is text, whatever it
/// looks like.
struct ChatPrompt {
  struct Span {
    std::size_t begin, size;
  };
  std::string text;
  std::vector<Span> controls;  // ascending, not overlapping
  bool trust_text = false;     // every control token in `text` counts, see ChatOptions
};

/// Renders `messages`. `context` holds the messages before them, which the prompt so far contains
/// already: they are not rendered but decide on dropping and order. Throws Error for a developer
/// message without content.
ChatPrompt render_chat(std::span<const Message> messages, const ChatOptions& options = {},
                       std::span<const Message> context = {});

/// Ids of a prompt. Control tokens that the vocabulary lacks are encoded as text.
std::vector<std::int32_t> encode_prompt(const Tokenizer& tokenizer, const ChatPrompt& prompt);

/// render_chat() and encode_prompt().
std::vector<std::int32_t> encode_chat(const Tokenizer& tokenizer, std::span<const Message> messages,
                                      const ChatOptions& options = {},
                                      std::span<const Message> context = {});

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// Takes a finished answer of the model apart: reasoning, content, tool calls.
//
// For whole texts; assistant_stream.h does the same for streams. The text must still hold its
// special tokens.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/chat_encoding.h"
#include "tokenizer/chat_message.h"

namespace quatrain {

struct AssistantTurn {
  std::string reasoning;
  std::string content;
  std::vector<ToolCall> tool_calls;  // without ids; arguments are one-line JSON objects
};

/// Parses what the model wrote after the prompt: in thinking mode it begins inside <think>. Never
/// fails; deviations are mended:
/// - EOS and what follows it are cut off; a repeated "<think>" at the beginning is ignored.
/// - A tool block inside open reasoning ends the reasoning. Markup that the reasoning only speaks
///   about, without a complete call before "</think>", is reasoning.
/// - Missing end tags of the block or of an invoke are supplied when all its parameters are
///   complete and another tag follows; a call that was cut off is dropped.
/// - Tags may have ASCII bars and spaces; parameters without `string` are strings; a value that is
///   not JSON although string="false" becomes a string; of a repeated parameter the last counts.
/// - Any tag, and a marker without a tag, outside the reasoning ends the content.
/// Markup of tool calls never reaches reasoning or content, nor does text after the block.
AssistantTurn parse_assistant(std::string_view text, ThinkingMode mode);

}  // namespace quatrain

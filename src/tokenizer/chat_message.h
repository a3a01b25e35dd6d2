// SPDX-License-Identifier: Apache-2.0
// The messages of a chat, as plain data, and their reader from OpenAI-style JSON.
//
// How messages become a prompt is in chat_encoding.h.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace quatrain {

enum class Role { kSystem, kUser, kDeveloper, kAssistant, kTool, kLatestReminder };

/// Short classification tasks that the model answers after a task token.
enum class Task { kAction, kQuery, kAuthority, kDomain, kTitle, kReadUrl };

struct ToolCall {
  std::string id;
  std::string name;
  std::string arguments;  // JSON text; normally an object
};

/// One part of a user message.
struct ContentBlock {
  enum class Kind { kText, kToolResult };
  Kind kind = Kind::kText;
  std::string text;
  std::string tool_call_id = {};  // of a tool result: the call that it answers
};

struct Message {
  Role role = Role::kUser;
  std::string content = {};
  std::vector<ContentBlock> blocks = {};  // of a user message: instead of content when not empty
  std::string reasoning = {};             // of an assistant message
  std::vector<ToolCall> tool_calls = {};  // of an assistant message
  std::string tool_call_id = {};          // of a tool message: the call that it answers
  std::vector<std::string> tools = {};    // one-line JSON of each tool's "function" object
  std::string response_format = {};       // one-line JSON; empty: none
  std::optional<Task> task = {};
  bool without_eos = false;  // of an assistant message: it is continued, not finished
};

/// Reads an array of messages, or an object with `messages` and optionally `tools` and
/// `response_format`, which then go to the leading system message (made when there is none).
/// Fields: role, content (string, null or array of parts), reasoning_content (or reasoning),
/// tool_calls, tool_call_id, tools, response_format, task, wo_eos; others are ignored. Parts that
/// are not text become "[Unsupported TYPE]". JSON values keep their order of keys.
/// Throws Error naming the field. The text may be hostile; its depth is bounded.
std::vector<Message> parse_messages(std::string_view json);

/// Puts tools and response format on the leading system message, made when there is none.
void attach_to_system(std::vector<Message>& messages, std::vector<std::string> tools,
                      std::string response_format);

}  // namespace quatrain

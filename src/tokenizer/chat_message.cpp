// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/chat_message.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <utility>

#include "core/error.h"
#include "core/json.h"
#include "tokenizer/python_json.h"

namespace quatrain {
namespace {

using detail::python_json;
using simdjson::dom::array;
using simdjson::dom::element;

constexpr std::pair<std::string_view, Role> kRoles[] = {
    {"system", Role::kSystem},       {"user", Role::kUser},
    {"developer", Role::kDeveloper}, {"assistant", Role::kAssistant},
    {"tool", Role::kTool},           {"latest_reminder", Role::kLatestReminder},
};

constexpr std::pair<std::string_view, Task> kTasks[] = {
    {"action", Task::kAction}, {"query", Task::kQuery}, {"authority", Task::kAuthority},
    {"domain", Task::kDomain}, {"title", Task::kTitle}, {"read_url", Task::kReadUrl},
};

// A value of JSON with its path, for messages.
struct Field {
  element value;
  std::string path;

  [[noreturn]] void reject(std::string_view expected) const {
    std::string found = simdjson::minify(value);
    if (found.size() > 80) found = found.substr(0, 80) + "…";
    fail("{}: expected {}, found {}", path, expected, found);
  }

  // A member; nothing when it is missing or null.
  [[nodiscard]] std::optional<Field> member(const char* key) const {
    element found;
    if (value.at_key(key).get(found) || found.is_null()) return std::nullopt;
    return Field{found, path + "." + key};
  }

  [[nodiscard]] std::string string() const {
    std::string_view text;
    if (value.get(text)) reject("a string");
    return std::string(text);
  }

  [[nodiscard]] std::vector<Field> items(std::string_view expected = "an array") const {
    array elements;
    if (value.get(elements)) reject(expected);
    std::vector<Field> fields;
    for (const element item : elements)
      fields.push_back({item, fmt::format("{}[{}]", path, fields.size())});
    return fields;
  }

  void require_object() const {
    if (!value.is_object()) reject("an object");
  }
};

std::string string_member(const Field& parent, const char* key) {
  const auto field = parent.member(key);
  return field ? field->string() : std::string();
}

template <class T, std::size_t N>
T one_of(const Field& field, const std::pair<std::string_view, T> (&table)[N]) {
  std::string names;
  const std::string text = field.value.is_string() ? field.string() : std::string();
  for (const auto& [name, value] : table) {
    if (text == name) return value;
    names += (names.empty() ? "" : ", ") + std::string(name);
  }
  field.reject("one of " + names);
}

// The text of one part of a content array.
std::string part_text(const Field& part) {
  part.require_object();
  const std::string type = string_member(part, "type");
  return type == "text" ? string_member(part, "text") : "[Unsupported " + type + "]";
}

// Content that may be a string or an array of parts, as one text.
std::string content_text(const Field& content) {
  if (content.value.is_string()) return content.string();
  std::string text;
  bool first = true;
  for (const Field& part : content.items("a string or an array of parts")) {
    if (!std::exchange(first, false)) text += "\n\n";
    text += part_text(part);
  }
  return text;
}

std::vector<ContentBlock> user_blocks(const Field& content) {
  std::vector<ContentBlock> blocks;
  for (const Field& part : content.items("a string or an array of parts")) {
    part.require_object();
    if (string_member(part, "type") != "tool_result") {
      blocks.push_back({ContentBlock::Kind::kText, part_text(part)});
      continue;
    }
    const auto result = part.member("content");
    blocks.push_back({ContentBlock::Kind::kToolResult, result ? content_text(*result) : "",
                      string_member(part, "tool_use_id")});
  }
  return blocks;
}

std::vector<ToolCall> tool_calls(const Field& field) {
  std::vector<ToolCall> calls;
  for (const Field& item : field.items()) {
    item.require_object();
    const auto function = item.member("function");
    if (!function) item.reject("an object with a member function");
    function->require_object();
    ToolCall call{string_member(item, "id"), string_member(*function, "name"), "{}"};
    if (const auto arguments = function->member("arguments"))
      call.arguments =
          arguments->value.is_string() ? arguments->string() : python_json(arguments->value);
    calls.push_back(std::move(call));
  }
  return calls;
}

std::vector<std::string> tools_of(const Field& field) {
  std::vector<std::string> tools;
  for (const Field& item : field.items()) {
    item.require_object();
    const auto function = item.member("function");
    if (!function) item.reject("an object with a member function");
    function->require_object();
    tools.push_back(python_json(function->value));
  }
  return tools;
}

// A format that is an empty object is none.
std::string response_format_of(const Field& field) {
  field.require_object();
  const std::string text = python_json(field.value);
  return text == "{}" ? "" : text;
}

// The schema in a format as OpenAI's API writes it; the format itself if it is not written so.
std::string requested_format_of(const Field& field) {
  field.require_object();
  const auto named = field.member("type");
  const std::string type = named && named->value.is_string() ? named->string() : "";
  if (type == "text") return "";
  if (type == "json_object") return R"({"type": "object"})";
  if (type != "json_schema") return response_format_of(field);
  const auto outer = field.member("json_schema");
  if (outer) outer->require_object();
  const auto schema = outer ? outer->member("schema") : std::nullopt;
  return schema ? python_json(schema->value) : "";
}

Message message_of(const Field& field) {
  field.require_object();
  Message message;
  const auto role = field.member("role");
  if (!role) fail("{}.role: expected a role, found nothing", field.path);
  message.role = one_of(*role, kRoles);
  if (const auto content = field.member("content")) {
    if (message.role == Role::kUser && content->value.is_array())
      message.blocks = user_blocks(*content);
    else
      message.content = content_text(*content);
  }
  message.reasoning = string_member(field, "reasoning_content");
  if (message.reasoning.empty()) message.reasoning = string_member(field, "reasoning");
  if (const auto calls = field.member("tool_calls")) message.tool_calls = tool_calls(*calls);
  message.tool_call_id = string_member(field, "tool_call_id");
  if (const auto tools = field.member("tools")) message.tools = tools_of(*tools);
  if (const auto format = field.member("response_format"))
    message.response_format = response_format_of(*format);
  if (const auto task = field.member("task")) message.task = one_of(*task, kTasks);
  if (const auto without_eos = field.member("wo_eos"))
    if (without_eos->value.get(message.without_eos)) without_eos->reject("true or false");
  return message;
}

}  // namespace

std::vector<Message> parse_messages(std::string_view json) {
  simdjson::dom::parser parser;
  element root;
  std::string_view reason;
  if (!detail::parse_json(parser, json, root, &reason))
    fail("messages: expected JSON at most {} deep, found a fault: {}", detail::kMaxChatJsonDepth,
         reason);
  const Field request{root, "request"};
  auto list = Field{root, "messages"};
  if (root.is_object()) {
    const auto member = request.member("messages");
    if (!member) fail("messages: expected an array, found nothing");
    list.value = member->value;
  }
  std::vector<Message> messages;
  for (const Field& item : list.items()) messages.push_back(message_of(item));
  if (root.is_object()) {
    const auto tools = request.member("tools");
    const auto format = request.member("response_format");
    attach_to_system(messages, tools ? tools_of(*tools) : std::vector<std::string>(),
                     format ? requested_format_of(*format) : "");
  }
  return messages;
}

void attach_to_system(std::vector<Message>& messages, std::vector<std::string> tools,
                      std::string response_format) {
  if (tools.empty() && response_format.empty()) return;
  if (messages.empty() || messages[0].role != Role::kSystem)
    messages.insert(messages.begin(), Message{.role = Role::kSystem});
  if (!tools.empty()) messages[0].tools = std::move(tools);
  if (!response_format.empty()) messages[0].response_format = std::move(response_format);
}

}  // namespace quatrain

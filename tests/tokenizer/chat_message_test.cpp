// SPDX-License-Identifier: Apache-2.0
// Messages from JSON, and JSON in Python's spelling.
#include "tokenizer/chat_message.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "tokenizer/python_json.h"

namespace quatrain {
namespace {

std::string python(std::string_view json) {
  simdjson::dom::parser parser;
  simdjson::dom::element root;
  return detail::parse_json(parser, json, root) ? detail::python_json(root) : "not JSON";
}

TEST(PythonJson, Trap55KeyOrderAndSpaces) {
  EXPECT_EQ(python(R"({"z":1,"a":[1,2,{"y":null,"b":true}],"m":{}})"),
            R"({"z": 1, "a": [1, 2, {"y": null, "b": true}], "m": {}})");
  EXPECT_EQ(python("[]"), "[]");
  EXPECT_EQ(python(R"({"a":1,"b":2,"a":3})"), R"({"a": 3, "b": 2})");  // as json.loads
}

TEST(PythonJson, NumbersAndStringsAsPythonPrintsThem) {
  EXPECT_EQ(python("[1.0, 0.1, 1e5, 1e15, 1e16, 1E+22, 1e-4, 1e-5, -0.0, 5e-324, 1.5e300]"),
            "[1.0, 0.1, 100000.0, 1000000000000000.0, 1e+16, 1e+22, 0.0001, 1e-05, -0.0, 5e-324, "
            "1.5e+300]");
  EXPECT_EQ(python("[-9223372036854775808, 18446744073709551615, 0]"),
            "[-9223372036854775808, 18446744073709551615, 0]");
  EXPECT_EQ(python(R"(["\u00e9\ud83d\ude42 \/ \u0001 \t \" \\"])"),
            R"(["é🙂 / \u0001 \t \" \\"])");
}

TEST(ChatMessages, ReadsEveryField) {
  const auto messages = parse_messages(R"([
    {"role": "system", "content": null, "tools": [{"type": "function", "function": {"name": "f", "a": 1}}],
     "response_format": {"type": "object"}},
    {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}},
     {"type": "tool_result", "tool_use_id": "c9", "content": [{"type": "text", "text": "p"}, {"type": "text", "text": "q"}]}]},
    {"role": "assistant", "content": "c", "reasoning_content": "r", "wo_eos": true, "tool_calls": [
      {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"b\":1}"}},
      {"id": "c2", "function": {"name": "g", "arguments": {"b": 1.0}}}]},
    {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "1"}, {"type": "text", "text": "2"}]},
    {"role": "developer", "content": "d", "task": "read_url"},
    {"role": "latest_reminder", "content": "l", "unknown": [1]},
    {"role": "assistant", "reasoning": "alias"}])");
  ASSERT_EQ(messages.size(), 7u);
  EXPECT_EQ(messages[0].tools, std::vector<std::string>{R"({"name": "f", "a": 1})"});
  EXPECT_EQ(messages[0].response_format, R"({"type": "object"})");
  ASSERT_EQ(messages[1].blocks.size(), 3u);
  EXPECT_EQ(messages[1].blocks[1].text, "[Unsupported image_url]");
  EXPECT_EQ(messages[1].blocks[2].kind, ContentBlock::Kind::kToolResult);
  EXPECT_EQ(messages[1].blocks[2].text, "p\n\nq");
  EXPECT_EQ(messages[1].blocks[2].tool_call_id, "c9");
  EXPECT_EQ(messages[2].reasoning, "r");
  EXPECT_TRUE(messages[2].without_eos);
  EXPECT_EQ(messages[2].tool_calls[0].arguments, "{\"b\":1}");
  EXPECT_EQ(messages[2].tool_calls[1].arguments, "{\"b\": 1.0}");
  EXPECT_EQ(messages[3].content, "1\n\n2");
  EXPECT_EQ(messages[4].task, Task::kReadUrl);
  EXPECT_EQ(messages[5].role, Role::kLatestReminder);
  EXPECT_EQ(messages[6].reasoning, "alias");
}

TEST(ChatMessages, ToolsOfARequestGoToTheLeadingSystemMessage) {
  const auto made = parse_messages(
      R"({"messages": [{"role": "user", "content": "q"}], "tools": [{"function": {"name": "f"}}]})");
  ASSERT_EQ(made.size(), 2u);
  EXPECT_EQ(made[0].role, Role::kSystem);
  EXPECT_EQ(made[0].tools.size(), 1u);
  const auto given = parse_messages(
      R"({"messages": [{"role": "system", "content": "S"}], "response_format": {"a": 1}})");
  ASSERT_EQ(given.size(), 1u);
  EXPECT_EQ(given[0].response_format, "{\"a\": 1}");
  EXPECT_EQ(parse_messages(R"({"messages": []})").size(), 0u);
}

TEST(ChatMessages, RefusesWithTheField) {
  const std::pair<std::string, const char*> cases[] = {
      {"", "expected JSON"},
      {"[", "expected JSON"},
      {"3", "messages: expected an array, found 3"},
      {"{}", "messages: expected an array, found nothing"},
      {"[3]", "messages[0]: expected an object, found 3"},
      {R"([{"content": "x"}])", "messages[0].role: expected a role, found nothing"},
      {R"([{"role": "robot"}])", "messages[0].role: expected one of system, user"},
      {R"([{"role": 1}])", "messages[0].role: expected one of"},
      {R"([{"role": "user", "content": 1}])", "messages[0].content: expected a string or an array"},
      {R"([{"role": "user", "content": ["x"]}])", "messages[0].content[0]: expected an object"},
      {R"([{"role": "user", "task": "cook"}])", "messages[0].task: expected one of action"},
      {R"([{"role": "assistant", "tool_calls": [{}]}])", "tool_calls[0]: expected an object with"},
      {R"([{"role": "assistant", "tool_calls": [{"function": {"name": 1}}]}])",
       "messages[0].tool_calls[0].function.name: expected a string, found 1"},
      {R"([{"role": "assistant", "wo_eos": "x"}])", "wo_eos: expected true or false"},
      {R"([{"role": "system", "tools": {}}])", "messages[0].tools: expected an array, found {}"},
      {R"({"messages": [], "response_format": "x"})",
       "request.response_format: expected an object"},
      {std::string(500, '[') + std::string(500, ']'), "expected JSON at most 100 deep"},
  };
  for (const auto& [json, expected] : cases) {
    try {
      parse_messages(json);
      ADD_FAILURE() << "accepted: " << json;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(expected), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace quatrain

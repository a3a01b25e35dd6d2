// SPDX-License-Identifier: Apache-2.0
// The markup of tool calls: what the grammar allows is what the chat encoding writes, and the
// reader of answers understands it.
#include <fmt/format.h>

#include "grammar/random_schema.h"
#include "tokenizer/assistant_parser.h"
#include "tokenizer/chat_encoding.h"

namespace quatrain::grammar {
namespace {

using testing::Json;

const std::string kMarker = std::string(1, kControlByte) + "｜DSML｜";

std::shared_ptr<const Grammar> calls(const std::vector<std::pair<std::string, Json>>& tools,
                                     std::uint32_t most = 16) {
  GrammarBuilder builder(testing::markup_guard());
  std::vector<Tool> list;
  for (const auto& [name, parameters] : tools)
    list.push_back({name, parameters.is_null() ? "" : parameters.dump(), "tools." + name});
  builder.add_calls(list, kMarker, most);
  return builder.build();
}

// The control token is one byte more in the grammar than in the text.
std::string with_control(std::string text) {
  const std::string marker = kMarker.substr(1);
  for (std::size_t i = 0; (i = text.find(marker, i)) != text.npos; i += kMarker.size())
    text.insert(i, 1, kControlByte);
  return text;
}
std::string without_control(std::string text) {
  std::erase(text, kControlByte);
  return text;
}

// The calls as the chat encoding writes them in an assistant's turn.
std::string written(const std::vector<ToolCall>& calls) {
  Message turn{.role = Role::kAssistant};
  turn.tool_calls = calls;
  turn.without_eos = true;
  ChatOptions options;
  options.mode = ThinkingMode::kChat;
  options.add_bos = false;
  return render_chat(std::vector<Message>{turn}, options).text;
}

TEST(Calls, AreThoseOfTheChatEncoding) {
  const Json look = {{"type", "object"},
                     {"properties",
                      {{"city", {{"type", "string"}}},
                       {"days", {{"type", {"integer", "null"}}}},
                       {"unit", {{"enum", {"C", "F", 1}}}},
                       {"more", {{"type", "array"}, {"items", {{"type", "string"}}}}}}},
                     {"required", {"city"}}};
  const auto grammar = calls({{"look", look}, {"stop", nullptr}}, 2);
  const auto accepts = [&](const std::vector<ToolCall>& list) {
    return testing::accepts(grammar, with_control(written(list)));
  };
  for (const char* arguments :
       {R"({"city": "Rome"})", R"({"city": ""})", R"({"city": "a <b> \"c\"\n</d>", "days": 3})",
        R"({"city": "x", "days": null, "unit": "C", "more": []})", R"({"city": "x", "unit": 1})",
        R"({"city": "<", "more": ["a", "b\"c"]})"})
    EXPECT_TRUE(accepts({{"", "look", arguments}})) << arguments;
  for (const char* arguments : {R"({})", R"({"days": 3})", R"({"city": 3})",
                                R"({"city": "x", "days": "3"})", R"({"city": "x", "unit": "K"})",
                                R"({"city": "x", "other": 1})", R"({"city": "<｜DSML｜"})"})
    EXPECT_FALSE(accepts({{"", "look", arguments}})) << arguments;
  const ToolCall look_at{"", "look", R"({"city": "Rome"})"}, stop{"", "stop", "{}"};
  EXPECT_TRUE(accepts({stop}));
  EXPECT_TRUE(accepts({look_at, stop}));
  EXPECT_TRUE(accepts({stop, stop}));
  EXPECT_FALSE(accepts({stop, stop, stop}));
  EXPECT_FALSE(accepts({{"", "jump", "{}"}}));
  EXPECT_FALSE(testing::accepts(grammar, ""));
  EXPECT_FALSE(testing::accepts(grammar, written({stop}))) << "text in place of the control token";
}

TEST(Calls, RandomTextsAreUnderstood) {
  std::mt19937 random(1);
  int read = 0;
  for (std::uint32_t seed = 0; read < 100; ++seed) {
    testing::RandomSchema schema(seed);
    if (schema.root().value("type", Json()) != Json("object")) continue;
    Json parameters = schema.root();
    const std::string all = parameters.dump();
    if (all.find("b\\\"") != all.npos || all.find("n\\n") != all.npos) continue;  // names
    const auto grammar = calls({{"f", parameters}, {"g", {{"type", "object"}}}}, 3);
    const std::string text = without_control(testing::random_text(grammar, random));
    const AssistantTurn turn = parse_assistant(text, ThinkingMode::kChat);
    ASSERT_EQ(turn.content, "") << text;
    ASSERT_GE(turn.tool_calls.size(), 1u) << text;
    ASSERT_LE(turn.tool_calls.size(), 3u) << text;
    for (const ToolCall& call : turn.tool_calls) {
      const Json arguments = Json::parse(call.arguments);
      if (call.name == "f")
        ASSERT_TRUE(testing::is_valid(arguments, parameters)) << parameters << text;
      else
        ASSERT_EQ(call.name + call.arguments, "g{}") << text;
    }
    ++read;
  }
}

TEST(Calls, ManyTools) {
  std::vector<std::pair<std::string, Json>> tools;
  for (int i = 0; i < 1000; ++i) tools.emplace_back(fmt::format("tool_{}", i), nullptr);
  const auto grammar = calls(tools);
  EXPECT_TRUE(testing::accepts(grammar, with_control(written({{"", "tool_777", "{}"}}))));
  EXPECT_FALSE(testing::accepts(grammar, with_control(written({{"", "tool_7777", "{}"}}))));
}

TEST(Calls, Refusals) {
  const auto refusal = [](const std::string& name, const Json& parameters) -> std::string {
    try {
      calls({{name, parameters}});
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  };
  const auto with = [](const std::string& property) -> Json {
    return {{"type", "object"}, {"properties", {{property, true}}}};
  };
  EXPECT_NE(refusal("f", {{"type", "array"}}).find("tools.f: expected the schema of an object"),
            std::string::npos);
  EXPECT_NE(refusal("f", {{"anyOf", {with("a"), with("b")}}}).find("an object"), std::string::npos);
  EXPECT_NE(refusal("f", with("a\"b")).find("a name in a call"), std::string::npos);
  EXPECT_NE(refusal("f", with("")).find("a name in a call"), std::string::npos);
  EXPECT_NE(refusal("a>b", nullptr).find("a name in a call"), std::string::npos);
  EXPECT_NE(refusal("｜DSML｜", nullptr).find("markup"), std::string::npos);
  EXPECT_NE(
      refusal("f",
              {{"type", "object"}, {"properties", {{"a", {{"$ref", "#"}}}}}, {"required", {"a"}}})
          .find("satisfies"),
      std::string::npos);
  EXPECT_EQ(refusal("f", {{"$ref", "#/$defs/x"}, {"$defs", {{"x", with("a")}}}}), "");
}

}  // namespace
}  // namespace quatrain::grammar

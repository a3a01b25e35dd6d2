// SPDX-License-Identifier: Apache-2.0
// Answers of the model, well-formed and broken.
#include "tokenizer/assistant_parser.h"

#include <gtest/gtest.h>

#include <random>

namespace quatrain {
namespace {

constexpr auto kThinking = ThinkingMode::kThinking;
constexpr auto kChat = ThinkingMode::kChat;

// reasoning|content|name(arguments)…
std::string parsed(std::string_view text, ThinkingMode mode) {
  const AssistantTurn turn = parse_assistant(text, mode);
  std::string out = turn.reasoning + "|" + turn.content + "|";
  for (const ToolCall& call : turn.tool_calls) out += call.name + "(" + call.arguments + ")";
  return out;
}

std::string invoke(const std::string& parameters) {
  return "<｜DSML｜invoke name=\"f\">\n" + parameters + "\n</｜DSML｜invoke>\n";
}
const std::string kP1 =
    "<｜DSML｜parameter name=\"a\" string=\"true\">x \"y\"\n</｜DSML｜parameter>";
const std::string kP2 = "<｜DSML｜parameter name=\"b\" string=\"false\">[1,2]</｜DSML｜parameter>";
const std::string kBegin = "\n\n<｜DSML｜tool_calls>\n", kEnd = "</｜DSML｜tool_calls>";
const std::string kCall = "f({\"a\": \"x \\\"y\\\"\\n\", \"b\": [1, 2]})";

TEST(AssistantParser, ReasoningAndContent) {
  EXPECT_EQ(parsed("r</think>c", kThinking), "r|c|");
  EXPECT_EQ(parsed("<think>r</think>c", kThinking), "r|c|");
  EXPECT_EQ(parsed("<think>r</think>c", kChat), "r|c|");
  EXPECT_EQ(parsed("c", kChat), "|c|");
  EXPECT_EQ(parsed("cut off", kThinking), "cut off||");
  EXPECT_EQ(parsed("", kThinking), "||");
  EXPECT_EQ(parsed("a < b && c > d\n\n", kChat), "|a < b && c > d\n\n|");
}

TEST(AssistantParser, Trap58OnlyEosEndsTheAnswer) {
  EXPECT_EQ(parsed("c<｜end▁of▁sentence｜>more", kChat), "|c|");
  EXPECT_EQ(parsed("c<|EOT|><｜User｜>d", kChat), "|c<|EOT|><｜User｜>d|");
}

TEST(AssistantParser, ToolCalls) {
  const std::string one = invoke(kP1 + "\n" + kP2);
  EXPECT_EQ(parsed("r</think>c" + kBegin + one + kEnd + "<｜end▁of▁sentence｜>", kThinking),
            "r|c|" + kCall);
  EXPECT_EQ(parsed(kBegin + one + one + kEnd, kChat), "||" + kCall + kCall);
  EXPECT_EQ(parsed(kBegin + invoke("") + kEnd, kChat), "||f({})");
}

TEST(AssistantParser, MendsDeviations) {
  const std::string one = invoke(kP1 + "\n" + kP2);
  // Tool block inside open reasoning.
  EXPECT_EQ(parsed("r" + kBegin + one + kEnd, kThinking), "r||" + kCall);
  EXPECT_EQ(parsed("r" + kBegin + one + kEnd + "</think>", kThinking), "r||" + kCall);
  // Only spoken about in the reasoning.
  EXPECT_EQ(parsed("use <｜DSML｜tool_calls></think>c", kThinking), "use <｜DSML｜tool_calls>|c|");
  // Missing end tags; cut off calls.
  EXPECT_EQ(parsed("c" + kBegin + one, kChat), "|c|" + kCall);
  EXPECT_EQ(parsed("c" + one, kChat), "|c|" + kCall);
  EXPECT_EQ(parsed("c" + kBegin + "<｜DSML｜invoke name=\"f\">\n" + kP1 + kP2 + kEnd, kChat),
            "|c|" + kCall);
  EXPECT_EQ(parsed("c" + kBegin + one + "<｜DSML｜invoke name=\"g\">\n" + kP1, kChat),
            "|c|" + kCall);
  EXPECT_EQ(parsed("c\n\n<｜DSML｜tool_ca", kChat), "|c|");
  EXPECT_EQ(parsed("c\n\n<｜DSML｜", kChat), "|c|");
  // Other bars and spaces; attributes left out; values that are not JSON; names twice.
  EXPECT_EQ(parsed("< |DSML| tool_calls>< |DSML| invoke name=\"g\">< |DSML| parameter name=\"k\">v"
                   "</ |DSML| parameter></|DSML|invoke></|DSML|tool_calls>",
                   kChat),
            "||g({\"k\": \"v\"})");
  EXPECT_EQ(
      parsed(invoke("<｜DSML｜parameter name=\"k\" string=\"false\">oops</｜DSML｜parameter>"),
             kChat),
      "||f({\"k\": \"oops\"})");
  EXPECT_EQ(
      parsed(invoke(kP2 + "<｜DSML｜parameter name=\"b\" string=\"false\">7</｜DSML｜parameter>"),
             kChat),
      "||f({\"b\": 7})");
}

TEST(AssistantParser, ReadsBackWhatTheEncoderWrites) {
  Message message{.role = Role::kAssistant, .content = "c", .reasoning = "r"};
  message.tool_calls.push_back(
      {"", "f", R"({"z": "a<b>\n", "n": {"k": [1, null, 2.5]}, "s": "5"})"});
  message.tool_calls.push_back({"", "g", "{}"});
  const std::string text =
      render_chat(std::span(&message, 1), {.drop_thinking = false, .add_bos = false}).text;
  const AssistantTurn turn = parse_assistant(text, kThinking);
  EXPECT_EQ(turn.reasoning, "r");
  EXPECT_EQ(turn.content, "c");
  ASSERT_EQ(turn.tool_calls.size(), 2u);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(turn.tool_calls[i].name, message.tool_calls[i].name);
    EXPECT_EQ(turn.tool_calls[i].arguments, message.tool_calls[i].arguments);
  }
}

TEST(AssistantParser, BrokenTextsShowNoMarkup) {
  const std::string whole = "r</think>c" + kBegin + invoke(kP1 + "\n" + kP2) + invoke(kP2) + kEnd;
  for (std::size_t n = 0; n <= whole.size(); ++n) {
    const AssistantTurn turn = parse_assistant(whole.substr(0, n), kThinking);
    EXPECT_TRUE(std::string("r</think>").starts_with(turn.reasoning));
    EXPECT_TRUE(n < 11 || turn.content.starts_with("c"));
    EXPECT_EQ(turn.content.find("DSML｜"), std::string::npos) << n;
  }
  std::mt19937 random(1);
  const std::string parts[] = {"<", "/",         "｜DSML｜",   "invoke",   " name=\"", "\"",
                               ">", "parameter", "tool_calls", "</think>", "\n",       "x",
                               kP1, kP2,         kBegin,       kEnd};
  for (int i = 0; i < 50000; ++i) {
    std::string text;
    for (auto n = random() % 20; n > 0; --n) text += parts[random() % std::size(parts)];
    parse_assistant(text, random() % 2 ? kThinking : kChat);
  }
}

}  // namespace
}  // namespace quatrain

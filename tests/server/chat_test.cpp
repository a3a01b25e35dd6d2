// SPDX-License-Identifier: Apache-2.0
// Chats: reasoning, content and tool calls, whole and streamed.
#include <fmt/format.h>

#include "server/test_server.h"

namespace quatrain {
namespace {

using testing::json;
using testing::TestServer;

const std::string kCall =
    "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"look\">\n<｜DSML｜parameter name=\"n\" "
    "string=\"false\">[1,2]</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>";

TestServer::Setup answering(std::string text) {
  TestServer::Setup setup;
  setup.text = std::move(text);
  return setup;
}

const json kTools = {{{"type", "function"}, {"function", {{"name", "look"}}}}};

// The sums of a stream's deltas.
struct Streamed {
  std::string role, reasoning, content, finish;
  json calls = json::array();
  json usage;
  int chunks = 0;
};

Streamed collect(const testing::Reply& reply, int index = 0) {
  Streamed all;
  const auto events = reply.events();
  EXPECT_EQ(reply.field("Content-Type"), "text/event-stream; charset=utf-8");
  EXPECT_FALSE(events.empty());
  EXPECT_TRUE(events.empty() || events.back() == "[DONE]");
  for (std::size_t i = 0; i + 1 < events.size(); ++i) {
    const json chunk = json::parse(events[i]);
    EXPECT_EQ(chunk["object"], "chat.completion.chunk");
    if (chunk.contains("usage")) {
      EXPECT_TRUE(chunk["choices"].empty());
      all.usage = chunk["usage"];
      continue;
    }
    const json& choice = chunk["choices"][0];
    if (choice["index"] != index) continue;
    ++all.chunks;
    const json& delta = choice["delta"];
    if (delta.contains("role")) all.role += delta["role"];
    if (delta.contains("content")) all.content += delta["content"];
    if (delta.contains("reasoning_content")) {
      EXPECT_TRUE(all.content.empty()) << "reasoning comes first";
      all.reasoning += delta["reasoning_content"];
    }
    if (delta.contains("tool_calls"))
      for (const auto& call : delta["tool_calls"]) all.calls.push_back(call);
    if (!choice["finish_reason"].is_null()) {
      EXPECT_TRUE(all.finish.empty());
      all.finish = choice["finish_reason"];
    }
  }
  return all;
}

TEST(Chat, ReasoningAndContent) {
  TestServer server(answering("An owl.</think>The owl flew."));
  const auto body = server.chat(json::object()).parsed();
  EXPECT_EQ(body["object"], "chat.completion");
  const auto message = body["choices"][0]["message"];
  EXPECT_EQ(message["role"], "assistant");
  EXPECT_EQ(message["reasoning_content"], "An owl.");
  EXPECT_EQ(message["content"], "The owl flew.");
  EXPECT_FALSE(message.contains("tool_calls"));
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  EXPECT_GT(body["usage"]["completion_tokens_details"]["reasoning_tokens"], 0);

  const auto streamed =
      collect(server.chat({{"stream", true}, {"stream_options", {{"include_usage", true}}}}));
  EXPECT_EQ(streamed.role, "assistant");
  EXPECT_EQ(streamed.reasoning, "An owl.");
  EXPECT_EQ(streamed.content, "The owl flew.");
  EXPECT_EQ(streamed.finish, "stop");
  EXPECT_EQ(streamed.usage, body["usage"]);
  EXPECT_GT(streamed.chunks, 4);
}

TEST(Chat, ThinkingSwitches) {
  TestServer server(answering("Plain."));
  const json offs[] = {{{"reasoning_effort", "none"}},
                       {{"thinking", {{"type", "disabled"}}}},
                       {{"thinking", false}},
                       {{"enable_thinking", false}},
                       {{"chat_template_kwargs", {{"thinking", false}}}},
                       {{"chat_template_kwargs", {{"enable_thinking", false}}}}};
  for (const json& off : offs) {
    const auto message = server.chat(off).parsed()["choices"][0]["message"];
    EXPECT_EQ(message["content"], "Plain.") << off;
    EXPECT_FALSE(message.contains("reasoning_content"));
  }
  const std::size_t plain = server.engine.last().prompt.size();
  for (const char* effort : {"minimal", "low", "medium", "high", "xhigh"}) {
    EXPECT_EQ(server.chat({{"reasoning_effort", effort}})
                  .parsed()["choices"][0]["message"]["reasoning_content"],
              "Plain.");
    EXPECT_LE(server.engine.last().prompt.size(), plain + 8) << effort;
  }
  server.chat({{"reasoning_effort", "max"}});
  EXPECT_GT(server.engine.last().prompt.size(), plain + 50) << "the effort's text is missing";
}

TEST(Chat, ToolCalls) {
  TestServer server(answering("Hm.</think>Let me see." + kCall));
  const auto body = server.chat({{"tools", kTools}}).parsed();
  const auto message = body["choices"][0]["message"];
  EXPECT_EQ(message["content"], "Let me see.");
  ASSERT_EQ(message["tool_calls"].size(), 1u);
  EXPECT_EQ(message["tool_calls"][0]["type"], "function");
  EXPECT_TRUE(message["tool_calls"][0]["id"].get<std::string>().starts_with("call_"));
  EXPECT_EQ(message["tool_calls"][0]["function"]["name"], "look");
  EXPECT_EQ(message["tool_calls"][0]["function"]["arguments"], "{\"n\": [1, 2]}");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "tool_calls");

  const auto streamed = collect(server.chat({{"tools", kTools}, {"stream", true}}));
  EXPECT_EQ(streamed.content, "Let me see.");
  ASSERT_EQ(streamed.calls.size(), 1u);
  EXPECT_EQ(streamed.calls[0]["index"], 0);
  EXPECT_EQ(streamed.calls[0]["function"], message["tool_calls"][0]["function"]);
  EXPECT_EQ(streamed.finish, "tool_calls");

  // No tools asked for: no calls, and no markup either.
  for (const json& none : {json::object(), json{{"tools", kTools}, {"tool_choice", "none"}}}) {
    const auto quiet = server.chat(none).parsed()["choices"][0];
    EXPECT_EQ(quiet["message"]["content"], "Let me see.");
    EXPECT_FALSE(quiet["message"].contains("tool_calls"));
    EXPECT_EQ(quiet["finish_reason"], "stop");
  }
}

TEST(Chat, ACallThatIsCutOffIsNotShown) {
  TestServer server(answering("</think>See." + kCall));
  const auto whole = static_cast<int>(server.engine.output.size());
  for (int n = 1; n <= whole; ++n) {
    const auto choice = server.chat({{"tools", kTools}, {"max_tokens", n}}).parsed()["choices"][0];
    const std::string content =
        choice["message"]["content"].is_null() ? "" : choice["message"]["content"];
    EXPECT_TRUE(std::string("See.\n\n<").starts_with(content)) << n << ": " << content;
    EXPECT_EQ(choice["finish_reason"], "length");
  }
}

TEST(Chat, StopStringsEndTheContentOnly) {
  TestServer server(answering("One owl.</think>Two owls flew."));
  const auto choice = server.chat({{"stop", "owl"}}).parsed()["choices"][0];
  EXPECT_EQ(choice["message"]["reasoning_content"], "One owl.");
  EXPECT_EQ(choice["message"]["content"], "Two ");
  EXPECT_EQ(choice["finish_reason"], "stop");
  EXPECT_TRUE(TestServer::eventually([&] { return server.engine.stats().running == 0; }));
}

TEST(Chat, SeveralChoicesAndSeeds) {
  TestServer server(answering("</think>Owl."));
  const auto reply = server.chat({{"n", 3}, {"stream", true}, {"seed", 5}});
  for (int i = 0; i < 3; ++i) EXPECT_EQ(collect(reply, i).content, "Owl.");
  EXPECT_EQ(server.engine.last().sampling.seed, 7u);  // 5, 6, 7
  const auto body = server.chat({{"n", 2}}).parsed();
  EXPECT_EQ(body["choices"][1]["index"], 1);
}

TEST(Chat, Logprobs) {
  TestServer server(answering("Hm.</think>Owl."));
  const auto body = server.chat({{"logprobs", true}, {"top_logprobs", 2}}).parsed();
  const auto logprobs = body["choices"][0]["logprobs"];
  const auto count = logprobs["content"].size() + logprobs["reasoning_content"].size();
  EXPECT_EQ(count, server.engine.output.size());
  EXPECT_EQ(body["usage"]["completion_tokens_details"]["reasoning_tokens"],
            logprobs["reasoning_content"].size());
  const auto first = logprobs["content"][0];
  EXPECT_EQ(first["logprob"], -0.25);
  EXPECT_EQ(first["top_logprobs"].size(), 2u);
  std::string bytes;
  for (const auto& token : logprobs["content"])
    for (const auto& byte : token["bytes"]) bytes += static_cast<char>(byte.get<int>());
  EXPECT_EQ(bytes, "Owl.");
}

TEST(Chat, UnicodeIsNeverCut) {
  TestServer server(answering("</think>🦉 π “x” 你好\u0301"));
  const auto reply = server.chat({{"stream", true}});
  EXPECT_EQ(collect(reply).content, "🦉 π “x” 你好\u0301");
}

TEST(Chat, LogitsThatAreNotFinite) {
  TestServer server(answering("</think>The owl flew over the hill."));
  server.engine.fails = true;
  const auto reply = server.chat(json::object());
  EXPECT_EQ(reply.status, 500);
  EXPECT_EQ(reply.parsed()["error"]["code"], "numerical_error");
  const auto events = server.chat({{"stream", true}}).events();
  EXPECT_EQ(json::parse(events.back())["error"]["code"], "numerical_error");
  EXPECT_NE(server.get("/metrics").body.find("corrupted_requests_total{model_name=\"story\"} 2"),
            std::string::npos);
}

}  // namespace
}  // namespace quatrain

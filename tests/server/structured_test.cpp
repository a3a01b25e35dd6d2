// SPDX-License-Identifier: Apache-2.0
// Answers in a form: response_format, and calls that must come.
#include <random>

#include "server/test_server.h"

namespace quatrain {
namespace {

using testing::json;
using testing::TestServer;

const json kSchema = {
    {"type", "object"},
    {"properties",
     {{"name", {{"type", "string"}, {"maxLength", 12}}},
      {"kind", {{"enum", {"owl", "fox"}}}},
      {"ages", {{"type", "array"}, {"items", {{"type", "integer"}}}, {"maxItems", 3}}}}},
    {"required", {"name", "kind", "ages"}},
    {"additionalProperties", false}};

const json kFormat = {{"type", "json_schema"},
                      {"json_schema", {{"name", "x"}, {"schema", kSchema}}}};

const json kTools = {
    {{"type", "function"}, {"function", {{"name", "look"}, {"parameters", kSchema}}}},
    {{"type", "function"}, {"function", {{"name", "stop"}}}}};

void expect_valid(const json& value) {
  ASSERT_TRUE(value.is_object()) << value;
  EXPECT_EQ(value.size(), 3u) << value;
  EXPECT_TRUE(value["name"].is_string());
  EXPECT_TRUE(value["kind"] == "owl" || value["kind"] == "fox") << value;
  ASSERT_TRUE(value["ages"].is_array() && value["ages"].size() <= 3) << value;
  for (const json& age : value["ages"]) EXPECT_TRUE(age.is_number_integer()) << value;
}

// A server whose model wants to say `text`, and picks at random where it may not.
class StructuredTest : public ::testing::Test {
 protected:
  static TestServer::Setup saying(std::string text) {
    TestServer::Setup setup;
    setup.text = std::move(text);
    return setup;
  }
  StructuredTest() : server(saying("Hm, an owl.</think>The owl flew.")) {
    server.engine.choose = [this](std::span<const std::uint32_t> allowed) {
      const Tokenizer& tokenizer = testing::storyteller_tokenizer();
      std::vector<std::int32_t> ids, closing;
      for (std::int32_t id = 0; id < static_cast<std::int32_t>(32 * allowed.size()); ++id) {
        if ((allowed[static_cast<std::size_t>(id) / 32] >> (id % 32) & 1) == 0) continue;
        ids.push_back(id);
        if (id == 1 || tokenizer.token(id).find_first_of("\"}]/") != std::string_view::npos ||
            tokenizer.is_special(id))
          closing.push_back(id);
      }
      if (ids.empty()) {
        ADD_FAILURE() << "nothing is allowed";
        return 1;
      }
      const auto& from = !closing.empty() && random_() % 4 != 0 ? closing : ids;
      return from[random_() % from.size()];
    };
  }

  json choice_of(json body) {
    const auto reply = server.chat(std::move(body));
    EXPECT_EQ(reply.status, 200) << reply.body;
    return reply.parsed()["choices"][0];
  }
  // The refusal's field and message.
  std::pair<std::string, std::string> refusal_of(json body) {
    const auto reply = server.chat(std::move(body));
    EXPECT_EQ(reply.status, 400) << reply.body;
    const json error = reply.parsed()["error"];
    return {error["param"].is_string() ? error["param"].get<std::string>() : "",
            error["message"].get<std::string>()};
  }

  std::mt19937 random_{5};
  TestServer server;
};

TEST_F(StructuredTest, AnswersFollowTheSchema) {
  for (int i = 0; i < 25; ++i) {
    const json choice = choice_of({{"response_format", kFormat}});
    EXPECT_EQ(choice["message"]["reasoning_content"], "Hm, an owl.");
    expect_valid(json::parse(choice["message"]["content"].get<std::string>()));
    EXPECT_EQ(choice["finish_reason"], "stop");
    const json plain = choice_of({{"response_format", kFormat}, {"thinking", false}});
    expect_valid(json::parse(plain["message"]["content"].get<std::string>()));
    EXPECT_FALSE(plain["message"].contains("reasoning_content"));
  }
}

TEST_F(StructuredTest, Streams) {
  for (int i = 0; i < 10; ++i) {
    std::string content, reasoning, finish;
    const auto events = server.chat({{"response_format", kFormat}, {"stream", true}}).events();
    for (std::size_t k = 0; k + 1 < events.size(); ++k) {
      const json choice = json::parse(events[k])["choices"][0];
      content += choice["delta"].value("content", "");
      reasoning += choice["delta"].value("reasoning_content", "");
      if (choice["finish_reason"].is_string()) finish = choice["finish_reason"];
    }
    EXPECT_EQ(reasoning, "Hm, an owl.");
    expect_valid(json::parse(content));
    EXPECT_EQ(finish, "stop");
  }
}

TEST_F(StructuredTest, AnyObjectAndCompletions) {
  const json format = {{"type", "json_object"}};
  for (int i = 0; i < 20; ++i) {
    const json choice = choice_of({{"response_format", format}, {"max_tokens", 1500}});
    if (choice["finish_reason"] == "length") continue;
    EXPECT_TRUE(json::parse(choice["message"]["content"].get<std::string>()).is_object());
  }
  const auto reply =
      server.post("/v1/completions",
                  {{"prompt", "A fox:"}, {"response_format", kFormat}, {"max_tokens", 1500}});
  expect_valid(json::parse(reply.parsed()["choices"][0]["text"].get<std::string>()));
  EXPECT_EQ(choice_of({{"response_format", {{"type", "text"}}}})["message"]["content"],
            "The owl flew.");
}

TEST_F(StructuredTest, TheModelIsToldTheSchema) {
  const auto prompt_of = [&](const json& format) {
    json body = {{"max_tokens", 1}};
    if (!format.is_null()) body["response_format"] = format;
    choice_of(body);
    return testing::storyteller_tokenizer().decode(server.engine.last().prompt);
  };
  const std::string plain = prompt_of(nullptr);
  EXPECT_EQ(prompt_of({{"type", "text"}}), plain);
  const std::string schema = prompt_of(kFormat);
  EXPECT_NE(
      schema.find("adhere to the following schema to reply:\n{\"additionalProperties\": false"),
      std::string::npos)
      << schema;
  EXPECT_EQ(schema.find("json_schema"), std::string::npos);
  EXPECT_NE(prompt_of({{"type", "json_object"}}).find("{\"type\": \"object\"}"), std::string::npos);
}

TEST_F(StructuredTest, CallsThatMustCome) {
  for (int i = 0; i < 25; ++i) {
    const json choice = choice_of({{"tools", kTools}, {"tool_choice", "required"}});
    EXPECT_EQ(choice["finish_reason"], "tool_calls");
    EXPECT_TRUE(choice["message"]["content"].is_null() || choice["message"]["content"] == "");
    ASSERT_GE(choice["message"]["tool_calls"].size(), 1u);
    for (const json& call : choice["message"]["tool_calls"]) {
      const json arguments = json::parse(call["function"]["arguments"].get<std::string>());
      if (call["function"]["name"] == "look")
        expect_valid(arguments);
      else
        EXPECT_EQ(arguments, json::object());
    }
  }
}

TEST_F(StructuredTest, OneFunctionOnce) {
  const json one = {{"type", "function"}, {"function", {{"name", "look"}}}};
  for (int i = 0; i < 15; ++i) {
    const json choice =
        choice_of({{"tools", kTools}, {"tool_choice", one}, {"parallel_tool_calls", false}});
    ASSERT_EQ(choice["message"]["tool_calls"].size(), 1u);
    const json function = choice["message"]["tool_calls"][0]["function"];
    EXPECT_EQ(function["name"], "look");
    expect_valid(json::parse(function["arguments"].get<std::string>()));
    EXPECT_EQ(choice["message"]["reasoning_content"], "Hm, an owl.");
  }
}

TEST_F(StructuredTest, AFormatLeavesToolsPossible) {
  int calls = 0;
  for (int i = 0; i < 40; ++i) {
    const json choice = choice_of({{"tools", kTools}, {"response_format", kFormat}});
    if (choice["message"].contains("tool_calls"))
      ++calls;
    else
      expect_valid(json::parse(choice["message"]["content"].get<std::string>()));
  }
  EXPECT_GT(calls, 0);
  EXPECT_LT(calls, 40);
}

TEST_F(StructuredTest, AnAnswerThatIsCutOff) {
  const json choice = choice_of({{"response_format", kFormat}, {"max_tokens", 9}});
  EXPECT_EQ(choice["finish_reason"], "length");
}

TEST_F(StructuredTest, ToolsThatAreNotWantedAreNotShown) {
  choice_of({{"tools", kTools}, {"tool_choice", "none"}, {"max_tokens", 1}});
  const auto hidden = server.engine.last().prompt;
  choice_of({{"max_tokens", 1}});
  const auto without = testing::storyteller_tokenizer().decode(server.engine.last().prompt);
  EXPECT_EQ(testing::storyteller_tokenizer().decode(hidden), without);
}

TEST_F(StructuredTest, Refusals) {
  const auto format = [](const json& schema) -> json {
    return {{"response_format",
             {{"type", "json_schema"}, {"json_schema", {{"name", "x"}, {"schema", schema}}}}}};
  };
  const auto [param, message] = refusal_of(format(
      {{"type", "object"}, {"properties", {{"a", {{"type", "string"}, {"pattern", "x"}}}}}}));
  EXPECT_EQ(param, "response_format");
  EXPECT_NE(message.find("response_format.json_schema.schema.properties.a"), message.npos)
      << message;
  EXPECT_NE(message.find("pattern"), message.npos) << message;

  EXPECT_EQ(refusal_of(format(false)).first, "response_format");
  EXPECT_EQ(refusal_of({{"response_format", {{"type", "json_schema"}}}}).first, "response_format");
  EXPECT_EQ(refusal_of({{"response_format", {{"type", "xml"}}}}).first, "response_format.type");
  EXPECT_EQ(refusal_of({{"response_format", 5}}).first, "response_format");
  json both = format(true);
  both["ignore_eos"] = true;
  EXPECT_EQ(refusal_of(both).first, "response_format");
  both = format(true);
  both["min_tokens"] = 3;
  EXPECT_EQ(refusal_of(both).first, "response_format");

  EXPECT_EQ(refusal_of({{"tool_choice", "required"}}).first, "tool_choice");
  EXPECT_EQ(refusal_of({{"tools", kTools}, {"tool_choice", "sometimes"}}).first, "tool_choice");
  const json other = {{"type", "function"}, {"function", {{"name", "jump"}}}};
  EXPECT_EQ(refusal_of({{"tools", kTools}, {"tool_choice", other}}).first, "tool_choice");
  json tools = kTools;
  tools[0]["function"]["parameters"]["properties"]["name"]["format"] = "date";  // an annotation
  tools[0]["function"]["parameters"]["properties"]["name"]["pattern"] = "x";
  const auto [field, why] = refusal_of({{"tools", tools}, {"tool_choice", "required"}});
  EXPECT_EQ(field, "tools");
  EXPECT_NE(why.find("tools[0].function.parameters.properties.name"), why.npos) << why;
}

}  // namespace
}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// The endpoints and what they refuse: statuses, the shape of errors, the field at fault.
#include <fmt/format.h>

#include <algorithm>

#include "server/test_server.h"

namespace quatrain {
namespace {

using testing::Client;
using testing::json;
using testing::storyteller_tokenizer;
using testing::TestServer;

TEST(Api, SmallEndpoints) {
  TestServer server;
  EXPECT_EQ(server.get("/health").parsed()["status"], "ok");
  EXPECT_EQ(server.get("/version").parsed()["version"], "test");
  const auto models = server.get("/v1/models").parsed();
  EXPECT_EQ(models["object"], "list");
  EXPECT_EQ(models["data"][0]["id"], "story");
  EXPECT_EQ(models["data"][0]["max_model_len"], 2048);
  EXPECT_EQ(models["data"].size(), 2u);
  EXPECT_EQ(server.get("/v1/models/alias").parsed()["id"], "alias");
  EXPECT_EQ(server.get("/v1/models/none").status, 404);
  EXPECT_EQ(server.get("/load").parsed()["server_load"], 0);
  const auto page = server.get("/");
  EXPECT_EQ(page.status, 200);
  EXPECT_TRUE(page.body.starts_with("<!DOCTYPE html>"));
  EXPECT_EQ(page.body.find("http://"), std::string::npos) << "the page asks elsewhere";
  EXPECT_EQ(page.body.find("https://"), std::string::npos) << "the page asks elsewhere";
}

TEST(Api, PathsAndMethods) {
  TestServer server;
  EXPECT_EQ(server.get("/nothing").status, 404);
  EXPECT_EQ(server.get("/nothing").parsed()["error"]["type"], "not_found_error");
  EXPECT_EQ(server.get("/v1/embeddings").status, 501);
  const auto reply = server.get("/v1/completions");
  EXPECT_EQ(reply.status, 405);
  EXPECT_EQ(reply.field("Allow"), "POST");
  for (const char* method : {"DELETE", "PUT", "HEAD", "OPTIONS", "TRACE", "FOO"})
    EXPECT_EQ(server
                  .send(fmt::format("{} /health HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
                                    method))
                  .status,
              405)
        << method;
  EXPECT_EQ(server.send("POST /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n").status, 411);
  EXPECT_EQ(server
                .send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
                      "Content-Length: 2\r\n\r\n{}")
                .status,
            415);
  EXPECT_EQ(server.get("/health", "X-Request-Id: abc\r\n").field("X-Request-Id"), "abc");
}

TEST(Api, TokenizeAndBack) {
  TestServer server;
  const std::string text = "The owl said: “Naïve — 123!” 🦉\n";
  const auto reply =
      server.post("/tokenize", {{"prompt", text}, {"return_token_strs", true}}).parsed();
  auto wanted = storyteller_tokenizer().encode(text, AddedTokens::kText);
  if (const auto bos = storyteller_tokenizer().bos_id()) wanted.insert(wanted.begin(), *bos);
  EXPECT_EQ(reply["tokens"].get<std::vector<std::int32_t>>(), wanted);
  EXPECT_EQ(reply["count"], wanted.size());
  EXPECT_EQ(reply["token_strs"].size(), wanted.size());
  const auto plain =
      server.post("/tokenize", {{"prompt", text}, {"add_special_tokens", false}}).parsed();
  EXPECT_EQ(server.post("/detokenize", {{"tokens", plain["tokens"]}}).parsed()["prompt"], text);
  const auto chat =
      server.post("/tokenize", {{"messages", {{{"role", "user"}, {"content", "Hi"}}}}});
  EXPECT_GT(chat.parsed()["count"], 2);
}

TEST(Api, CompletionShape) {
  TestServer server;
  server.engine.cached = 1;
  const auto reply = server.post("/v1/completions", {{"prompt", "Once"}, {"max_tokens", 50}});
  ASSERT_EQ(reply.status, 200) << reply.body;
  const auto body = reply.parsed();
  EXPECT_EQ(body["object"], "text_completion");
  EXPECT_TRUE(body["id"].get<std::string>().starts_with("cmpl-"));
  EXPECT_EQ(body["choices"][0]["text"], "The owl flew.");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(body["choices"][0]["logprobs"], nullptr);
  EXPECT_EQ(body["usage"]["completion_tokens"], server.engine.output.size());
  EXPECT_EQ(body["usage"]["prompt_tokens_details"]["cached_tokens"], 1);
  EXPECT_EQ(body["usage"]["total_tokens"], body["usage"]["prompt_tokens"].get<int>() +
                                               body["usage"]["completion_tokens"].get<int>());
}

TEST(Api, CompletionFeatures) {
  TestServer server;
  const auto post = [&](json body) {
    body["prompt"] = body.contains("prompt") ? body["prompt"] : json("Once");
    return server.post("/v1/completions", body).parsed();
  };
  EXPECT_EQ(post({{"max_tokens", 2}})["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(post({{"max_tokens", 50}, {"stop", "flew"}})["choices"][0]["text"], "The owl ");
  EXPECT_EQ(post({{"max_tokens", 50},
                  {"stop", {"x", "owl"}},
                  {"include_stop_str_in_output", true}})["choices"][0]["text"],
            "The owl");
  EXPECT_EQ(post({{"max_tokens", 50}, {"echo", true}})["choices"][0]["text"], "OnceThe owl flew.");
  EXPECT_EQ(post({{"prompt", {"a", "b"}}, {"n", 3}})["choices"].size(), 6u);
  EXPECT_EQ(post({{"prompt", {300, 301}}})["usage"]["prompt_tokens"], 2);
  EXPECT_EQ(post({{"prompt", {{300, 301}, {302}}}})["choices"].size(), 2u);
  const auto logprobs = post({{"logprobs", 2}, {"max_tokens", 3}})["choices"][0]["logprobs"];
  EXPECT_EQ(logprobs["tokens"].size(), 3u);
  EXPECT_EQ(logprobs["token_logprobs"][0], -0.25);
  EXPECT_EQ(logprobs["top_logprobs"][1].size(), 2u);
  EXPECT_EQ(logprobs["text_offset"][0], 0);
  const auto prompt = post({{"prompt", {300, 301, 302}}, {"prompt_logprobs", 0}});
  EXPECT_EQ(prompt["choices"][0]["prompt_logprobs"].size(), 3u);
  EXPECT_EQ(prompt["choices"][0]["prompt_logprobs"][1]["301"]["logprob"], -0.5);
}

TEST(Api, SamplingReachesTheEngine) {
  TestServer server;
  const json body = {{"prompt", "x"},
                     {"temperature", 0.5},
                     {"top_p", 0.9},
                     {"top_k", 40},
                     {"min_p", 0.1},
                     {"seed", 7},
                     {"presence_penalty", -1},
                     {"frequency_penalty", 1},
                     {"repetition_penalty", 1.1},
                     {"min_tokens", 3},
                     {"max_completion_tokens", 9},
                     {"logit_bias", {{"5", -100}}},
                     {"stop_token_ids", {9}},
                     {"priority", -2},
                     {"ignore_eos", true},
                     {"user", "u"},
                     {"unknown_field", {1, 2}}};
  ASSERT_EQ(server.post("/v1/completions", body).status, 200);
  const EngineRequest r = server.engine.last();
  EXPECT_FLOAT_EQ(r.sampling.temperature, 0.5f);
  EXPECT_FLOAT_EQ(r.sampling.top_p, 0.9f);
  EXPECT_EQ(r.sampling.top_k, 40);
  EXPECT_FLOAT_EQ(r.sampling.min_p, 0.1f);
  EXPECT_EQ(r.sampling.seed, 7u);
  EXPECT_FLOAT_EQ(r.sampling.presence_penalty, -1);
  EXPECT_FLOAT_EQ(r.sampling.frequency_penalty, 1);
  EXPECT_FLOAT_EQ(r.sampling.repetition_penalty, 1.1f);
  EXPECT_EQ(r.sampling.min_tokens, 3);
  EXPECT_EQ(r.max_tokens, 9);
  EXPECT_EQ(r.sampling.logit_bias, (std::vector<std::pair<std::int32_t, float>>{{5, -100.f}}));
  EXPECT_EQ(r.stop_tokens, std::vector<std::int32_t>{9});
  EXPECT_EQ(r.priority, -2);
}

// {body of a completion or chat, field at fault}
TEST(Api, RefusalsNameTheField) {
  TestServer server;
  const std::pair<json, std::string> cases[] = {
      {{{"temperature", -0.1}}, "temperature"},
      {{{"temperature", 2.1}}, "temperature"},
      {{{"temperature", "hot"}}, "temperature"},
      {{{"top_p", 0}}, "top_p"},
      {{{"top_p", 1.5}}, "top_p"},
      {{{"top_k", -2}}, "top_k"},
      {{{"top_k", 1.5}}, "top_k"},
      {{{"top_k", 4294967296}}, "top_k"},
      {{{"min_p", 2}}, "min_p"},
      {{{"presence_penalty", 3}}, "presence_penalty"},
      {{{"frequency_penalty", -3}}, "frequency_penalty"},
      {{{"repetition_penalty", 0}}, "repetition_penalty"},
      {{{"seed", 1.5}}, "seed"},
      {{{"seed", "x"}}, "seed"},
      {{{"n", 0}}, "n"},
      {{{"n", 129}}, "n"},
      {{{"n", -1}}, "n"},
      {{{"max_tokens", 0}}, "max_tokens"},
      {{{"max_tokens", -5}}, "max_tokens"},
      {{{"max_completion_tokens", 1.5}}, "max_completion_tokens"},
      {{{"min_tokens", -1}}, "min_tokens"},
      {{{"stop", ""}}, "stop"},
      {{{"stop", 5}}, "stop"},
      {{{"stop", {"a", 1}}}, "stop[1]"},
      {{{"stop", json(std::vector<std::string>(17, "a"))}}, "stop"},
      {{{"stop_token_ids", {-1}}}, "stop_token_ids"},
      {{{"stop_token_ids", {4096}}}, "stop_token_ids"},
      {{{"logit_bias", {{"x", 1}}}}, "logit_bias"},
      {{{"logit_bias", {{"4096", 1}}}}, "logit_bias"},
      {{{"logit_bias", {{"5", 101}}}}, "logit_bias.5"},
      {{{"logit_bias", {1}}}, "logit_bias"},
      {{{"stream", "yes"}}, "stream"},
      {{{"stream_options", {{"include_usage", true}}}}, "stream_options"},
      {{{"stream", true}, {"stream_options", 1}}, "stream_options"},
      {{{"ignore_eos", 1}}, "ignore_eos"},
      {{{"priority", 1e9}}, "priority"},
      {{{"response_format", {{"type", "json_schema"}}}}, "response_format"},
      {{{"best_of", 2}}, "best_of"},
      {{{"guided_json", {{"a", 1}}}}, "guided_json"},
      {{{"suffix", "x"}}, "suffix"},
      {{{"functions", json::array({1})}}, "functions"},
      {{{"prompt_logprobs", 21}}, "prompt_logprobs"},
      {{{"stream", true}, {"prompt_logprobs", 1}}, "prompt_logprobs"},
      {{{"model", "other"}}, "model"},
      {{{"model", 5}}, "model"}};
  for (const auto& [fields, param] : cases) {
    for (const bool is_chat : {false, true}) {
      json body = fields;
      if (is_chat)
        body["messages"] = {{{"role", "user"}, {"content", "Hi"}}};
      else
        body["prompt"] = "Hi";
      const auto reply = server.post(is_chat ? "/v1/chat/completions" : "/v1/completions", body);
      EXPECT_EQ(reply.status, param == "model" && body["model"] == "other" ? 404 : 400) << fields;
      const auto error = reply.parsed()["error"];
      EXPECT_EQ(error["param"], param) << reply.body;
      EXPECT_FALSE(error["message"].get<std::string>().empty());
    }
  }
  EXPECT_EQ(server.engine.submitted(), 0);
}

TEST(Api, RefusalsOfOneEndpoint) {
  TestServer server;
  const auto param = [&](const std::string& path, const json& body) {
    const auto reply = server.post(path, body);
    EXPECT_EQ(reply.status, 400) << body;
    const auto error = reply.parsed()["error"];
    return error["param"].is_string() ? error["param"].get<std::string>() : "";
  };
  const auto completion = [&](const json& body) { return param("/v1/completions", body); };
  const auto chat = [&](json body) {
    if (!body.contains("messages")) body["messages"] = {{{"role", "user"}, {"content", "Hi"}}};
    return param("/v1/chat/completions", body);
  };
  EXPECT_EQ(completion(json::object()), "prompt");
  EXPECT_EQ(completion({{"prompt", json::array()}}), "prompt");
  EXPECT_EQ(completion({{"prompt", {1, -1}}}), "prompt");
  EXPECT_EQ(completion({{"prompt", {1, "a"}}}), "prompt");
  EXPECT_EQ(completion({{"prompt", {"a", 5}}}), "prompt[1]");
  EXPECT_EQ(completion({{"prompt", "a"}, {"logprobs", 21}}), "logprobs");
  EXPECT_EQ(completion({{"prompt", "a"}, {"logprobs", true}}), "logprobs");
  EXPECT_EQ(completion({{"prompt", std::vector<int>(2048, 300)}}), "prompt");
  EXPECT_EQ(completion({{"prompt", std::vector<int>(3000, 300)}}), "prompt");
  EXPECT_EQ(chat({{"messages", json::array()}}), "messages");
  EXPECT_EQ(chat({{"messages", 5}}), "messages");
  EXPECT_EQ(chat({{"messages", {5}}}), "messages[0]");
  EXPECT_EQ(chat({{"messages", {{{"content", "a"}}}}}), "messages[0].role");
  EXPECT_EQ(chat({{"messages", {{{"role", "king"}}}}}), "messages[0].role");
  EXPECT_EQ(chat({{"messages", {{{"role", "user"}, {"content", 5}}}}}), "messages[0].content");
  EXPECT_EQ(chat({{"logprobs", 5}}), "logprobs");
  EXPECT_EQ(chat({{"top_logprobs", 5}}), "top_logprobs");
  EXPECT_EQ(chat({{"logprobs", true}, {"top_logprobs", 21}}), "top_logprobs");
  EXPECT_EQ(chat({{"tools", 5}}), "tools");
  EXPECT_EQ(chat({{"tools", {5}}}), "tools[0]");
  EXPECT_EQ(chat({{"tool_choice", "required"}}), "tool_choice");
  EXPECT_EQ(chat({{"reasoning_effort", "extreme"}}), "reasoning_effort");
  EXPECT_EQ(chat({{"thinking", {{"type", "maybe"}}}}), "thinking");
  EXPECT_EQ(chat({{"chat_template_kwargs", {{"thinking", "x"}}}}), "chat_template_kwargs.thinking");
  EXPECT_EQ(param("/detokenize", {{"tokens", {-1}}}), "tokens");
  EXPECT_EQ(param("/detokenize", json::object()), "tokens");
  EXPECT_EQ(param("/tokenize", {{"prompt", 5}}), "prompt");
  EXPECT_EQ(param("/tokenize", json::object()), "messages");
}

TEST(Api, BodiesThatAreNotJson) {
  TestServer server;
  std::string deep, wide = R"({"prompt":"x","a":)";
  for (int i = 0; i < 100; ++i) deep += R"({"a":)";
  for (const std::string& body :
       {std::string(), std::string("{"), std::string("[]"), std::string("5"), std::string("null"),
        std::string("\"x\""), std::string("{\"prompt\":\"\xff\"}"),
        std::string("{\"prompt\":\"\\ud800\"}"), std::string("{\"prompt\":\"a\"} x"),
        std::string("{\"temperature\":NaN,\"prompt\":\"a\"}"),
        std::string("{\"temperature\":1e999,\"prompt\":\"a\"}"), std::string("{'prompt':'a'}"),
        std::string("{\"prompt\":\"a\x01\"}"), std::string(3, '\0'), deep}) {
    const auto reply = server.send(TestServer::post_text("/v1/completions", body));
    EXPECT_EQ(reply.status, 400) << body;
    EXPECT_TRUE(reply.parsed()["error"]["message"].is_string()) << body;
  }
}

TEST(Api, Keys) {
  TestServer::Setup setup;
  setup.service.api_keys = {"first", "second"};
  TestServer server(setup);
  const auto status = [&](const std::string& fields, const std::string& path = "/v1/models") {
    return server.get(path, fields).status;
  };
  EXPECT_EQ(status(""), 401);
  EXPECT_EQ(server.get("/v1/models").field("WWW-Authenticate"), "Bearer");
  EXPECT_EQ(server.get("/v1/models").parsed()["error"]["type"], "authentication_error");
  for (const char* key : {"", "firs", "firstx", "First", "first second", "third"})
    EXPECT_EQ(status(fmt::format("Authorization: Bearer {}\r\n", key)), 401) << key;
  EXPECT_EQ(status("Authorization: Basic first\r\n"), 401);
  EXPECT_EQ(status("Authorization: Bearer first\r\n"), 200);
  EXPECT_EQ(status("authorization: bearer second\r\n"), 200);
  EXPECT_EQ(status("X-Api-Key: second\r\n"), 200);
  EXPECT_EQ(status("", "/health"), 200);
  EXPECT_EQ(status("", "/metrics"), 200);
  EXPECT_EQ(status("", "/"), 200);
  // Refused before the body is sent.
  EXPECT_EQ(server.send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
                .status,
            401);
}

TEST(Api, CorsIsOffUnlessAsked) {
  TestServer closed;
  EXPECT_EQ(closed.get("/health", "Origin: http://a\r\n").field("Access-Control-Allow-Origin"), "");
  TestServer::Setup setup;
  setup.service.cors_origins = {"http://a"};
  TestServer open(setup);
  EXPECT_EQ(open.get("/health", "Origin: http://a\r\n").field("Access-Control-Allow-Origin"),
            "http://a");
  EXPECT_EQ(open.get("/health", "Origin: http://b\r\n").field("Access-Control-Allow-Origin"), "");
  const auto reply =
      open.send("OPTIONS /v1/completions HTTP/1.1\r\nHost: x\r\nOrigin: http://a\r\n\r\n");
  EXPECT_EQ(reply.status, 204);
  EXPECT_EQ(reply.field("Access-Control-Allow-Methods"), "GET, POST");
}

TEST(Api, MetricsCountWhatHappened) {
  TestServer server;
  server.post("/v1/completions", {{"prompt", "a"}, {"max_tokens", 50}});
  server.post("/v1/completions", {{"prompt", 5}});
  const std::string text = server.get("/metrics").body;
  for (const char* line :
       {"quatrain:request_success_total{model_name=\"story\",finished_reason=\"stop\"} 1",
        "vllm:time_to_first_token_seconds_count{model_name=\"story\"} 1",
        "quatrain:num_requests_running{model_name=\"story\"} 0",
        "handler=\"/v1/completions\",method=\"POST\",status=\"400\"} 1",
        "# TYPE quatrain:inter_token_latency_seconds histogram", "process_open_fds"})
    EXPECT_NE(text.find(line), std::string::npos) << line << "\n" << text;
}

}  // namespace
}  // namespace quatrain

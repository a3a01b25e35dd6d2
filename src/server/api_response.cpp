// SPDX-License-Identifier: Apache-2.0
#include "server/api_response.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "core/json.h"
#include "server/api_error.h"
#include "tokenizer/unicode.h"

namespace quatrain::server {
namespace {

// JSON has no infinity; other servers write the same.
constexpr float kLowestLogprob = -9999.0f;

float finite(float logprob) {
  return std::isfinite(logprob) ? std::max(logprob, kLowestLogprob) : kLowestLogprob;
}

// The token as text; bytes that are no character become U+FFFD.
std::string token_text(const Tokenizer& tokenizer, std::int32_t id) {
  std::string bytes(tokenizer.token(id)), text;
  drain_utf8(bytes, true, text);
  return text;
}

std::string token_bytes(const Tokenizer& tokenizer, std::int32_t id) {
  std::string out = "[";
  for (const char c : tokenizer.token(id))
    fmt::format_to(std::back_inserter(out), "{}{}", out.size() > 1 ? "," : "",
                   static_cast<unsigned char>(c));
  return out + "]";
}

std::string chat_token(const Tokenizer& tokenizer, std::int32_t id, float logprob) {
  return fmt::format(R"("token":{},"logprob":{},"bytes":{})", json_quote(token_text(tokenizer, id)),
                     finite(logprob), token_bytes(tokenizer, id));
}

std::string chat_tokens(const Tokenizer& tokenizer, const std::vector<TokenReport>& tokens,
                        bool of_reasoning) {
  std::string out = "[";
  for (const TokenReport& token : tokens) {
    if (token.is_reasoning != of_reasoning) continue;
    out += out.size() > 1 ? ",{" : "{";
    out += chat_token(tokenizer, token.token, token.logprob) + R"(,"top_logprobs":[)";
    for (const TokenLogprob& other : token.alternatives) {
      out += out.back() == '[' ? "{" : ",{";
      out += chat_token(tokenizer, other.token, other.logprob) + "}";
    }
    out += "]}";
  }
  return out + "]";
}

std::string chat_logprobs(const Tokenizer& tokenizer, const std::vector<TokenReport>& tokens) {
  return fmt::format(R"({{"content":{},"reasoning_content":{},"refusal":null}})",
                     chat_tokens(tokenizer, tokens, false), chat_tokens(tokenizer, tokens, true));
}

std::string completion_logprobs(const Tokenizer& tokenizer, const std::vector<TokenReport>& tokens,
                                std::size_t offset) {
  std::string texts, logprobs, tops, offsets;
  const auto add = [](std::string& list, const std::string& item) {
    if (!list.empty()) list += ',';
    list += item;
  };
  for (const TokenReport& token : tokens) {
    const std::string text = token_text(tokenizer, token.token);
    add(texts, json_quote(text));
    add(logprobs, fmt::format("{}", finite(token.logprob)));
    add(offsets, std::to_string(offset));
    offset += text.size();
    // The sampled token is always there, also when it is none of the likeliest.
    std::string top = json_quote(text) + fmt::format(":{}", finite(token.logprob));
    for (const TokenLogprob& other : token.alternatives)
      if (other.token != token.token)
        top += fmt::format(",{}:{}", json_quote(token_text(tokenizer, other.token)),
                           finite(other.logprob));
    add(tops, fmt::format("{{{}}}", top));
  }
  return fmt::format(
      R"({{"tokens":[{}],"token_logprobs":[{}],"top_logprobs":[{}],"text_offset":[{}]}})", texts,
      logprobs, tops, offsets);
}

std::string calls_json(const std::vector<ToolCall>& calls, const std::vector<std::string>& ids,
                       bool with_index, std::size_t first) {
  std::string out = "[";
  for (std::size_t i = 0; i < calls.size(); ++i) {
    out += i > 0 ? ",{" : "{";
    if (with_index) out += fmt::format(R"("index":{},)", first + i);
    out +=
        fmt::format(R"("id":{},"type":"function","function":{{"name":{},"arguments":{}}}}})",
                    json_quote(ids[i]), json_quote(calls[i].name), json_quote(calls[i].arguments));
  }
  return out + "]";
}

void add_member(std::string& object, std::string_view key, const std::string& value) {
  object += fmt::format(R"({}"{}":{})", object.empty() ? "" : ",", key, value);
}

void add_reasoning(const AnswerHead& head, std::string& object, const std::string& text) {
  add_member(object, "reasoning_content", json_quote(text));
  if (head.reasoning_alias) add_member(object, "reasoning", json_quote(text));
}

std::string choice_json(const AnswerHead& head, const FinishedChoice& choice, std::size_t index,
                        bool wants_logprobs) {
  std::string logprobs = "null";
  const AnswerPiece& answer = choice.answer;
  if (wants_logprobs)
    logprobs = head.is_chat
                   ? chat_logprobs(*head.tokenizer, answer.tokens)
                   : completion_logprobs(*head.tokenizer, answer.tokens, choice.echo.size());
  std::string body;
  if (head.is_chat) {
    std::string message = R"("role":"assistant")";
    const bool only_calls = answer.content.empty() && !answer.tool_calls.empty();
    add_member(message, "content", only_calls ? "null" : json_quote(answer.content));
    if (!answer.reasoning.empty()) add_reasoning(head, message, answer.reasoning);
    if (!answer.tool_calls.empty())
      add_member(message, "tool_calls", calls_json(answer.tool_calls, choice.call_ids, false, 0));
    body = fmt::format(R"("message":{{{}}})", message);
  } else {
    body = fmt::format(R"("text":{})", json_quote(choice.echo + answer.content));
  }
  if (!choice.prompt_logprobs.empty() && !head.is_chat)
    add_member(body, "prompt_logprobs", choice.prompt_logprobs);
  return fmt::format(R"({{"index":{},{},"logprobs":{},"finish_reason":{}}})", index, body, logprobs,
                     json_quote(choice.finish_reason));
}

std::string head_json(const AnswerHead& head, bool is_chunk) {
  const std::string_view object = !head.is_chat ? "text_completion"
                                  : is_chunk    ? "chat.completion.chunk"
                                                : "chat.completion";
  return fmt::format(R"({{"id":{},"object":"{}","created":{},"model":{})", json_quote(head.id),
                     object, head.created, json_quote(head.model));
}

}  // namespace

std::string_view error_type(int status) {
  switch (status) {
    case 401:
    case 403:
      return "authentication_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    case 503:
      return "unavailable_error";
    default:
      return status >= 500 ? "server_error" : "invalid_request_error";
  }
}

std::string error_json(const ApiError& error) {
  const auto or_null = [](const std::string& text) {
    return text.empty() ? std::string("null") : json_quote(text);
  };
  return fmt::format(R"({{"error":{{"message":{},"type":"{}","param":{},"code":{}}}}})",
                     json_quote(error.what()), error_type(error.status()), or_null(error.param()),
                     error.code().empty() ? std::to_string(error.status()) : or_null(error.code()));
}

std::string usage_json(const Usage& usage) {
  return fmt::format(R"({{"prompt_tokens":{},"completion_tokens":{},"total_tokens":{},)"
                     R"("prompt_tokens_details":{{"cached_tokens":{}}},)"
                     R"("completion_tokens_details":{{"reasoning_tokens":{}}},)"
                     R"("prompt_cache_hit_tokens":{},"prompt_cache_miss_tokens":{}}})",
                     usage.prompt_tokens, usage.completion_tokens,
                     usage.prompt_tokens + usage.completion_tokens, usage.cached_tokens,
                     usage.reasoning_tokens, usage.cached_tokens,
                     usage.prompt_tokens - usage.cached_tokens);
}

std::string answer_json(const AnswerHead& head, const std::vector<FinishedChoice>& choices,
                        bool wants_logprobs, const Usage& usage) {
  std::string list;
  for (std::size_t i = 0; i < choices.size(); ++i)
    list += fmt::format("{}{}", i > 0 ? "," : "", choice_json(head, choices[i], i, wants_logprobs));
  std::string prompt;
  if (head.is_chat && !choices.empty() && !choices[0].prompt_logprobs.empty())
    prompt = fmt::format(R"(,"prompt_logprobs":{})", choices[0].prompt_logprobs);
  return fmt::format(R"({},"choices":[{}],"usage":{}{}}})", head_json(head, false), list,
                     usage_json(usage), prompt);
}

std::string role_event(const AnswerHead& head, int index) {
  return fmt::format(
      "data: {},\"choices\":[{{\"index\":{},\"delta\":{{\"role\":\"assistant\",\"content\":\"\"}},"
      "\"logprobs\":null,\"finish_reason\":null}}]}}\n\n",
      head_json(head, true), index);
}

std::string usage_event(const AnswerHead& head, const Usage& usage) {
  return fmt::format("data: {},\"choices\":[],\"usage\":{}}}\n\n", head_json(head, true),
                     usage_json(usage));
}

std::string chunk_event(const AnswerHead& head, const ChunkPlace& place, const AnswerPiece& piece,
                        const std::vector<std::string>& call_ids, bool wants_logprobs,
                        std::string_view finish_reason) {
  std::string body;
  std::string logprobs = "null";
  if (head.is_chat) {
    if (!piece.reasoning.empty()) add_reasoning(head, body, piece.reasoning);
    if (!piece.content.empty()) add_member(body, "content", json_quote(piece.content));
    if (!piece.tool_calls.empty())
      add_member(body, "tool_calls",
                 calls_json(piece.tool_calls, call_ids, true, place.first_call));
    body = fmt::format(R"("delta":{{{}}})", body);
    if (wants_logprobs && !piece.tokens.empty())
      logprobs = chat_logprobs(*head.tokenizer, piece.tokens);
  } else {
    body = fmt::format(R"("text":{})", json_quote(piece.content));
    if (wants_logprobs && !piece.tokens.empty())
      logprobs = completion_logprobs(*head.tokenizer, piece.tokens, place.text_offset);
  }
  const std::string finish = finish_reason.empty() ? "null" : json_quote(finish_reason);
  return fmt::format(
      "data: {},\"choices\":[{{\"index\":{},{},\"logprobs\":{},\"finish_reason\":{}}}]}}\n\n",
      head_json(head, true), place.index, body, logprobs, finish);
}

std::string prompt_logprobs_json(const Tokenizer& tokenizer,
                                 const std::vector<std::vector<TokenLogprob>>& positions) {
  std::string out = "[null";
  for (const auto& position : positions) {
    std::string object;
    for (std::size_t i = 0; i < position.size(); ++i) {
      const TokenLogprob& entry = position[i];
      if (i > 0 && entry.token == position[0].token) continue;
      add_member(
          object, std::to_string(entry.token),
          fmt::format(R"({{"logprob":{},"rank":{},"decoded_token":{}}})", finite(entry.logprob),
                      entry.rank, json_quote(token_text(tokenizer, entry.token))));
    }
    out += fmt::format(",{{{}}}", object);
  }
  return out + "]";
}

}  // namespace quatrain::server

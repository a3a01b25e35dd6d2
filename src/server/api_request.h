// SPDX-License-Identifier: Apache-2.0
// Bodies of the API's requests → plain, checked data. Hostile input: every fault is an ApiError.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "quatrain/engine.h"
#include "tokenizer/chat_encoding.h"
#include "tokenizer/tokenizer.h"

namespace quatrain::grammar {
struct Grammar;
}

namespace quatrain::server {

struct AnswerVocabulary;

/// What a request may ask for, and what it gets when it does not ask.
struct RequestDefaults {
  std::int64_t max_model_len = 0;
  std::int64_t vocab_size = 0;
  RequestSampling sampling;
  std::int64_t completion_tokens = 16;  // max_tokens of /v1/completions
  ThinkingMode mode = ThinkingMode::kThinking;
  ReasoningEffort effort = ReasoningEffort::kLow;
  EffortTable effort_table = EffortTable::kPreview;
  std::shared_ptr<const AnswerVocabulary> vocabulary;  // of the model that answers
};

using TokenIds = std::vector<std::int32_t>;

/// /v1/completions and /v1/chat/completions.
struct GenerationRequest {
  bool is_chat = false;
  std::string model;                                         // as asked for; may be empty
  std::vector<std::variant<std::string, TokenIds>> prompts;  // of a completion
  std::vector<Message> messages;                             // of a chat
  ChatOptions chat;
  bool has_tools = false;                                           // calls may be handed out
  std::size_t max_calls = std::numeric_limits<std::size_t>::max();  // those behind are not
  std::shared_ptr<const grammar::Grammar> grammar;  // of the answer; null: it is free
  std::shared_ptr<const AnswerVocabulary> vocabulary;
  int n = 1;
  bool stream = false;
  bool include_usage = false;
  RequestSampling sampling;
  bool wants_logprobs = false;
  std::int32_t prompt_logprobs = -1;
  std::int64_t max_tokens = -1;
  std::vector<std::string> stop;
  TokenIds stop_token_ids;
  bool ignore_eos = false;
  bool include_stop = false;
  bool skip_special = true;  // of a completion's text
  bool echo = false;
  int priority = 0;
};

GenerationRequest read_completion(std::string_view body, const RequestDefaults& defaults);
GenerationRequest read_chat(std::string_view body, const RequestDefaults& defaults);

struct TokenizeRequest {
  std::variant<std::string, std::vector<Message>> input;
  ChatOptions chat;
  bool add_special_tokens = true;  // BOS in front of a prompt
  bool with_texts = false;
};
TokenizeRequest read_tokenize(std::string_view body, const RequestDefaults& defaults);

/// The ids of /detokenize.
TokenIds read_detokenize(std::string_view body, const RequestDefaults& defaults);

}  // namespace quatrain::server

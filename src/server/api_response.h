// SPDX-License-Identifier: Apache-2.0
// What clients are told, as JSON text in the shapes of OpenAI's API.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "server/answer.h"

namespace quatrain::server {

struct Usage {
  std::int64_t prompt_tokens = 0;
  std::int64_t completion_tokens = 0;
  std::int64_t cached_tokens = 0;
  std::int64_t reasoning_tokens = 0;
};

/// What all objects of one answer share.
struct AnswerHead {
  bool is_chat = false;
  std::string id;
  std::string model;
  std::int64_t created = 0;      // seconds since 1970
  bool reasoning_alias = false;  // `reasoning` beside `reasoning_content`
  const Tokenizer* tokenizer = nullptr;
};

/// A choice that is complete.
struct FinishedChoice {
  AnswerPiece answer;
  std::vector<std::string> call_ids;  // one per tool call
  std::string finish_reason;
  std::string prompt_logprobs = {};  // JSON; empty: not asked for
  std::string echo = {};             // text in front of a completion's
};

std::string usage_json(const Usage& usage);

/// The whole answer of a request that does not stream.
std::string answer_json(const AnswerHead& head, const std::vector<FinishedChoice>& choices,
                        bool wants_logprobs, const Usage& usage);

/// One "data:" event with the delta of a choice. `first_call` counts the calls handed out before;
/// `text_offset` the bytes of text. An empty finish_reason is null.
struct ChunkPlace {
  int index = 0;
  std::size_t first_call = 0;
  std::size_t text_offset = 0;
};
std::string chunk_event(const AnswerHead& head, const ChunkPlace& place, const AnswerPiece& piece,
                        const std::vector<std::string>& call_ids, bool wants_logprobs,
                        std::string_view finish_reason);
/// The first event of a choice of a chat: its role.
std::string role_event(const AnswerHead& head, int index);
std::string usage_event(const AnswerHead& head, const Usage& usage);

/// The prompt's logprobs as vLLM gives them: null for the first token, then objects by token id.
std::string prompt_logprobs_json(const Tokenizer& tokenizer,
                                 const std::vector<std::vector<TokenLogprob>>& positions);

}  // namespace quatrain::server

// SPDX-License-Identifier: Apache-2.0
// One choice of an answer: tokens as the engine samples them → what the client is told.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "quatrain/engine.h"
#include "server/api_request.h"
#include "tokenizer/assistant_stream.h"
#include "tokenizer/stop_matcher.h"
#include "tokenizer/stream_decoder.h"

namespace quatrain::server {

/// A token with its likelihood, for "logprobs".
struct TokenReport {
  std::int32_t token = 0;
  float logprob = 0;
  std::vector<TokenLogprob> alternatives;
  bool is_reasoning = false;
};

/// What an event adds to a choice. A completion's text is its content.
struct AnswerPiece {
  std::string reasoning;
  std::string content;
  std::vector<ToolCall> tool_calls;
  std::vector<TokenReport> tokens;  // with logprobs

  [[nodiscard]] bool empty() const {
    return reasoning.empty() && content.empty() && tool_calls.empty() && tokens.empty();
  }
  void append(AnswerPiece&& other);
};

/// Stop strings end the content; they are not looked for in the reasoning and in tool calls.
class Answer {
 public:
  Answer(const Tokenizer& tokenizer, const GenerationRequest& request);

  /// Takes one event; nothing is taken any more once ended().
  AnswerPiece feed(const RequestEvent& event);

  [[nodiscard]] bool ended() const { return end_.has_value(); }
  /// Ended here, by a stop string: the engine does not know yet.
  [[nodiscard]] bool stopped_by_text() const { return matcher_ && matcher_->stopped(); }
  [[nodiscard]] RequestEnd end() const { return *end_; }
  /// "stop", "length", "tool_calls" or "abort".
  [[nodiscard]] std::string_view finish_reason() const;

  [[nodiscard]] std::int64_t tokens() const { return tokens_; }
  [[nodiscard]] std::int64_t reasoning_tokens() const { return reasoning_tokens_; }

 private:
  void add_text(std::string_view text, AnswerPiece& piece);
  void add_delta(AssistantDelta&& delta, AnswerPiece& piece);
  void add_content(std::string_view text, AnswerPiece& piece);

  StreamDecoder decoder_;
  std::optional<AssistantStream> assistant_;  // of a chat
  std::optional<StopMatcher> matcher_;
  bool has_tools_;
  std::size_t calls_left_;
  bool wants_logprobs_;
  bool called_tools_ = false;
  std::optional<RequestEnd> end_;
  std::int64_t tokens_ = 0;
  std::int64_t reasoning_tokens_ = 0;
};

}  // namespace quatrain::server

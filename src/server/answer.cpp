// SPDX-License-Identifier: Apache-2.0
#include "server/answer.h"

#include <utility>

namespace quatrain::server {
namespace {

template <class T>
void move_behind(std::vector<T>& to, std::vector<T>& from) {
  to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

}  // namespace

void AnswerPiece::append(AnswerPiece&& other) {
  reasoning += other.reasoning;
  content += other.content;
  move_behind(tool_calls, other.tool_calls);
  move_behind(tokens, other.tokens);
}

Answer::Answer(const Tokenizer& tokenizer, const GenerationRequest& request)
    : decoder_(tokenizer, !request.is_chat && request.skip_special),
      has_tools_(request.has_tools),
      calls_left_(request.max_calls),
      wants_logprobs_(request.wants_logprobs) {
  if (request.is_chat) assistant_.emplace(request.chat.mode);
  if (!request.stop.empty()) matcher_.emplace(request.stop, request.include_stop);
}

AnswerPiece Answer::feed(const RequestEvent& event) {
  AnswerPiece piece;
  if (ended()) return piece;
  if (event.token) {
    const bool is_reasoning = assistant_ && assistant_->in_reasoning();
    ++tokens_;
    reasoning_tokens_ += is_reasoning ? 1 : 0;
    if (wants_logprobs_)
      piece.tokens.push_back({*event.token, event.logprob, event.alternatives, is_reasoning});
    add_text(decoder_.feed(*event.token), piece);
  }
  if (event.end && !stopped_by_text()) {
    add_text(decoder_.finish(), piece);
    if (assistant_) add_delta(assistant_->finish(), piece);
    if (matcher_ && !matcher_->stopped()) piece.content += matcher_->finish();
    end_ = event.end;
  }
  if (stopped_by_text()) end_ = RequestEnd::kStop;
  return piece;
}

void Answer::add_text(std::string_view text, AnswerPiece& piece) {
  if (text.empty()) return;
  if (assistant_)
    add_delta(assistant_->feed(text), piece);
  else
    add_content(text, piece);
}

void Answer::add_delta(AssistantDelta&& delta, AnswerPiece& piece) {
  piece.reasoning += delta.reasoning;
  add_content(delta.content, piece);
  if (!has_tools_ || stopped_by_text()) return;
  called_tools_ |= !delta.tool_calls.empty();
  if (delta.tool_calls.size() > calls_left_) delta.tool_calls.resize(calls_left_);
  calls_left_ -= delta.tool_calls.size();
  move_behind(piece.tool_calls, delta.tool_calls);
}

void Answer::add_content(std::string_view text, AnswerPiece& piece) {
  piece.content += matcher_ ? matcher_->feed(text) : text;
}

std::string_view Answer::finish_reason() const {
  switch (*end_) {
    case RequestEnd::kStop:
      return called_tools_ ? "tool_calls" : "stop";
    case RequestEnd::kLength:
      return "length";
    default:
      return "abort";
  }
}

}  // namespace quatrain::server

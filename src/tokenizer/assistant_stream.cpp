// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/assistant_stream.h"

#include <utility>

#include "tokenizer/chat_templates.h"

namespace quatrain {
namespace {

constexpr auto kNone = std::string_view::npos;

// Where the text ends that cannot be part of `literal` any more. Only the first byte of a literal
// is "<".
std::size_t before_partial(std::string_view text, std::string_view literal) {
  const auto begin = text.rfind('<');
  return begin != kNone && literal.starts_with(text.substr(begin)) ? begin : text.size();
}

// `size` without the line ends before it, at most the blank line that belongs to the markup.
std::size_t without_blank_line(std::string_view text, std::size_t size) {
  for (int i = 0; i < 2 && size > 0 && text[size - 1] == '\n'; ++i) --size;
  return size;
}

}  // namespace

AssistantDelta AssistantStream::feed(std::string_view text) {
  AssistantDelta out;
  if (is_ended_) return out;
  raw_ += text;
  cut_at_eos();
  while (step(false, out)) {
  }
  return out;
}

AssistantDelta AssistantStream::finish() {
  AssistantDelta out;
  if (!is_ended_) pending_ += raw_;
  is_ended_ = true;
  raw_.clear();
  while (step(true, out)) {
  }
  return out;
}

void AssistantStream::cut_at_eos() {
  auto end = raw_.find(kEosToken);
  is_ended_ = end != kNone;
  if (!is_ended_) end = before_partial(raw_, kEosToken);
  pending_.append(raw_, 0, end);
  raw_.erase(0, end);
}

// Moves on by one part of the text; false when more is needed, or nothing is left.
bool AssistantStream::step(bool is_final, AssistantDelta& out) {
  switch (section_) {
    case Section::kStart:
      return step_start(is_final);
    case Section::kReasoning:
    case Section::kContent:
      return step_text(is_final, out);
    case Section::kReasoningCalls:
      return step_reasoning_calls(is_final, out);
    case Section::kCalls:
      calls_.feed(pending_, out.tool_calls);
      pending_.clear();
      if (is_final) calls_.finish(out.tool_calls);
      return false;
  }
  return false;
}

// The template has written <think>; a model that repeats it is forgiven.
bool AssistantStream::step_start(bool is_final) {
  if (pending_.starts_with(chat::kThink)) {
    pending_.erase(0, chat::kThink.size());
    is_thinking_ = true;
  } else if (!is_final && chat::kThink.starts_with(pending_)) {
    return false;
  }
  section_ = is_thinking_ ? Section::kReasoning : Section::kContent;
  return true;
}

void AssistantStream::take_text(std::size_t size, AssistantDelta& out) {
  (section_ == Section::kContent ? out.content : out.reasoning).append(pending_, 0, size);
  pending_.erase(0, size);
}

// Text up to the end of the reasoning, or up to markup.
bool AssistantStream::step_text(bool is_final, AssistantDelta& out) {
  const bool in_reasoning = section_ == Section::kReasoning;
  const std::string_view text = pending_;
  for (std::size_t i = 0; (i = text.find_first_of(dsml::kOpeningBytes, i)) != kNone; ++i) {
    const std::string_view rest = text.substr(i);
    if (in_reasoning && rest.starts_with(chat::kThinkEnd)) {
      take_text(i, out);
      pending_.erase(0, chat::kThinkEnd.size());
      section_ = Section::kContent;
      return true;
    }
    bool marker_begun = false;
    const dsml::Match match = dsml::match_opening(rest, &marker_begun);
    if (match == dsml::Match::kYes || (is_final && marker_begun)) {
      const std::size_t end = without_blank_line(text, i);
      calls_fed_ = i - end;
      take_text(end, out);
      section_ = in_reasoning ? Section::kReasoningCalls : Section::kCalls;
      return true;
    }
    const bool may_end_reasoning = in_reasoning && chat::kThinkEnd.starts_with(rest);
    if (!is_final && (match == dsml::Match::kPartial || may_end_reasoning)) {
      take_text(without_blank_line(text, i), out);
      return false;
    }
  }
  take_text(is_final ? text.size() : without_blank_line(text, text.size()), out);
  return false;
}

// Markup inside the reasoning ends it if a call becomes complete there, or if the reasoning is
// never closed. Until one of these is known, nothing is handed out.
bool AssistantStream::step_reasoning_calls(bool is_final, AssistantDelta& out) {
  const std::string_view text = pending_;
  const auto found = text.find(chat::kThinkEnd, calls_fed_);
  auto end = found;
  if (end == kNone) end = is_final ? text.size() : before_partial(text, chat::kThinkEnd);
  calls_.feed(text.substr(calls_fed_, end - calls_fed_), out.tool_calls);
  calls_fed_ = end;
  const bool is_call = !out.tool_calls.empty() || (found != kNone && calls_.would_finish_call());
  if (is_call || (is_final && found == kNone)) {
    pending_.erase(0, end);
    section_ = Section::kCalls;
    return true;
  }
  if (found == kNone) return false;
  take_text(found, out);
  pending_.erase(0, chat::kThinkEnd.size());
  calls_ = dsml::CallReader();
  section_ = Section::kContent;
  return true;
}

}  // namespace quatrain

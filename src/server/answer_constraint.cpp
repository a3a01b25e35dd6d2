// SPDX-License-Identifier: Apache-2.0
#include "server/answer_constraint.h"

#include <utility>

#include "tokenizer/chat_encoding.h"

namespace quatrain::server {

AnswerVocabulary::AnswerVocabulary(const Tokenizer& tokenizer)
    : think_end(tokenizer.added_id_of(kThinkEndToken)) {
  const std::optional<std::int32_t> marker = tokenizer.added_id_of(kCallMarker);
  std::vector<std::string> texts(static_cast<std::size_t>(tokenizer.vocab_size()));
  reasoning.resize((texts.size() + 31) / 32);
  for (std::int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const auto i = static_cast<std::size_t>(id);
    if (id == marker)
      texts[i] = grammar::kControlByte + std::string(kCallMarker);
    else if (!tokenizer.is_special(id))
      texts[i] = tokenizer.token(id);
    // Reasoning goes on until </think>: calls in it, or an early end, would leave no answer.
    if (tokenizer.has_token(id) && id != marker && id != tokenizer.eos_id())
      reasoning[i / 32] |= std::uint32_t{1} << (i % 32);
  }
  tokens =
      std::make_shared<grammar::Vocabulary>(std::move(texts), tokenizer.eos_id(), *answer_guard());
  marker_is_token = marker.has_value();
}

std::string call_marker(const AnswerVocabulary* vocabulary) {
  const bool is_token = vocabulary != nullptr && vocabulary->marker_is_token;
  return (is_token ? std::string(1, grammar::kControlByte) : "") + std::string(kCallMarker);
}

std::shared_ptr<const grammar::TextGuard> answer_guard() {
  static const auto guard = [] {
    // What begins any control token, and the marker of calls with either kind of bar.
    const std::vector<std::string> markup = {"<｜", "｜DSML", "|DSML"};
    return std::make_shared<const grammar::TextGuard>(markup);
  }();
  return guard;
}

AnswerConstraint::AnswerConstraint(std::shared_ptr<const AnswerVocabulary> vocabulary,
                                   std::shared_ptr<const grammar::Grammar> grammar, bool thinks)
    : vocabulary_(std::move(vocabulary)),
      matcher_(std::move(grammar), vocabulary_->tokens),
      thinks_(thinks) {}

std::span<const std::uint32_t> AnswerConstraint::allowed() {
  return thinks_ ? std::span(vocabulary_->reasoning) : matcher_.allowed();
}

void AnswerConstraint::advance(std::int32_t token) {
  if (thinks_)
    thinks_ = token != vocabulary_->think_end;
  else
    matcher_.advance(token);
}

}  // namespace quatrain::server

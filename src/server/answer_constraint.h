// SPDX-License-Identifier: Apache-2.0
// AnswerConstraint: lets the engine write only answers that a grammar allows, reasoning aside.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "grammar/token_matcher.h"
#include "quatrain/engine.h"
#include "tokenizer/tokenizer.h"

namespace quatrain::server {

/// What constraints need to know of a tokenizer. Made once, constant, shared by all requests.
struct AnswerVocabulary {
  explicit AnswerVocabulary(const Tokenizer& tokenizer);

  std::shared_ptr<const grammar::Vocabulary> tokens;
  std::optional<std::int32_t> think_end;  // the token </think>
  std::vector<std::uint32_t> reasoning;   // mask of what may come before it
  bool marker_is_token = false;           // of tool calls
};

/// The marker of tool calls as grammars spell it: the control token, if the tokenizer has it.
std::string call_marker(const AnswerVocabulary* vocabulary);

/// What free text in a constrained answer never spells, so that nothing in it is taken for markup.
std::shared_ptr<const grammar::TextGuard> answer_guard();

class AnswerConstraint final : public TokenConstraint {
 public:
  /// In an answer that `thinks`, the grammar begins behind </think>, which `vocabulary` must have.
  AnswerConstraint(std::shared_ptr<const AnswerVocabulary> vocabulary,
                   std::shared_ptr<const grammar::Grammar> grammar, bool thinks);

  std::span<const std::uint32_t> allowed() override;
  void advance(std::int32_t token) override;

 private:
  std::shared_ptr<const AnswerVocabulary> vocabulary_;
  grammar::TokenMatcher matcher_;
  bool thinks_;
};

}  // namespace quatrain::server

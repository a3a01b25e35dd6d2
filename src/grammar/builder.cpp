// SPDX-License-Identifier: Apache-2.0
#include "grammar/builder.h"

#include <algorithm>
#include <optional>

#include "grammar/draft.h"

namespace quatrain::grammar {

// ---- Draft ----

Members empty_object() {
  Members members;
  members.around = {"{", ',', "}", true};
  return members;
}

Items empty_array() {
  Items items;
  items.around = {"[", ',', "]", true};
  return items;
}

RuleId Draft::any_value(bool only_objects) {
  if (any_rule == kNoRule) {
    any_object_rule = add_rule("any object");
    any_rule = add_rule("any value");
    TextsLeaf words;
    for (const char* word : {"true", "false", "null"}) words.texts.push_back({word, "", false});
    Members object = empty_object();
    object.extra = any_rule;
    object.extra_key = add_node(StringLeaf());
    add_value(any_object_rule, std::move(object));
    Items array = empty_array();
    array.rest = any_rule;
    rules[any_rule].nodes = rules[any_object_rule].nodes;
    add_value(any_rule, std::move(array));
    add_value(any_rule, StringLeaf());
    add_value(any_rule, NumberLeaf());
    add_value(any_rule, std::move(words));
  }
  return only_objects ? any_object_rule : any_rule;
}

void resolve(Draft& draft, RuleId rule) {
  std::vector<RuleId> queue{rule};
  std::vector<NodeId> found;
  for (std::size_t i = 0; i < queue.size(); ++i) {
    const DraftRule& at = draft.rules[queue[i]];
    for (const NodeId node : at.nodes)
      if (std::ranges::find(found, node) == found.end()) found.push_back(node);
    for (const RuleId other : at.others)
      if (std::ranges::find(queue, other) == queue.end()) queue.push_back(other);
    if (found.size() > draft.limits.alternatives || queue.size() > 4 * draft.limits.alternatives)
      fail("{}: there are more than {} alternatives", draft.rules[rule].path,
           draft.limits.alternatives);
  }
  draft.rules[rule].nodes = std::move(found);
  draft.rules[rule].others.clear();
}

// ---- GrammarBuilder ----

class GrammarBuilder::Impl {
 public:
  Impl(std::shared_ptr<const TextGuard> guard, GrammarLimits limits)
      : draft(std::move(guard), limits), root(draft.add_rule("the answer")) {}

  Draft draft;
  RuleId root;
  std::vector<DraftTool> tools;
  std::string marker;
  std::uint32_t most_calls = 0;
};

GrammarBuilder::GrammarBuilder(std::shared_ptr<const TextGuard> guard, GrammarLimits limits)
    : impl_(std::make_unique<Impl>(std::move(guard), limits)) {}
GrammarBuilder::~GrammarBuilder() = default;

void GrammarBuilder::add_object() {
  const RuleId rule = impl_->draft.any_value(true);
  impl_->draft.add_alternatives(impl_->root, rule);
}

void GrammarBuilder::add_schema(std::string_view json, const std::string& path) {
  const RuleId rule = grammar::add_schema(impl_->draft, json, path);
  impl_->draft.add_alternatives(impl_->root, rule);
  impl_->draft.wanted.push_back(rule);
}

void GrammarBuilder::add_calls(std::span<const Tool> tools, std::string_view marker,
                               std::uint32_t most) {
  Draft& draft = impl_->draft;
  impl_->marker = marker;
  impl_->most_calls = most;
  for (const Tool& tool : tools) {
    RuleId parameters = kNoRule;
    if (tool.parameters.empty()) {
      parameters = draft.add_rule(tool.path);
      draft.add_value(parameters, empty_object());
    } else {
      parameters = grammar::add_schema(draft, tool.parameters, tool.path);
    }
    draft.wanted.push_back(parameters);
    impl_->tools.push_back({tool.name, tool.path, parameters});
  }
}

std::shared_ptr<const Grammar> GrammarBuilder::build() {
  Draft& draft = impl_->draft;
  for (RuleId rule = 0; rule < draft.rules.size(); ++rule)
    if (rule != impl_->root) resolve(draft, rule);
  if (!impl_->tools.empty())
    draft.add_alternatives(impl_->root,
                           add_call_block(draft, impl_->tools, impl_->marker, impl_->most_calls));
  resolve(draft, impl_->root);
  return finish(std::move(draft), impl_->root);
}

}  // namespace quatrain::grammar

// SPDX-License-Identifier: Apache-2.0
// A grammar while it is made: rules that still refer to each other, with bounds on their number.
//
// Private to the sources of GrammarBuilder.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/error.h"
#include "grammar/builder.h"
#include "grammar/grammar.h"

namespace quatrain::grammar {

struct DraftRule {
  std::vector<NodeId> nodes;
  std::vector<RuleId> others;  // whose alternatives are this one's too
  std::string path;            // of the schema
};

/// A tool whose parameters become markup once all rules are resolved.
struct DraftTool {
  std::string name;
  std::string path;
  RuleId parameters = kNoRule;
};

struct Draft {
  Draft(std::shared_ptr<const TextGuard> text_guard, GrammarLimits bounds)
      : guard(std::move(text_guard)), limits(bounds) {}

  RuleId add_rule(const std::string& path) {
    if (rules.size() == limits.schemas)
      fail("{}: there are more than {} schemas", path, limits.schemas);
    rules.push_back({{}, {}, path});
    return static_cast<RuleId>(rules.size() - 1);
  }
  template <class Body>
  NodeId add_node(Body&& body) {
    nodes.push_back({std::forward<Body>(body)});
    return static_cast<NodeId>(nodes.size() - 1);
  }
  template <class Body>
  void add_value(RuleId rule, Body&& body) {
    rules[rule].nodes.push_back(add_node(std::forward<Body>(body)));
  }
  /// Counts a fixed text, which must be free of markup.
  void add_text(std::string_view text, const std::string& path) {
    text_bytes += text.size();
    if (text_bytes > limits.text_bytes)
      fail("{}: names and fixed values have more than {} bytes", path, limits.text_bytes);
    if (!guard->allows(text)) fail("{}: a fixed text contains markup of the model", path);
  }
  /// The alternatives of `other` are alternatives of `rule`.
  void add_alternatives(RuleId rule, RuleId other) { rules[rule].others.push_back(other); }
  /// The rule of any JSON value; of any object if `only_objects`.
  RuleId any_value(bool only_objects);

  std::shared_ptr<const TextGuard> guard;
  GrammarLimits limits;
  std::vector<Node> nodes;
  std::vector<DraftRule> rules;
  std::size_t text_bytes = 0;
  RuleId any_rule = kNoRule, any_object_rule = kNoRule;
  std::vector<RuleId> wanted;  // that something must satisfy
};

/// "{" … "}" without members yet.
Members empty_object();
/// "[" … "]" without items yet.
Items empty_array();

/// Adds the schema in `json` and returns its rule.
RuleId add_schema(Draft& draft, std::string_view json, const std::string& path);

/// Adds the block of calls and returns its rule. Rules must be resolved: it looks at what
/// parameters are.
RuleId add_call_block(Draft& draft, std::span<const DraftTool> tools, std::string_view marker,
                      std::uint32_t most);

/// Puts the alternatives of `others` into `nodes`.
void resolve(Draft& draft, RuleId rule);

/// The finished grammar: depths computed, what nothing satisfies dropped, tries built.
std::shared_ptr<const Grammar> finish(Draft&& draft, RuleId root);

}  // namespace quatrain::grammar

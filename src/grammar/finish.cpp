// SPDX-License-Identifier: Apache-2.0
// The last part of building: how deep values must nest, what nothing satisfies, and the tries.
#include <algorithm>

#include "grammar/draft.h"

namespace quatrain::grammar {
namespace {

constexpr std::uint32_t kNever = kMaxDepth + 1;

std::uint32_t deeper(std::uint32_t depth) { return std::min(depth + 1, kNever); }

// How deep a node must nest, given the rules' depths so far.
class DepthOf {
 public:
  explicit DepthOf(const std::vector<Rule>& rules) : rules_(rules) {}

  std::uint32_t operator()(const StringLeaf& leaf) const {
    return leaf.min > leaf.max ? kNever : 0;
  }
  std::uint32_t operator()(const NumberLeaf& leaf) const {
    return leaf.form == NumberLeaf::Form::kFixed && leaf.low > leaf.high ? kNever : 0;
  }
  std::uint32_t operator()(const TextsLeaf& leaf) const { return leaf.texts.empty() ? kNever : 0; }
  std::uint32_t operator()(const Members& members) const {
    // A required property needs the flattest of its entries.
    std::vector<std::uint32_t> depths(members.size(), kNever);
    for (const Members::Entry& entry : members.entries)
      depths[entry.property] = std::min(depths[entry.property], rules_[entry.value].min_depth);
    std::uint32_t deepest = 0;
    for (std::uint32_t i = 0; i < members.size(); ++i)
      if (members.required[i]) deepest = std::max(deepest, depths[i]);
    return deeper(deepest);
  }
  std::uint32_t operator()(const Items& items) const {
    if (items.min > items.max) return kNever;
    std::uint32_t deepest = 0;
    const std::size_t from_prefix = std::min<std::size_t>(items.min, items.prefix.size());
    for (std::size_t i = 0; i < from_prefix; ++i)
      deepest = std::max(deepest, rules_[items.prefix[i]].min_depth);
    if (items.min > items.prefix.size())
      deepest = std::max(deepest, items.rest == kNoRule ? kNever : rules_[items.rest].min_depth);
    return deeper(deepest);
  }
  std::uint32_t operator()(const Choice& choice) const {  // each must be possible
    std::uint32_t deepest = 0;
    for (const Choice::Entry& entry : choice.entries)
      deepest = std::max(deepest, rules_[entry.value].min_depth);
    return deepest;
  }

 private:
  const std::vector<Rule>& rules_;
};

// Depths only fall, and each round that changes anything settles one depth more.
void compute_depths(Grammar& grammar) {
  for (Node& node : grammar.nodes) node.min_depth = kNever;
  for (Rule& rule : grammar.rules) rule.min_depth = kNever;
  for (bool changed = true; changed;) {
    changed = false;
    for (Node& node : grammar.nodes) node.min_depth = std::visit(DepthOf(grammar.rules), node.body);
    for (Rule& rule : grammar.rules) {
      std::uint32_t flattest = kNever;
      for (const NodeId node : rule.nodes)
        flattest = std::min(flattest, grammar.nodes[node].min_depth);
      changed |= flattest != std::exchange(rule.min_depth, flattest);
    }
  }
}

template <class Entries>
ByteTrie trie_of(Entries& entries) {
  std::ranges::sort(entries, {},
                    [](const auto& entry) -> const std::string& { return entry.prefix; });
  std::vector<std::string_view> texts;
  for (const auto& entry : entries) texts.emplace_back(entry.prefix);
  return ByteTrie(texts);
}

// Drops what no value satisfies and builds tries, in that order.
class Finisher {
 public:
  explicit Finisher(const std::vector<Rule>& rules) : rules_(rules) {}

  void operator()(StringLeaf& /*leaf*/) const {}
  void operator()(NumberLeaf& /*leaf*/) const {}
  void operator()(TextsLeaf& leaf) const {
    std::vector<std::string_view> texts;
    for (const TextsLeaf::Text& text : leaf.texts) texts.emplace_back(text.json);
    std::ranges::sort(texts);
    leaf.trie = ByteTrie(texts);
  }
  void operator()(Members& members) const {
    std::erase_if(members.entries, [&](const auto& entry) { return is_void(entry.value); });
    if (members.extra != kNoRule && is_void(members.extra)) members.extra = kNoRule;
    members.trie = trie_of(members.entries);
    members.limit.assign(members.size() + 1, members.size());
    for (std::uint32_t i = members.size(); i-- > 0;)
      members.limit[i] = members.required[i] ? i : members.limit[i + 1];
  }
  void operator()(Items& items) const {
    if (items.rest != kNoRule && is_void(items.rest)) items.rest = kNoRule;
    const auto first_void =
        std::ranges::find_if(items.prefix, [&](RuleId r) { return is_void(r); });
    if (first_void != items.prefix.end()) items.rest = kNoRule;
    items.prefix.erase(first_void, items.prefix.end());
    if (items.rest == kNoRule)
      items.max = std::min(items.max, static_cast<std::uint32_t>(items.prefix.size()));
  }
  void operator()(Choice& choice) const { choice.trie = trie_of(choice.entries); }

 private:
  [[nodiscard]] bool is_void(RuleId rule) const { return rules_[rule].min_depth == kNever; }

  const std::vector<Rule>& rules_;
};

}  // namespace

std::shared_ptr<const Grammar> finish(Draft&& draft, RuleId root) {
  auto grammar = std::make_shared<Grammar>();
  grammar->guard = std::move(draft.guard);
  grammar->root = root;
  grammar->nodes = std::move(draft.nodes);
  for (DraftRule& rule : draft.rules) grammar->rules.push_back({std::move(rule.nodes), 0});
  compute_depths(*grammar);
  for (const RuleId rule : draft.wanted)
    if (grammar->rules[rule].min_depth == kNever)
      fail("{}: no value that nests at most {} deep satisfies the schema", draft.rules[rule].path,
           kMaxDepth);
  for (Node& node : grammar->nodes) std::visit(Finisher(grammar->rules), node.body);
  for (Rule& rule : grammar->rules)
    std::erase_if(rule.nodes,
                  [&](NodeId node) { return grammar->nodes[node].min_depth == kNever; });
  return grammar;
}

}  // namespace quatrain::grammar

// SPDX-License-Identifier: Apache-2.0
// What an answer may be: a grammar over bytes whose nodes are JSON values and the markup of calls.
//
// Constant once built. json_schema.h and tool_calls.h make grammars, automaton.h runs them.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "grammar/byte_trie.h"
#include "grammar/leaf.h"
#include "grammar/text_guard.h"

namespace quatrain::grammar {

using NodeId = std::uint32_t;
using RuleId = std::uint32_t;

inline constexpr std::uint32_t kNoRule = ~std::uint32_t{0};

/// Values nest at most this deep; recursive schemas end there at the latest.
inline constexpr std::uint32_t kMaxDepth = 64;

/// In a fixed text this byte, which is nowhere in UTF-8, stands before the text of a control token
/// and says that the token itself must come, not text that looks like it.
inline constexpr char kControlByte = '\xFF';

/// What stands around and between the parts of a value.
struct Surroundings {
  std::string open;
  char separator = ',';
  std::string close;
  /// White space may stand behind `open`, separators and keys, and before `close`: nothing, one
  /// space, or a line feed and its indentation.
  bool is_spaced = false;
};

/// Members in a fixed order, each perhaps left out: an object, or the parameters of a call.
struct Members {
  struct Entry {
    std::string prefix;      // what stands before the value; no prefix begins another one
    std::uint32_t property;  // several entries may spell one property
    RuleId value;
  };
  Surroundings around;
  std::string suffix;                // behind each value
  std::vector<bool> required;        // by property
  std::vector<Entry> entries;        // by prefix
  RuleId extra = kNoRule;            // of the values of other members, which come last
  NodeId extra_key = 0;              // a string
  ByteTrie trie;                     // of the prefixes
  std::vector<std::uint32_t> limit;  // from property i on, the first required one

  [[nodiscard]] std::uint32_t size() const { return static_cast<std::uint32_t>(required.size()); }
};

/// Values one after the other: an array, or a block of calls.
struct Items {
  Surroundings around;
  std::vector<RuleId> prefix;  // of the first ones
  RuleId rest = kNoRule;       // of the others; none: there are no others
  std::uint32_t min = 0, max = kNoLimit;
};

/// A fixed text that says what comes behind it.
struct Choice {
  struct Entry {
    std::string prefix;  // no prefix begins another one
    RuleId value;
  };
  std::vector<Entry> entries;
  ByteTrie trie;
};

struct Node {
  std::variant<StringLeaf, NumberLeaf, TextsLeaf, Members, Items, Choice> body;
  std::uint32_t min_depth = 0;  // how deep values nest in the flattest one; a leaf is 0 deep
};

/// Alternatives for a value.
struct Rule {
  std::vector<NodeId> nodes;
  std::uint32_t min_depth = 0;
};

struct Grammar {
  std::vector<Node> nodes;
  std::vector<Rule> rules;
  RuleId root = 0;
  std::shared_ptr<const TextGuard> guard;
};

}  // namespace quatrain::grammar

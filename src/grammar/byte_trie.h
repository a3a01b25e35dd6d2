// SPDX-License-Identifier: Apache-2.0
// A set of byte strings as a tree in preorder: walking it costs one pass over an array.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace quatrain::grammar {

/// Constant once built. Node 0 is the root; the children of node i are i + 1 and its siblings.
class ByteTrie {
 public:
  struct Node {
    std::uint32_t skip = 0;   // the node behind the subtree: the next sibling, if it has this depth
    std::uint32_t first = 0;  // of the sorted texts, the first in the subtree
    std::uint32_t own = 0;    // texts that end here; they are [first, first + own)
    std::uint16_t depth = 0;
    std::uint8_t byte = 0;
  };

  ByteTrie() = default;
  /// `sorted` by bytes; equal texts are allowed. Throws Error for a text longer than kMaxText.
  explicit ByteTrie(std::span<const std::string_view> sorted);

  static constexpr std::size_t kMaxText = 65535;
  static constexpr std::uint32_t kNone = 0;  // the root is nobody's child

  [[nodiscard]] const std::vector<Node>& nodes() const { return nodes_; }
  [[nodiscard]] const Node& operator[](std::uint32_t node) const { return nodes_[node]; }

  /// The child for a byte, or kNone.
  [[nodiscard]] std::uint32_t child(std::uint32_t node, std::uint8_t byte) const {
    for (std::uint32_t i = node + 1; i < nodes_[node].skip; i = nodes_[i].skip)
      if (nodes_[i].byte == byte) return i;
    return kNone;
  }
  [[nodiscard]] bool has_children(std::uint32_t node) const { return nodes_[node].skip > node + 1; }
  /// Behind the last of the sorted texts in the subtree.
  [[nodiscard]] std::uint32_t end(std::uint32_t node) const {
    const std::uint32_t behind = nodes_[node].skip;
    return behind < nodes_.size() ? nodes_[behind].first : texts_;
  }

 private:
  std::vector<Node> nodes_{Node{.skip = 1}};
  std::uint32_t texts_ = 0;
};

}  // namespace quatrain::grammar

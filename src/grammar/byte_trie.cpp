// SPDX-License-Identifier: Apache-2.0
#include "grammar/byte_trie.h"

#include "core/error.h"

namespace quatrain::grammar {

ByteTrie::ByteTrie(std::span<const std::string_view> sorted) {
  std::vector<std::uint32_t> path{0};  // the open nodes, from the root to the last text's end
  std::string_view previous;
  const auto close_to = [&](std::size_t depth) {
    for (; path.size() > depth + 1; path.pop_back())
      nodes_[path.back()].skip = static_cast<std::uint32_t>(nodes_.size());
  };
  for (const std::string_view text : sorted) {
    if (text.size() > kMaxText)
      fail("a text of {} bytes: expected at most {}", text.size(), kMaxText);
    std::size_t common = 0;
    while (common < text.size() && common < previous.size() && text[common] == previous[common])
      ++common;
    close_to(common);
    for (std::size_t i = common; i < text.size(); ++i) {
      path.push_back(static_cast<std::uint32_t>(nodes_.size()));
      nodes_.push_back({.first = texts_,
                        .depth = static_cast<std::uint16_t>(i + 1),
                        .byte = static_cast<std::uint8_t>(text[i])});
    }
    ++nodes_[path.back()].own;
    ++texts_;
    previous = text;
  }
  close_to(0);
  nodes_[0].skip = static_cast<std::uint32_t>(nodes_.size());
}

}  // namespace quatrain::grammar

// SPDX-License-Identifier: Apache-2.0
#include "grammar/token_matcher.h"

#include <algorithm>

namespace quatrain::grammar {
namespace {

constexpr std::size_t kManyCells = 4096;

void allow(std::vector<std::uint32_t>& mask, std::int32_t id) {
  mask[static_cast<std::size_t>(id) / 32] |= std::uint32_t{1} << (id % 32);
}

}  // namespace

TokenMatcher::TokenMatcher(std::shared_ptr<const Grammar> grammar,
                           std::shared_ptr<const Vocabulary> vocabulary)
    : vocabulary_(std::move(vocabulary)), automaton_(std::move(grammar)) {
  automaton_.start(threads_);
}

bool TokenMatcher::may_end() const {
  return std::ranges::any_of(threads_, [this](auto thread) { return automaton_.may_end(thread); });
}

std::span<const std::uint32_t> TokenMatcher::allowed() {
  std::vector<std::uint64_t> state;
  for (const Automaton::Thread thread : threads_) automaton_.describe(thread, state);
  state.push_back(is_ended_ ? 1 : 0);
  const auto found = std::ranges::find(known_, state, &Known::state);
  if (found != known_.end()) return found->mask;
  Known& known = known_[oldest_];
  oldest_ = (oldest_ + 1) % known_.size();
  known.state = std::move(state);
  known.mask.assign(vocabulary_->words(), 0);
  compute(known.mask);
  return known.mask;
}

// Inside a string nearly every token may come. The plain ones are known beforehand; only the others
// are tried.
void TokenMatcher::compute(std::vector<std::uint32_t>& mask) {
  if (is_ended_) return;
  Threads in_strings, elsewhere;
  std::uint32_t most_room = 0;
  for (const Automaton::Thread thread : threads_) {
    LeafState at;
    const StringLeaf* const string = automaton_.string_of(thread, at);
    const std::uint32_t room = string == nullptr ? 0 : string->plain_room(at);
    (room > 0 ? in_strings : elsewhere).push_back(thread);
    most_room = std::max(most_room, room);
  }
  if (most_room > 0) {
    std::ranges::copy(vocabulary_->plain(most_room), mask.begin());
    walk(vocabulary_->others(), in_strings, mask);
  }
  if (!elsewhere.empty()) walk(vocabulary_->all(), elsewhere, mask);
  if (may_end() && vocabulary_->end()) allow(mask, *vocabulary_->end());
}

// Walks tree and automaton together, and leaves the tree's branches where no thread survives.
void TokenMatcher::walk(const Vocabulary::Tree& tree, const Threads& threads,
                        std::vector<std::uint32_t>& mask) {
  const auto& nodes = tree.trie.nodes();
  walked_.assign(threads.begin(), threads.end());
  begins_.assign(1, 0);
  cells_.assign(1, automaton_.cells());
  for (std::uint32_t i = 1; i < nodes.size();) {
    const ByteTrie::Node& node = nodes[i];
    // Back to the state of the parent, at depth - 1.
    const std::size_t depth = node.depth;
    if (begins_.size() > depth) {
      walked_.resize(begins_[depth]);
      begins_.resize(depth);
      automaton_.forget(cells_[depth]);
      cells_.resize(depth);
    }
    begins_.push_back(walked_.size());
    cells_.push_back(automaton_.cells());
    // A step appends to the array that it reads from: no pointer into it may be kept.
    walked_.reserve(walked_.size() + Automaton::kMaxThreads);
    const std::size_t begin = begins_[depth - 1], count = begins_[depth] - begin;
    automaton_.step(std::span(walked_).subspan(begin, count), node.byte, walked_);
    if (walked_.size() == begins_[depth]) {
      i = node.skip;
      continue;
    }
    for (std::uint32_t k = 0; k < node.own; ++k) allow(mask, tree.ids[node.first + k]);
    ++i;
  }
  automaton_.forget(cells_[0]);
}

void TokenMatcher::advance(std::int32_t token) {
  if (token == vocabulary_->end()) {
    is_ended_ = true;
    return;
  }
  const std::string_view bytes = vocabulary_->token(token);
  if (bytes.empty()) threads_.clear();
  for (const char byte : bytes) {
    Threads next;
    automaton_.step(threads_, static_cast<std::uint8_t>(byte), next);
    threads_ = std::move(next);
  }
  if (automaton_.cells() > kManyCells) automaton_.compact(threads_);
}

}  // namespace quatrain::grammar

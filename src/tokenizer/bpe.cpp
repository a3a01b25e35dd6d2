// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/bpe.h"

#include <array>
#include <bit>
#include <limits>
#include <queue>

#include "core/error.h"

namespace quatrain {

void MergeTable::reserve(std::size_t count) {
  const std::size_t size = std::bit_ceil(2 * count + 2);  // at most half full
  slots_.assign(size, Slot{});
  shift_ = 64 - std::countr_zero(size);
}

bool MergeTable::insert(std::int32_t left, std::int32_t right, Merge merge) {
  const std::uint64_t key = key_of(left, right);
  std::size_t i = slot_of(key);
  while (slots_[i].key != kEmpty) {
    if (slots_[i].key == key) return false;
    i = (i + 1) & (slots_.size() - 1);
  }
  slots_[i] = {key, merge};
  return true;
}

namespace {

// Up to this length scanning all ranks for the lowest beats keeping a heap.
constexpr std::size_t kScanLimit = 48;
constexpr Merge kNoMerge{std::numeric_limits<std::int32_t>::max(), -1};

Merge find_or_none(const MergeTable& merges, std::int32_t left, std::int32_t right) {
  const Merge* merge = merges.find(left, right);
  return merge != nullptr ? *merge : kNoMerge;
}

std::size_t merge_by_scan(const MergeTable& merges, std::span<std::int32_t> ids) {
  std::array<Merge, kScanLimit> pairs;  // pairs[i]: ids[i] with ids[i + 1]
  std::size_t n = ids.size();
  for (std::size_t i = 0; i + 1 < n; ++i) pairs[i] = find_or_none(merges, ids[i], ids[i + 1]);
  while (n > 1) {
    std::size_t best = 0;
    for (std::size_t i = 1; i + 1 < n; ++i)
      if (pairs[i].rank < pairs[best].rank) best = i;
    if (pairs[best].id < 0) break;
    ids[best] = pairs[best].id;
    for (std::size_t i = best + 1; i + 1 < n; ++i) {
      ids[i] = ids[i + 1];
      pairs[i - 1] = pairs[i];
    }
    --n;
    if (best > 0) pairs[best - 1] = find_or_none(merges, ids[best - 1], ids[best]);
    if (best + 1 < n) pairs[best] = find_or_none(merges, ids[best], ids[best + 1]);
  }
  return n;
}

// Symbols form a linked list by index; the heap holds candidate pairs, stale ones included.
class HeapMerger {
 public:
  HeapMerger(const MergeTable& merges, std::span<std::int32_t> ids)
      : merges_(merges), ids_(ids), links_(ids.size()) {
    for (std::size_t i = 0; i < ids.size(); ++i)
      links_[i] = {static_cast<std::int32_t>(i) - 1, static_cast<std::int32_t>(i) + 1};
    links_.back().next = kNone;
  }

  std::size_t run() {
    for (std::size_t i = 0; i + 1 < ids_.size(); ++i) push(static_cast<std::int32_t>(i));
    while (!heap_.empty()) {
      const Candidate c = heap_.top();
      heap_.pop();
      if (is_current(c)) apply(c);
    }
    std::size_t n = 0;
    for (std::int32_t i = 0; i != kNone; i = links_[i].next) ids_[n++] = ids_[i];
    return n;
  }

 private:
  static constexpr std::int32_t kNone = -1;
  static constexpr std::int32_t kMergedAway = -1;
  struct Link {
    std::int32_t previous, next;
  };
  struct Candidate {
    Merge merge;
    std::int32_t position;  // of the left symbol
    std::int32_t left, right;
    bool operator<(const Candidate& other) const {  // the heap's top is the largest
      if (merge.rank != other.merge.rank) return merge.rank > other.merge.rank;
      return position > other.position;
    }
  };

  void push(std::int32_t position) {
    const std::int32_t next = links_[position].next;
    if (next == kNone) return;
    if (const Merge* merge = merges_.find(ids_[position], ids_[next]))
      heap_.push({*merge, position, ids_[position], ids_[next]});
  }

  [[nodiscard]] bool is_current(const Candidate& c) const {
    const std::int32_t next = links_[c.position].next;
    return ids_[c.position] == c.left && next != kNone && ids_[next] == c.right;
  }

  void apply(const Candidate& c) {
    Link& link = links_[c.position];
    const std::int32_t removed = link.next;
    ids_[c.position] = c.merge.id;
    ids_[removed] = kMergedAway;
    link.next = links_[removed].next;
    if (link.next != kNone) links_[link.next].previous = c.position;
    push(c.position);
    if (link.previous != kNone) push(link.previous);
  }

  const MergeTable& merges_;
  std::span<std::int32_t> ids_;
  std::vector<Link> links_;
  std::priority_queue<Candidate> heap_;
};

}  // namespace

std::size_t merge_pairs(const MergeTable& merges, std::span<std::int32_t> ids) {
  if (ids.size() < 2) return ids.size();
  if (ids.size() <= kScanLimit) return merge_by_scan(merges, ids);
  if (ids.size() > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()))
    fail("text piece: expected fewer than 2^31 bytes without a break, found {}", ids.size());
  return HeapMerger(merges, ids).run();
}

}  // namespace quatrain

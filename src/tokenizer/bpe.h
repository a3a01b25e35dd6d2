// SPDX-License-Identifier: Apache-2.0
// Byte-pair encoding of one piece: the merge table and the merge loop.
//
// Does not split text and knows no control tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace quatrain {

/// What becomes of two neighbouring tokens. Lower ranks merge first.
struct Merge {
  std::int32_t rank;
  std::int32_t id;  // of the merged token
};

/// Pairs of token ids → Merge. Open addressing; constant once filled.
class MergeTable {
 public:
  /// Makes room for `count` merges; drops what is there.
  void reserve(std::size_t count);

  /// Adds a merge (room must have been reserved); false when the pair is there already.
  bool insert(std::int32_t left, std::int32_t right, Merge merge);

  /// The merge of a pair, or nullptr.
  [[nodiscard]] const Merge* find(std::int32_t left, std::int32_t right) const {
    if (slots_.empty()) return nullptr;
    const std::uint64_t key = key_of(left, right);
    for (std::size_t i = slot_of(key);; i = (i + 1) & (slots_.size() - 1)) {
      if (slots_[i].key == key) return &slots_[i].merge;
      if (slots_[i].key == kEmpty) return nullptr;
    }
  }

 private:
  static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};  // ids are not negative
  struct Slot {
    std::uint64_t key = kEmpty;
    Merge merge{};
  };
  static std::uint64_t key_of(std::int32_t left, std::int32_t right) {
    return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
           static_cast<std::uint32_t>(right);
  }
  [[nodiscard]] std::size_t slot_of(std::uint64_t key) const {
    return static_cast<std::size_t>((key * 0x9E3779B97F4A7C15u) >> shift_);
  }

  std::vector<Slot> slots_;
  int shift_ = 64;
};

/// Merges `ids` in place until no pair of neighbours has a merge: always the pair of lowest rank,
/// leftmost among equals. Returns the new count; ids[0, count) is the result. O(n log n).
std::size_t merge_pairs(const MergeTable& merges, std::span<std::int32_t> ids);

}  // namespace quatrain

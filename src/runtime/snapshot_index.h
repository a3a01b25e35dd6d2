// SPDX-License-Identifier: Apache-2.0
// SnapshotIndex: which prefixes have a snapshot of a slot's state, least recently used first out.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <unordered_map>
#include <vector>

#include "runtime/prefix_key.h"

namespace quatrain {

class SnapshotIndex {
 public:
  explicit SnapshotIndex(std::int64_t capacity);

  std::int64_t capacity() const { return capacity_; }
  std::int64_t size() const { return static_cast<std::int64_t>(by_key_.size()); }

  bool contains(const PrefixKey& key) const { return by_key_.contains(key); }
  /// The snapshot of a prefix, which counts as a use of it.
  std::optional<std::int64_t> use(const PrefixKey& key);
  /// Where to keep a snapshot of the prefix `key`, which has none; drops the least recently used
  /// one if all places are taken. Nothing with a capacity of 0.
  std::optional<std::int64_t> add(const PrefixKey& key);
  void remove(const PrefixKey& key);

 private:
  struct Entry {
    PrefixKey key;
    std::int64_t place;
  };

  std::int64_t capacity_;
  std::vector<std::int64_t> free_;
  std::list<Entry> entries_;  // least recently used first
  std::unordered_map<PrefixKey, std::list<Entry>::iterator> by_key_;
};

}  // namespace quatrain

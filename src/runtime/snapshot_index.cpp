// SPDX-License-Identifier: Apache-2.0
#include "runtime/snapshot_index.h"

#include "core/error.h"

namespace quatrain {

SnapshotIndex::SnapshotIndex(std::int64_t capacity) : capacity_(capacity) {
  for (std::int64_t place = capacity; place-- > 0;) free_.push_back(place);
}

std::optional<std::int64_t> SnapshotIndex::use(const PrefixKey& key) {
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return {};
  entries_.splice(entries_.end(), entries_, found->second);
  return found->second->place;
}

std::optional<std::int64_t> SnapshotIndex::add(const PrefixKey& key) {
  QT_CHECK(!contains(key), "a prefix has a snapshot already");
  if (capacity_ == 0) return {};
  if (free_.empty()) remove(entries_.front().key);
  const std::int64_t place = free_.back();
  free_.pop_back();
  by_key_[key] = entries_.insert(entries_.end(), {.key = key, .place = place});
  return place;
}

void SnapshotIndex::remove(const PrefixKey& key) {
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return;
  free_.push_back(found->second->place);
  entries_.erase(found->second);
  by_key_.erase(found);
}

}  // namespace quatrain

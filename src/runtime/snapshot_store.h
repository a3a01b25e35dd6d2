// SPDX-License-Identifier: Apache-2.0
// SnapshotStore: device memory for copies of a slot's state at a border of blocks.
#pragma once

#include <vector>

#include "model/kv_layout.h"

namespace quatrain {

class SnapshotStore {
 public:
  /// Allocates `places` snapshots.
  SnapshotStore(Ops& ops, const KvCache& cache, std::int64_t slots, std::int64_t places);

  std::int64_t bytes() const { return memory_.bytes(); }
  void save(std::int64_t slot, std::int64_t place);
  void restore(std::int64_t place, std::int64_t slot);

 private:
  Tensor part(std::int64_t place, std::int64_t offset, const Tensor& like) const;

  Ops& ops_;
  std::vector<std::vector<Tensor>> slots_;  // the views that make up each slot's state
  std::int64_t snapshot_bytes_ = 0;
  Buffer memory_;
};

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
#include "runtime/snapshot_store.h"

namespace quatrain {
namespace {

constexpr std::int64_t kAlignment = 256;  // of each part, so that copies are wide

std::int64_t aligned(std::int64_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

SnapshotStore::SnapshotStore(Ops& ops, const KvCache& cache, std::int64_t slots,
                             std::int64_t places)
    : ops_(ops) {
  for (std::int64_t slot = 0; slot < slots; ++slot) slots_.push_back(cache.border_state(slot));
  for (const Tensor& tensor : slots_.front()) snapshot_bytes_ += aligned(tensor.bytes());
  if (places > 0) memory_ = ops.allocate(places * snapshot_bytes_);
}

Tensor SnapshotStore::part(std::int64_t place, std::int64_t offset, const Tensor& like) const {
  char* base = static_cast<char*>(memory_.data()) + place * snapshot_bytes_ + offset;
  return Tensor(base, like.dtype(), {like.elements()});
}

void SnapshotStore::save(std::int64_t slot, std::int64_t place) {
  std::int64_t offset = 0;
  for (const Tensor& tensor : slots_[static_cast<std::size_t>(slot)]) {
    ops_.copy(part(place, offset, tensor), tensor);
    offset += aligned(tensor.bytes());
  }
}

void SnapshotStore::restore(std::int64_t place, std::int64_t slot) {
  std::int64_t offset = 0;
  for (const Tensor& tensor : slots_[static_cast<std::size_t>(slot)]) {
    ops_.copy(tensor, part(place, offset, tensor));
    offset += aligned(tensor.bytes());
  }
}

}  // namespace quatrain

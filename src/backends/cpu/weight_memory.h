// SPDX-License-Identifier: Apache-2.0
// WeightMemory: room for packed weights in large regions, on huge pages where the system has them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace quatrain {

/// `bytes` of zeroed memory that starts on a cache line and is backed by 2 MB pages where the
/// system allows it; pages are taken when first written. Throws when there is no room.
std::shared_ptr<std::byte> map_memory(std::int64_t bytes);

class WeightMemory {
 public:
  /// A piece of a region, aligned to 64 bytes. The region lives as long as any piece of it.
  std::shared_ptr<std::byte> take(std::int64_t bytes);

 private:
  std::shared_ptr<std::byte> region_;
  std::int64_t used_ = 0;
  std::int64_t capacity_ = 0;
};

}  // namespace quatrain

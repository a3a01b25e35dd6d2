// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/weight_memory.h"

#include <sys/mman.h>

#include <algorithm>

#include "core/error.h"

namespace quatrain {
namespace {

constexpr std::int64_t kHugePage = 2 << 20;
// Address space, not memory: pages are taken when first written.
constexpr std::int64_t kRegionBytes = 256 << 20;
constexpr std::int64_t kAlignment = 64;

std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace

std::shared_ptr<std::byte> map_memory(std::int64_t bytes) {
  // One page more, so that the start can move to a huge page's boundary.
  const auto size = static_cast<std::size_t>(round_up(bytes, kHugePage) + kHugePage);
  void* map = ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) fail("cannot map {} bytes of memory for weights", size);
  ::madvise(map, size, MADV_HUGEPAGE);  // a hint; without it pages are small
  const auto address = reinterpret_cast<std::uintptr_t>(map);
  const auto skip = static_cast<std::size_t>(-address % kHugePage);
  return {static_cast<std::byte*>(map) + skip, [map, size](std::byte*) { ::munmap(map, size); }};
}

std::shared_ptr<std::byte> WeightMemory::take(std::int64_t bytes) {
  bytes = round_up(std::max<std::int64_t>(bytes, 1), kAlignment);
  if (used_ + bytes > capacity_) {
    capacity_ = std::max(kRegionBytes, round_up(bytes, kHugePage));
    region_ = map_memory(capacity_);
    used_ = 0;
  }
  std::byte* piece = region_.get() + used_;
  used_ += bytes;
  return {region_, piece};
}

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
#include "runtime/prefix_key.h"

#include <xxhash.h>

#include <cstring>
#include <vector>

namespace quatrain {

PrefixKey extend_prefix(const PrefixKey& parent, std::span<const std::int32_t> block) {
  std::vector<unsigned char> bytes(sizeof(PrefixKey) + block.size_bytes());
  std::memcpy(bytes.data(), &parent, sizeof(PrefixKey));
  if (!block.empty())
    std::memcpy(bytes.data() + sizeof(PrefixKey), block.data(), block.size_bytes());
  // The salt is in the chain and in the seed, so nobody outside can search for collisions.
  const XXH128_hash_t hash = XXH3_128bits_withSeed(bytes.data(), bytes.size(), parent.low);
  return {.low = hash.low64, .high = hash.high64};
}

}  // namespace quatrain

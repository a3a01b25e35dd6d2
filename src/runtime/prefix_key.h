// SPDX-License-Identifier: Apache-2.0
// PrefixKey: names a prefix whose length is a multiple of a block, by a chain of hashes.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

namespace quatrain {

struct PrefixKey {
  std::uint64_t low = 0;
  std::uint64_t high = 0;

  bool operator==(const PrefixKey&) const = default;
};

/// The key of a prefix that extends the one named by `parent` by one block of tokens. The parent of
/// a first block is the salt.
PrefixKey extend_prefix(const PrefixKey& parent, std::span<const std::int32_t> block);

}  // namespace quatrain

template <>
struct std::hash<quatrain::PrefixKey> {
  std::size_t operator()(const quatrain::PrefixKey& key) const noexcept { return key.low; }
};

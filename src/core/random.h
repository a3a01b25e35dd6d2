// SPDX-License-Identifier: Apache-2.0
// Random numbers for made-up data: functions of a key and a counter, the same on every machine.
//
// Not for sampling tokens, which has a generator of its own (ops/sampling.h).
#pragma once

#include <cstdint>
#include <string_view>

namespace quatrain {

/// The finaliser of SplitMix64: a bijection without pattern.
inline std::uint64_t mix_bits(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

inline std::uint64_t random_word(std::uint64_t key, std::int64_t counter) {
  return mix_bits(key ^ mix_bits(static_cast<std::uint64_t>(counter)));
}

/// A key for a name (FNV-1a).
inline std::uint64_t random_key(std::string_view name) {
  std::uint64_t key = 0xCBF29CE484222325u;
  for (const char c : name) key = (key ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return key;
}

/// Mean 0, deviation 1, within ±3.5, from one random word: four uniform numbers of 16 bits added.
/// Integer arithmetic and one product, so the bits do not depend on a library.
inline float random_normal(std::uint64_t word) {
  int sum = 0;
  for (int shift = 0; shift < 64; shift += 16) sum += static_cast<int>((word >> shift) & 0xFFFF);
  return static_cast<float>(sum - 2 * 65535) * (1.7320508f / 65536.0f);
}

}  // namespace quatrain

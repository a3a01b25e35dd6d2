// SPDX-License-Identifier: Apache-2.0
// E4M3 to BF16 by table, for byte permutations: the two bytes of each magnitude, times 2^-8 as the
// other decoders give it. E4M3's range fits BF16's, so subnormals become normal numbers.
#pragma once

#include <cstdint>

namespace quatrain {
namespace {

struct Fp8Tables {
  alignas(64) std::uint8_t low[128] = {};
  alignas(64) std::uint8_t high[128] = {};

  constexpr Fp8Tables() {
    for (unsigned code = 1; code < 128; ++code) {
      // The value is significand · 2^(exponent − 10), with a significand in [8, 16).
      unsigned exponent = code < 8 ? 1 : code >> 3;
      unsigned significand = code < 8 ? code : 8 + code % 8;
      for (; significand < 8; significand *= 2) --exponent;
      const unsigned bits = (exponent + 127 - 7 - 8) << 7 | (significand - 8) << 4;
      low[code] = static_cast<std::uint8_t>(bits & 255);
      high[code] = static_cast<std::uint8_t>(bits >> 8);
    }
  }
};

constexpr Fp8Tables kFp8Tables;

/// Orders two columns of FP8 codes of a panel (rows 0–7, 16–23, 8–15, 24–31 each) such that of each
/// 16 bytes the first half has both columns of four of rows 0–15, and the second half of four of
/// rows 16–31: their low and high BF16 bytes, interleaved, are dwords of two columns of a row.
struct Fp8Pairs {
  alignas(64) std::uint8_t order[64] = {};

  constexpr Fp8Pairs() {
    for (unsigned i = 0; i < 64; ++i) {
      const unsigned lane = i / 16, half = i / 8 % 2, row = 4 * lane + i % 8 / 2;
      const unsigned place = row / 8 * 16 + half * 8 + row % 8;
      order[i] = static_cast<std::uint8_t>(i % 2 * 32 + place);
    }
  }
};

constexpr Fp8Pairs kFp8Pairs;

}  // namespace
}  // namespace quatrain

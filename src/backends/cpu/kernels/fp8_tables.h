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

}  // namespace
}  // namespace quatrain

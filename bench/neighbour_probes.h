// SPDX-License-Identifier: Apache-2.0
// Two warpgroups of every block multiply without a pause, while a third one repeats an instruction.
#pragma once

#include <cstdint>

namespace quatrain::bench {

inline constexpr int kProducers = 2;  // warpgroups that multiply
inline constexpr int kColumns = 96;   // of a product of FP8, whose operand A is in registers
inline constexpr int kProducts = 16;  // of a chain
inline constexpr int kChains = 2000;

enum class Neighbour : std::uint8_t { kNone, kFfma, kFadd, kImad, kHfma2, kLop3, kPrmt, kShf };
inline constexpr int kNeighbours = 8;

/// Of the first block.
struct Times {
  long long products;    // cycles of all chains
  long long neighbours;  // instructions of a warp, of which each scheduler has one,
  long long cycles;      // and while it was there
};

/// Beside `what`, the second time that the program runs.
Times measure(Neighbour what);

}  // namespace quatrain::bench

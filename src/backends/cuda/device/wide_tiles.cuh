// SPDX-License-Identifier: Apache-2.0
// What the parts of the experts' prefill kernel for FP8 inputs and wide tiles share: its shape and
// its shared memory.
#pragma once

#include <cstdint>

#include "backends/cuda/device/cluster.cuh"
#include "backends/cuda/device/prefill_tiles.cuh"
#include "backends/cuda/device/wgmma_fp8.cuh"
#include "core/fp8_activations.h"

namespace quatrain::cuda::prefill::wide {

inline constexpr int kHalves = 2;  // of a tile's tokens, one product each
inline constexpr int kGatherWarps = 3;
inline constexpr int kGatherSteps = (kWidestWidePass + kGatherStep - 1) / kGatherStep;
inline constexpr int kSupplyTokens = (kWidestWidePass + kWarp - 1) / kWarp;  // of a lane

inline constexpr int kWeightStages = 3;
inline constexpr int kTokenStages = 4;
inline constexpr int kTableStages = 2;

// Tokens of a tile. Columns past the count repeat the last one; nobody looks at their sums.
struct TokenTable {
  unsigned rows[kWidestWidePass];  // of the inputs
  int slots[kWidestWidePass];      // −1 past the count
};

/// Of a tile's hidden values, by token: the largest magnitudes of this block's by their bits, zero
/// before a tile's warps write them; those of the other block, of two tiles in turns; and what
/// takes values to the range of their codes.
struct Peaks {
  unsigned mine[kWidestWidePass];
  unsigned theirs[2][kWidestWidePass];
  alignas(8) float inverse[kWidestWidePass];
};

// Codes of hidden values on their way to memory: 64 columns of a token, and a gap that keeps the
// tokens of a warp in different banks.
inline constexpr int kCodeRow = 80;

struct Shared {
  static constexpr int kTokenBytes = kWidestWidePass * kFp8Columns;
  alignas(1024) std::uint8_t tokens[kTokenStages][kTokenBytes];
  std::uint8_t weights[kWeightStages][kTileBytes];
  float scales[kTokenStages][kWidestWidePass];
  TokenTable table[kTableStages];
  Peaks peaks;
  alignas(16) std::uint8_t codes[kWidestWidePass][kCodeRow];
  uint2 fp8_tables[16];
  Barrier weights_full[kWeightStages], weights_empty[kWeightStages];
  Barrier tokens_full[kTokenStages], tokens_empty[kTokenStages];
  Barrier table_full[kTableStages], table_empty[kTableStages];
  Barrier peaks_full;
};
static_assert(kWidestWidePass % 16 == 0 && Shared::kTokenBytes % 1024 == 0);
static_assert(sizeof(Shared) + 1024 <= 232448);

// The tokens of each half: a multiple of 8.
__device__ inline int half_of(const PassTile& tile) {
  return max(padded_to(tile.width, 16) / 2, 16);
}

}  // namespace quatrain::cuda::prefill::wide

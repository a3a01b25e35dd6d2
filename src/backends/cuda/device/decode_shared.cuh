// SPDX-License-Identifier: Apache-2.0
// What the warps of a block of the decode kernel share, and where it is.
#pragma once

#include <cstdint>

#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/expert_tiles.cuh"
#include "backends/cuda/device/expert_walk.cuh"
#include "backends/cuda/launch/experts.h"
#include "backends/cuda/launch/experts_decode_layout.h"

namespace quatrain::cuda {

struct BlockState {
  Pass passes[2];
  int tiles;
  std::uint32_t inputs_ready;  // 1: of the first pass; 2 + t: hidden values of tiles up to t
  std::uint32_t groups_ended[kAdders];  // of the first pass when there are two, by adder
  std::uint32_t keys[2][kStreamWarps];  // of the units in the rings, as tagged_key()
};
static_assert(sizeof(BlockState) <= kDecodeStateBytes);

/// Dynamic shared memory of a block, for tiles of kTokens. Offsets are read from the kernel's
/// arguments wherever they are needed, since the stream has no registers for them.
template <int kTokens>
class DecodeShared {
 public:
  static constexpr int kSumRounds = decode_sum_rounds(kTokens);

  __device__ DecodeShared(const DecodeLayout& at, std::uint8_t* memory)
      : at_(at), memory_(memory) {}

  /// Two units of a stream warp.
  __device__ std::uint8_t* ring(int warp, std::uint32_t buffer) const {
    return memory_ + (warp * 2 + buffer) * kChunkBytes;
  }
  /// Those of a unit: by slab and 8 tokens, 32 lanes, or less (store_unit()).
  __device__ float4* sums(std::uint32_t round, int warp) const {
    return reinterpret_cast<float4*>(memory_ + at_.sums) +
           (round % kSumRounds * kStreamWarps + warp) * (kGroupSlabs * (kTokens / 8) * kWarp);
  }
  /// [kSumRounds, stream warps] The sums of a unit are handed over.
  __device__ Barrier* handed_over() const {
    return reinterpret_cast<Barrier*>(memory_ + at_.barriers);
  }
  /// [kSumRounds] All sums of a round are added.
  __device__ Barrier* added() const { return handed_over() + kSumRounds * kStreamWarps; }
  /// [2, stream warps] A unit is in its ring.
  __device__ Barrier* fetched() const { return added() + kSumRounds; }
  /// [2, stream warps] It has been multiplied.
  __device__ Barrier* freed() const { return fetched() + 2 * kStreamWarps; }
  __device__ TileTables tables() const {
    return {reinterpret_cast<TokenTile*>(memory_ + at_.tiles),
            reinterpret_cast<std::uint16_t*>(memory_ + at_.sorted),
            reinterpret_cast<std::int16_t*>(memory_ + at_.ids),
            reinterpret_cast<std::uint16_t*>(memory_ + at_.ranks),
            reinterpret_cast<int*>(memory_ + at_.offsets)};
  }
  __device__ BlockState& state() const {
    return *reinterpret_cast<BlockState*>(memory_ + at_.state);
  }
  /// Of this block alone, when every block converts them for itself.
  __device__ std::uint16_t* own_inputs() const {
    return reinterpret_cast<std::uint16_t*>(memory_ + at_.own_inputs);
  }

 private:
  const DecodeLayout& at_;
  std::uint8_t* const memory_;
};

}  // namespace quatrain::cuda

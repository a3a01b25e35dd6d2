// SPDX-License-Identifier: Apache-2.0
// Barriers and flags between the blocks of one grid that are all resident.
#pragma once

#include <cstdint>

#include "backends/cuda/device/acquire.cuh"
#include "backends/cuda/launch/experts.h"

namespace quatrain::cuda {

/// load_acquire between threads of one block, in shared memory. A build for racecheck, which knows
/// no acquiring loads, uses atomic operations instead.
__device__ inline std::uint32_t load_acquire_shared(std::uint32_t* p) {
#ifdef QUATRAIN_RACECHECK
  return atomicAdd(p, 0u);
#else
  std::uint32_t value;
  asm volatile("ld.acquire.cta.shared.u32 %0, [%1];"
               : "=r"(value)
               : "r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(p)))
               : "memory");
  return value;
#endif
}
__device__ inline void store_release_shared(std::uint32_t* p, std::uint32_t value) {
#ifdef QUATRAIN_RACECHECK
  atomicExch(p, value);
#else
  asm volatile("st.release.cta.shared.u32 [%0], %1;" ::"r"(
                   static_cast<std::uint32_t>(__cvta_generic_to_shared(p))),
               "r"(value)
               : "memory");
#endif
}

/// Counts arrivals of all its blocks, round after round and around the clock, so that a grid leaves
/// it as the next one needs it. Zero at first.
struct alignas(128) GridBarrier {
  std::uint32_t arrivals;
};
static_assert(sizeof(GridBarrier) == 4 * kGridBarrierWords);
inline constexpr std::uint32_t kGridRounds = 1024;  // after which the count is zero again

/// Read before this block's first arrival, when no round can end.
__device__ inline std::uint32_t rounds_so_far(const GridBarrier* barrier) {
  return load_relaxed(&barrier->arrivals) / gridDim.x;
}
/// One thread per block, after the block's writes are ordered before it by a block barrier.
__device__ inline void arrive_at(GridBarrier* barrier) {
  asm volatile("red.release.gpu.global.inc.u32 [%0], %1;" ::"l"(&barrier->arrivals),
               "r"(gridDim.x * kGridRounds - 1)
               : "memory");
}
/// Returns when `count` rounds after `before` are complete.
__device__ inline void wait_for_round(const GridBarrier* barrier, std::uint32_t before,
                                      std::uint32_t count) {
  while ((load_acquire(&barrier->arrivals) / gridDim.x + kGridRounds - before) % kGridRounds <
         count) {
  }
}

}  // namespace quatrain::cuda

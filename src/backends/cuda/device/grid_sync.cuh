// SPDX-License-Identifier: Apache-2.0
// Barriers and flags between the blocks of one grid that are all resident.
#pragma once

#include <cstdint>

#include "backends/cuda/launch/experts.h"

namespace quatrain::cuda {

__device__ inline std::uint32_t load_acquire(const std::uint32_t* p) {
  std::uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}
__device__ inline void store_release(std::uint32_t* p, std::uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}

/// Counts its own rounds, so that a grid leaves it as the next one needs it. Zero at first. Those
/// who wait and those who arrive meet different cache lines.
struct alignas(128) GridBarrier {
  std::uint32_t arrived;
  alignas(128) std::uint32_t rounds;
};
static_assert(sizeof(GridBarrier) == 4 * kGridBarrierWords);

/// Read before this block's first arrival.
__device__ inline std::uint32_t rounds_so_far(const GridBarrier* barrier) {
  return load_acquire(&barrier->rounds);
}
/// One thread per block, after the block's writes are ordered before it by a block barrier.
__device__ inline void arrive_at(GridBarrier* barrier, int blocks) {
  __threadfence();
  if (atomicAdd(&barrier->arrived, 1u) == static_cast<std::uint32_t>(blocks) - 1) {
    barrier->arrived = 0;
    store_release(&barrier->rounds, barrier->rounds + 1);
  }
}
/// Returns when `count` rounds after `before` are complete.
__device__ inline void wait_for_round(const GridBarrier* barrier, std::uint32_t before,
                                      std::uint32_t count) {
  while (load_acquire(&barrier->rounds) - before < count) {
  }
}

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// Loads that blocks learn of each other's writes by.
#pragma once

#include <cstdint>

namespace quatrain::cuda {

__device__ inline std::uint32_t load_acquire(const std::uint32_t* p) {
  std::uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}
/// For waiting, before a load that acquires.
__device__ inline std::uint32_t load_relaxed(const std::uint32_t* p) {
  std::uint32_t value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}

}  // namespace quatrain::cuda

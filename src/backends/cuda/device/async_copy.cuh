// SPDX-License-Identifier: Apache-2.0
// Copies of 16 bytes from global to shared memory that take no registers.
#pragma once

#include <cstdint>

namespace quatrain::cuda {

__device__ inline void copy16_async(void* shared, const void* global) {
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}

/// Waits for this thread's copies; a barrier makes the others' visible.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

}  // namespace quatrain::cuda

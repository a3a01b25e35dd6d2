// SPDX-License-Identifier: Apache-2.0
// Thread-block clusters: ranks, the barrier, and reads of a neighbour's shared memory.
#pragma once

#include <cstdint>

namespace quatrain::cuda {

__device__ inline unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ inline unsigned cluster_size() {
  unsigned size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

/// Of this block's cluster along x, and their number.
__device__ inline unsigned cluster_index() {
  unsigned index;
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(index));
  return index;
}
__device__ inline unsigned cluster_count() {
  unsigned count;
  asm("mov.u32 %0, %%nclusterid.x;" : "=r"(count));
  return count;
}

/// All threads of all blocks; what they wrote to shared memory before is visible to all after.
__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/// The float at `local` in the shared memory of block `rank` of the cluster.
__device__ inline float load_from_rank(const float* local, unsigned rank) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(local));
  float value;
  asm volatile(
      "{ .reg .u32 remote; mapa.shared::cluster.u32 remote, %1, %2; "
      "ld.shared::cluster.f32 %0, [remote]; }"
      : "=f"(value)
      : "r"(address), "r"(rank)
      : "memory");
  return value;
}

}  // namespace quatrain::cuda

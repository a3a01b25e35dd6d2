// SPDX-License-Identifier: Apache-2.0
// Thread-block clusters: ranks, the barrier, and accesses to a neighbour's shared memory.
#pragma once

#include <cstdint>

#include "backends/cuda/device/async_copy.cuh"

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

/// The barrier in two halves: what a thread wrote to shared memory before its arrival is visible to
/// all whose wait it lets end. All threads of all blocks take part in both.
__device__ inline void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
/// Of barriers alone, which barrier_init_fence() has made known.
__device__ inline void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ inline void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/// All threads of all blocks; what they wrote to shared memory before is visible to all after.
__device__ inline void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

/// The address in block `rank` of what has shared address `local` in this one.
__device__ inline std::uint32_t address_in_rank(std::uint32_t local, unsigned rank) {
  std::uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(local), "r"(rank));
  return address;
}
/// Sends 16 bytes to another block, which learns of them from its barrier.
__device__ inline void send16(std::uint32_t to, const float4& v, std::uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(to),
      "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(barrier)
      : "memory");
}
/// Arrives at another block's barrier, after what this thread did before.
__device__ inline void arrive_in_rank(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier)
               : "memory");
}
/// Arrives at another block's barrier to say that this thread has done reading; orders no writes,
/// for which arrive_in_rank waits long.
__device__ inline void signal_rank(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// Waits for a phase of a barrier that other blocks complete.
__device__ inline void wait_for_ranks(std::uint64_t* barrier, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(barrier))),
      "r"(parity)
      : "memory");
}

/// Writes `value` to where `local` lies in the shared memory of block `rank`, and reports its four
/// bytes to that block's `barrier`. The block must have initialised it, and must not have ended.
__device__ inline void send_to_rank(float* local, float value, Barrier* barrier, unsigned rank) {
  asm volatile(
      "{ .reg .u32 to, done; mapa.shared::cluster.u32 to, %0, %3; "
      "mapa.shared::cluster.u32 done, %2, %3; "
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [to], %1, [done]; }" ::"r"(
          shared_address(local)),
      "f"(value), "r"(shared_address(barrier)), "r"(rank)
      : "memory");
}

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// Hopper's asynchronous copies: barriers in shared memory that count bytes, bulk copies that report
// to them, and 16-byte copies in groups. One instruction, one function.
#pragma once

#include <cstdint>

namespace quatrain::cuda {

__device__ inline std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

using Barrier = std::uint64_t;

__device__ inline void barrier_init(Barrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}
/// Makes initialised barriers known to the copy engine.
__device__ inline void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void barrier_arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
/// Arrives and announces `bytes` that copies will bring.
__device__ inline void barrier_expect(Barrier* barrier, std::uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
__device__ inline void barrier_wait(Barrier* barrier, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

/// As barrier_wait, suspended for up to a millisecond at a time, so that many warps may wait
/// without taking issue slots from those that work.
__device__ inline void barrier_wait_idle(Barrier* barrier, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1, %2;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity), "r"(1000000)
      : "memory");
}

/// Whether the phase of the given parity is complete; does not wait.
__device__ inline bool barrier_test(Barrier* barrier, std::uint32_t parity) {
  std::uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}\n"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return done != 0;
}

/// An L2 policy for what is read once: it leaves the cache before all else, such as the code of a
/// step's kernels. Made where it is written, so that no registers hold it between.
__device__ inline std::uint64_t evict_first_policy() {
  std::uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

/// Copies `bytes`, a multiple of 16, from global to shared memory and reports them to `barrier`.
__device__ inline void bulk_copy(void* to, const void* from, std::uint32_t bytes,
                                 Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}
__device__ inline void bulk_copy(void* to, const void* from, std::uint32_t bytes, Barrier* barrier,
                                 std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1], %2, [%3], %4;" ::"r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}

/// As bulk_copy, to the same place of every block of the cluster whose bit is set in `ranks`, each
/// of which learns of it from its own barrier.
__device__ inline void bulk_copy_to_ranks(void* to, const void* from, std::uint32_t bytes,
                                          Barrier* barrier, std::uint16_t ranks) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1], %2, [%3], %4;" ::"r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier)), "h"(ranks)
      : "memory");
}

/// Copies `bytes`, a multiple of 16, from shared to global memory, after async_proxy_fence() by
/// those who wrote them.
__device__ inline void bulk_store(void* to, const void* from, std::uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
               "r"(shared_address(from)), "r"(bytes)
               : "memory");
}
/// Closes a group of this thread's stores.
__device__ inline void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/// Waits until this thread's stores have read what they store.
__device__ inline void wait_for_stores_to_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
/// Waits until they have ended.
__device__ inline void wait_for_stores() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

/// Arrives at `barrier` with the one copy of its phase. racecheck takes a bulk copy for writes of
/// the thread that asks for it, and now and then overlooks that readers wait for the barrier; so in
/// a build for it the thread writes itself.
__device__ inline void bulk_fetch(void* to, const void* from, std::uint32_t bytes, Barrier* barrier,
                                  std::uint64_t policy) {
#ifdef QUATRAIN_RACECHECK
  for (std::uint32_t i = 0; i < bytes / 16; ++i)
    static_cast<uint4*>(to)[i] = static_cast<const uint4*>(from)[i];
  barrier_arrive(barrier);
#else
  barrier_expect(barrier, bytes);
  bulk_copy(to, from, bytes, barrier, policy);
#endif
}

/// Brings the line at `from` to the L2 cache.
__device__ inline void prefetch_to_l2(const void* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}

/// Reads shared memory that copies filled; what a wait for them orders before.
__device__ inline uint4 load_shared_16(std::uint32_t at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(at)
               : "memory");
  return v;
}
__device__ inline uint2 load_shared_8(std::uint32_t at) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at) : "memory");
  return v;
}

/// Copies 16 bytes past the first-level cache.
__device__ inline void copy16(std::uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
/// As copy16, of what is read once and in pieces: the second-level cache fetches whole lines.
__device__ inline void copy16_streamed(std::uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from)
               : "memory");
}
/// Copies 4 bytes through the first-level cache, for what neighbours read as well.
__device__ inline void copy4(std::uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}
/// As copy16, or 16 bytes of zeros without reading anything.
__device__ inline void copy16_or_zeros(std::uint32_t to, const void* from, bool is_there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(is_there ? 16 : 0)
               : "memory");
}
__device__ inline void copy16_async(void* to, const void* from) {
  copy16(shared_address(to), from);
}
/// Waits for this thread's copies; a barrier makes the others' visible.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most `kGroups` of this thread's groups are under way.
template <int kGroups>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

/// One of the barrier's expected arrivals, made once all earlier copy16 of this thread are there.
__device__ inline void arrive_when_copied(Barrier* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

/// Orders ordinary accesses before those of the copy engine and the tensor cores.
__device__ inline void async_proxy_fence() { asm volatile("fence.proxy.async;" ::: "memory"); }

/// A barrier of `threads` threads of the block; `id` 1 to 15.
__device__ inline void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Arrives at it without waiting; `threads` counts those that arrive and those that wait.
__device__ inline void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Barriers of a ring of `stages` buffers, which so many arrive at.
__device__ inline void init_ring(Barrier* full, int fillers, Barrier* empty, int readers,
                                 int stages) {
  for (int s = 0; s < stages; ++s) {
    barrier_init(full + s, fillers);
    barrier_init(empty + s, readers);
  }
}

/// A ring of `size` buffers: which one is next, and the parity of its barriers.
struct RingPosition {
  int at = 0;
  std::uint32_t parity = 0;
  __device__ void next(int size) {
    if (++at == size) {
      at = 0;
      parity ^= 1u;
    }
  }
};

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// Barriers in shared memory between warps that write a stage and warps that read it.
#pragma once

#include <cstdint>

namespace quatrain::cuda {

class MemoryBarrier {
 public:
  /// One thread; a block barrier must follow before others use it.
  __device__ void init(unsigned arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address()), "r"(arrivals)
                 : "memory");
  }
  __device__ void arrive() {
    asm volatile(
        "{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" ::"r"(address())
        : "memory");
  }
  /// An arrival that also announces bytes of bulk copies.
  __device__ void arrive_expecting(unsigned bytes) {
    asm volatile(
        "{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }" ::"r"(
            address()),
        "r"(bytes)
        : "memory");
  }
  /// Starts a copy of `bytes` bytes, a multiple of 16, that the barrier waits for.
  __device__ void copy_bulk(void* shared, const void* global, unsigned bytes) {
    const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(to),
        "l"(global), "r"(bytes), "r"(address())
        : "memory");
  }
  /// Waits for the end of the phase of this parity; phases count from 0.
  __device__ void wait(unsigned parity) {
    asm volatile(
        "{ .reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; "
        "@!done bra again; }" ::"r"(address()),
        "r"(parity)
        : "memory");
  }

 private:
  __device__ std::uint32_t address() const {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(this));
  }
  std::uint64_t word_;
};

}  // namespace quatrain::cuda

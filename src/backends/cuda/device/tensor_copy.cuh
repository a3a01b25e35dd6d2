// SPDX-License-Identifier: Apache-2.0
// Copies of boxes of a matrix by the tensor memory accelerator. One instruction, one function.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "backends/cuda/device/async_copy.cuh"

namespace quatrain::cuda {

/// Brings the box whose first element is (column, row) to shared memory and reports its bytes to
/// `barrier`; zeros where the matrix ends. The map lies in constant or global memory.
__device__ inline void tensor_copy(void* to, const CUtensorMap& map, int column, int row,
                                   Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3}], [%4];" ::"r"(shared_address(to)),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
}
/// The same, under an L2 policy.
__device__ inline void tensor_copy(void* to, const CUtensorMap& map, int column, int row,
                                   Barrier* barrier, std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(to)),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}
/// As the first, to the same place of every block of the cluster whose bit is set in `ranks`, each
/// of which learns of it from its own barrier.
__device__ inline void tensor_copy_to_ranks(void* to, const CUtensorMap& map, int column, int row,
                                            Barrier* barrier, std::uint16_t ranks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(to)),
      "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier)), "h"(ranks)
      : "memory");
}

}  // namespace quatrain::cuda

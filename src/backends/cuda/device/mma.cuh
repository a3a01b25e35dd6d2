// SPDX-License-Identifier: Apache-2.0
// One instruction, one function: ldmatrix and the 16-bit tensor-core products of sm_80 and later.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace quatrain::cuda {

/// Four 8x8 matrices of 16-bit elements from shared memory; lane l gives the address of row l % 8
/// of matrix l / 8.
__device__ inline void ldmatrix_x4(std::uint32_t (&r)[4], std::uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row));
}
__device__ inline void ldmatrix_x4(std::uint32_t (&r)[4], const __nv_bfloat16* row) {
  ldmatrix_x4(r, static_cast<std::uint32_t>(__cvta_generic_to_shared(row)));
}

/// As ldmatrix_x4, each matrix transposed.
__device__ inline void ldmatrix_x4_transposed(std::uint32_t (&r)[4], std::uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row));
}

/// d += a b with a [16, 16] row-major, b [16, 8] column-major, d [16, 8] in FP32: lane l holds
/// d[l / 4][2 (l % 4) + {0, 1}] in d[0], d[1] and the same of row + 8 in d[2], d[3].
__device__ inline void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// As mma_bf16, of F16.
__device__ inline void mma_f16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                               std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace quatrain::cuda

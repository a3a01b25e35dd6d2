// SPDX-License-Identifier: Apache-2.0
// Warpgroup products (wgmma) of 64 rows by 128 tokens, with sums as mma_bf16 has them.
//
// Sums have the same bits as those of mma.sync over the same 16 columns in the same order; the
// linears' test of rows in any company rests on it.
#pragma once

#include <cstdint>

#include "backends/cuda/device/wgmma.cuh"

namespace quatrain::cuda {

/// Products run on after their instruction. Between it and the end of the wait the compiler must
/// neither read the sums nor reuse the operands: these two, after the wait, tell it so.
__device__ inline void keep_sums(float (&d)[16][4]) {
#pragma unroll
  for (int n = 0; n < 16; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(d[n][i])::"memory");
}
__device__ inline void keep_operand(std::uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(a[i])::"memory");
}

#define QT_D4(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define QT_D16(n) QT_D4(n), QT_D4(n + 1), QT_D4(n + 2), QT_D4(n + 3)

/// d [64, 128] = a [64, 16] · b [128, 16]ᵀ (+ d): d[n] as mma_bf16's d of columns 8n to 8n + 7,
/// warp w of the group has rows 16w to 16w + 15.
__device__ inline void wgmma_f16(float (&d)[16][4], const std::uint32_t (&a)[4], std::uint64_t b,
                                 bool add) {
  asm volatile(
      "{ .reg .pred add; setp.ne.b32 add, %69, 0; "
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, add, 1, 1, 0; }"
      : QT_D16(0), QT_D16(4), QT_D16(8), QT_D16(12)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add ? 1 : 0));
}
__device__ inline void wgmma_bf16(float (&d)[16][4], const std::uint32_t (&a)[4], std::uint64_t b,
                                  bool add) {
  asm volatile(
      "{ .reg .pred add; setp.ne.b32 add, %69, 0; "
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, add, 1, 1, 0; }"
      : QT_D16(0), QT_D16(4), QT_D16(8), QT_D16(12)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add ? 1 : 0));
}

#undef QT_D16
#undef QT_D4

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// Hopper's asynchronous product of a warpgroup: the left operand in registers, the right one in
// shared memory, sums in registers. One instruction, one function per width.
#pragma once

#include <cstdint>

namespace quatrain::cuda {

/// The right operand: rows of 64 BF16 (128 bytes), row n being column n of the operand, in the
/// 128-byte swizzle: the 16-byte piece c of row n lies at n * 128 + (c ^ n % 8) * 16. `address`, of
/// shared memory, is a multiple of 1024 plus 32 per 16 columns already multiplied.
__device__ inline std::uint64_t swizzled_operand(std::uint32_t address) {
  constexpr std::uint64_t kSwizzle128 = 1, kEightRows = 1024 >> 4;
  return (address & 0x3FFFFu) >> 4 | std::uint64_t{1} << 16 | kEightRows << 32 | kSwizzle128 << 62;
}

/// Makes writes to shared memory, this thread's or those it has waited for, visible to the
/// products.
__device__ inline void fence_operands() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// Orders register accesses before the products that follow.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Waits until at most `kGroups` committed groups are under way.
template <int kGroups>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}
/// Keeps uses of the sums behind the wait before it.
template <int kCount>
__device__ inline void wgmma_results(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

template <int kRegisters>
__device__ inline void raise_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void lower_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Operands four at a time: those of columns [8 n, 8 n + 8).
#define QT_S(n) "+f"(d[4 * n]), "+f"(d[4 * n + 1]), "+f"(d[4 * n + 2]), "+f"(d[4 * n + 3])
#define QT_S2 QT_S(0), QT_S(1)
#define QT_S3 QT_S2, QT_S(2)
#define QT_S4 QT_S3, QT_S(3)
#define QT_S5 QT_S4, QT_S(4)
#define QT_S6 QT_S5, QT_S(5)
#define QT_S7 QT_S6, QT_S(6)
#define QT_S8 QT_S7, QT_S(7)
#define QT_S9 QT_S8, QT_S(8)
#define QT_S10 QT_S9, QT_S(9)
#define QT_S11 QT_S10, QT_S(10)
#define QT_S12 QT_S11, QT_S(11)
#define QT_S13 QT_S12, QT_S(12)
#define QT_S14 QT_S13, QT_S(13)
#define QT_S15 QT_S14, QT_S(14)
#define QT_S16 QT_S15, QT_S(15)
#define QT_N2 "%0, %1, %2, %3, %4, %5, %6, %7"
#define QT_N3 QT_N2 ", %8, %9, %10, %11"
#define QT_N4 QT_N3 ", %12, %13, %14, %15"
#define QT_N5 QT_N4 ", %16, %17, %18, %19"
#define QT_N6 QT_N5 ", %20, %21, %22, %23"
#define QT_N7 QT_N6 ", %24, %25, %26, %27"
#define QT_N8 QT_N7 ", %28, %29, %30, %31"
#define QT_N9 QT_N8 ", %32, %33, %34, %35"
#define QT_N10 QT_N9 ", %36, %37, %38, %39"
#define QT_N11 QT_N10 ", %40, %41, %42, %43"
#define QT_N12 QT_N11 ", %44, %45, %46, %47"
#define QT_N13 QT_N12 ", %48, %49, %50, %51"
#define QT_N14 QT_N13 ", %52, %53, %54, %55"
#define QT_N15 QT_N14 ", %56, %57, %58, %59"
#define QT_N16 QT_N15 ", %60, %61, %62, %63"
// A product of `width` columns, whose inputs follow n groups of sums.
#define QT_PRODUCT(n, width, inputs)                                                              \
  if constexpr (kWidth == width)                                                                  \
  asm volatile("{.reg .pred add; setp.eq.u32 add, 0, 0; wgmma.mma_async.sync.aligned.m64n" #width \
               "k16.f32.bf16.bf16 {" QT_N##n "}, " inputs ", add, 1, 1, 0;}"                      \
               : QT_S##n                                                                          \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

/// d += a b: a [64, 16] as the lanes' fragments (as mma_bf16, 16 rows per warp), b [16, kWidth] of
/// BF16, d [64, kWidth]: d[4 n + i] as mma_bf16's d[i] for columns [8 n, 8 n + 8). Asynchronous: a
/// and d must be left alone until wgmma_wait. kWidth is a multiple of 8 from 16 to 128.
template <int kWidth>
__device__ inline void wgmma_bf16(float (&d)[kWidth / 2], const std::uint32_t (&a)[4],
                                  std::uint64_t b) {
  static_assert(kWidth % 8 == 0 && 16 <= kWidth && kWidth <= 128);
  QT_PRODUCT(2, 16, "{%8, %9, %10, %11}, %12");
  QT_PRODUCT(3, 24, "{%12, %13, %14, %15}, %16");
  QT_PRODUCT(4, 32, "{%16, %17, %18, %19}, %20");
  QT_PRODUCT(5, 40, "{%20, %21, %22, %23}, %24");
  QT_PRODUCT(6, 48, "{%24, %25, %26, %27}, %28");
  QT_PRODUCT(7, 56, "{%28, %29, %30, %31}, %32");
  QT_PRODUCT(8, 64, "{%32, %33, %34, %35}, %36");
  QT_PRODUCT(9, 72, "{%36, %37, %38, %39}, %40");
  QT_PRODUCT(10, 80, "{%40, %41, %42, %43}, %44");
  QT_PRODUCT(11, 88, "{%44, %45, %46, %47}, %48");
  QT_PRODUCT(12, 96, "{%48, %49, %50, %51}, %52");
  QT_PRODUCT(13, 104, "{%52, %53, %54, %55}, %56");
  QT_PRODUCT(14, 112, "{%56, %57, %58, %59}, %60");
  QT_PRODUCT(15, 120, "{%60, %61, %62, %63}, %64");
  QT_PRODUCT(16, 128, "{%64, %65, %66, %67}, %68");
}

#undef QT_PRODUCT
#undef QT_S
#undef QT_S2
#undef QT_N2
#undef QT_S3
#undef QT_N3
#undef QT_S4
#undef QT_N4
#undef QT_S5
#undef QT_N5
#undef QT_S6
#undef QT_N6
#undef QT_S7
#undef QT_N7
#undef QT_S8
#undef QT_N8
#undef QT_S9
#undef QT_N9
#undef QT_S10
#undef QT_N10
#undef QT_S11
#undef QT_N11
#undef QT_S12
#undef QT_N12
#undef QT_S13
#undef QT_N13
#undef QT_S14
#undef QT_N14
#undef QT_S15
#undef QT_N15
#undef QT_S16
#undef QT_N16

}  // namespace quatrain::cuda

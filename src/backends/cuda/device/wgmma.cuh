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

/// The operand `bytes` behind the one that `first` describes. Only the lower word changes, so there
/// is no carry to compute.
__device__ inline std::uint64_t operand_behind(std::uint64_t first, int bytes) {
  return first >> 32 << 32 |
         (static_cast<std::uint32_t>(first) + static_cast<std::uint32_t>(bytes) / 16);
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

// What the functions of this file and of wgmma_fp8.cuh are made of. Sums four at a time: those of
// columns [8 n, 8 n + 8).
#define QT_WGMMA_S(n) "+f"(d[4 * n]), "+f"(d[4 * n + 1]), "+f"(d[4 * n + 2]), "+f"(d[4 * n + 3])
#define QT_WGMMA_S2 QT_WGMMA_S(0), QT_WGMMA_S(1)
#define QT_WGMMA_S3 QT_WGMMA_S2, QT_WGMMA_S(2)
#define QT_WGMMA_S4 QT_WGMMA_S3, QT_WGMMA_S(3)
#define QT_WGMMA_S5 QT_WGMMA_S4, QT_WGMMA_S(4)
#define QT_WGMMA_S6 QT_WGMMA_S5, QT_WGMMA_S(5)
#define QT_WGMMA_S7 QT_WGMMA_S6, QT_WGMMA_S(6)
#define QT_WGMMA_S8 QT_WGMMA_S7, QT_WGMMA_S(7)
#define QT_WGMMA_S9 QT_WGMMA_S8, QT_WGMMA_S(8)
#define QT_WGMMA_S10 QT_WGMMA_S9, QT_WGMMA_S(9)
#define QT_WGMMA_S11 QT_WGMMA_S10, QT_WGMMA_S(10)
#define QT_WGMMA_S12 QT_WGMMA_S11, QT_WGMMA_S(11)
#define QT_WGMMA_S13 QT_WGMMA_S12, QT_WGMMA_S(12)
#define QT_WGMMA_S14 QT_WGMMA_S13, QT_WGMMA_S(13)
#define QT_WGMMA_S15 QT_WGMMA_S14, QT_WGMMA_S(14)
#define QT_WGMMA_S16 QT_WGMMA_S15, QT_WGMMA_S(15)
#define QT_WGMMA_N2 "%0, %1, %2, %3, %4, %5, %6, %7"
#define QT_WGMMA_N3 QT_WGMMA_N2 ", %8, %9, %10, %11"
#define QT_WGMMA_N4 QT_WGMMA_N3 ", %12, %13, %14, %15"
#define QT_WGMMA_N5 QT_WGMMA_N4 ", %16, %17, %18, %19"
#define QT_WGMMA_N6 QT_WGMMA_N5 ", %20, %21, %22, %23"
#define QT_WGMMA_N7 QT_WGMMA_N6 ", %24, %25, %26, %27"
#define QT_WGMMA_N8 QT_WGMMA_N7 ", %28, %29, %30, %31"
#define QT_WGMMA_N9 QT_WGMMA_N8 ", %32, %33, %34, %35"
#define QT_WGMMA_N10 QT_WGMMA_N9 ", %36, %37, %38, %39"
#define QT_WGMMA_N11 QT_WGMMA_N10 ", %40, %41, %42, %43"
#define QT_WGMMA_N12 QT_WGMMA_N11 ", %44, %45, %46, %47"
#define QT_WGMMA_N13 QT_WGMMA_N12 ", %48, %49, %50, %51"
#define QT_WGMMA_N14 QT_WGMMA_N13 ", %52, %53, %54, %55"
#define QT_WGMMA_N15 QT_WGMMA_N14 ", %56, %57, %58, %59"
#define QT_WGMMA_N16 QT_WGMMA_N15 ", %60, %61, %62, %63"
// A product of `width` columns with n groups of sums. `shape` is the depth and the types,
// `operands` names a and b, `add` the flag that follows them, `modes` ends the instruction.
#define QT_WGMMA(n, width, shape, operands, add, modes, ...)                            \
  if constexpr (kWidth == width)                                                        \
  asm volatile("{.reg .pred add; setp.ne.b32 add, " add                                 \
               ", 0; wgmma.mma_async.sync.aligned.m64n" #width shape " {" QT_WGMMA_N##n \
               "}, " operands ", add, 1, 1" modes ";}"                                  \
               : QT_WGMMA_S##n                                                          \
               : __VA_ARGS__)
// With operand a in registers, or described as b is; for every width.
#define QT_WGMMA_REGISTERS(shape, modes)                                                           \
  QT_WGMMA(2, 16, shape, "{%8, %9, %10, %11}, %12", "%13", modes, "r"(a[0]), "r"(a[1]), "r"(a[2]), \
           "r"(a[3]), "l"(b), "r"(add ? 1 : 0));                                                   \
  QT_WGMMA(3, 24, shape, "{%12, %13, %14, %15}, %16", "%17", modes, "r"(a[0]), "r"(a[1]),          \
           "r"(a[2]), "r"(a[3]), "l"(b), "r"(add ? 1 : 0));                                        \
  QT_WGMMA(4, 32, shape, "{%16, %17, %18, %19}, %20", "%21", modes, "r"(a[0]), "r"(a[1]),          \
           "r"(a[2]), "r"(a[3]), "l"(b), "r"(add ? 1 : 0));                                        \
  QT_WGMMA(5, 40, shape, "{%20, %21, %22, %23}, %24", "%25", modes, "r"(a[0]), "r"(a[1]),          \
           "r"(a[2]), "r"(a[3]), "l"(b), "r"(add ? 1 : 0));                                        \
  QT_WGMMA(6, 48, shape, "{%24, %25, %26, %27}, %28", "%29", modes, "r"(a[0]), "r"(a[1]),          \
           "r"(a[2]), "r"(a[3]), "l"(b), "r"(add ? 1 : 0));                                        \
  QT_WGMMA(7, 56, shape, "{%28, %29, %30, %31}, %32", "%33", modes, "r"(a[0]), "r"(a[1]),          \
           "r"(a[2]), "r"(a[3]), "l"(b), "r"(add ? 1 : 0));                                        \
  QT_WGMMA(8, 64, shape, "{%32, %33, %34, %35}, %36", "%37", modes, "r"(a[0]), "r"(a[1]),          \
           "r"(a[2]), "r"(a[3]), "l"(b), "r"(add ? 1 : 0));                                        \
  QT_WGMMA(9, 72, shape, "{%36, %37, %38, %39}, %40", "%41", modes, "r"(a[0]), "r"(a[1]),          \
           "r"(a[2]), "r"(a[3]), "l"(b), "r"(add ? 1 : 0));                                        \
  QT_WGMMA(10, 80, shape, "{%40, %41, %42, %43}, %44", "%45", modes, "r"(a[0]), "r"(a[1]),         \
           "r"(a[2]), "r"(a[3]), "l"(b), "r"(add ? 1 : 0));                                        \
  QT_WGMMA(11, 88, shape, "{%44, %45, %46, %47}, %48", "%49", modes, "r"(a[0]), "r"(a[1]),         \
           "r"(a[2]), "r"(a[3]), "l"(b), "r"(add ? 1 : 0));                                        \
  QT_WGMMA(12, 96, shape, "{%48, %49, %50, %51}, %52", "%53", modes, "r"(a[0]), "r"(a[1]),         \
           "r"(a[2]), "r"(a[3]), "l"(b), "r"(add ? 1 : 0));                                        \
  QT_WGMMA(13, 104, shape, "{%52, %53, %54, %55}, %56", "%57", modes, "r"(a[0]), "r"(a[1]),        \
           "r"(a[2]), "r"(a[3]), "l"(b), "r"(add ? 1 : 0));                                        \
  QT_WGMMA(14, 112, shape, "{%56, %57, %58, %59}, %60", "%61", modes, "r"(a[0]), "r"(a[1]),        \
           "r"(a[2]), "r"(a[3]), "l"(b), "r"(add ? 1 : 0));                                        \
  QT_WGMMA(15, 120, shape, "{%60, %61, %62, %63}, %64", "%65", modes, "r"(a[0]), "r"(a[1]),        \
           "r"(a[2]), "r"(a[3]), "l"(b), "r"(add ? 1 : 0));                                        \
  QT_WGMMA(16, 128, shape, "{%64, %65, %66, %67}, %68", "%69", modes, "r"(a[0]), "r"(a[1]),        \
           "r"(a[2]), "r"(a[3]), "l"(b), "r"(add ? 1 : 0))
#define QT_WGMMA_SHARED(shape, modes)                                                 \
  QT_WGMMA(2, 16, shape, "%8, %9", "%10", modes, "l"(a), "l"(b), "r"(add ? 1 : 0));   \
  QT_WGMMA(4, 32, shape, "%16, %17", "%18", modes, "l"(a), "l"(b), "r"(add ? 1 : 0)); \
  QT_WGMMA(8, 64, shape, "%32, %33", "%34", modes, "l"(a), "l"(b), "r"(add ? 1 : 0)); \
  QT_WGMMA(16, 128, shape, "%64, %65", "%66", modes, "l"(a), "l"(b), "r"(add ? 1 : 0))

/// d = a b, plus d with `add`: a [64, 16] as the lanes' fragments (as mma_bf16, 16 rows per warp),
/// b [16, kWidth], d [64, kWidth]: d[4 n + i] as mma_bf16's d[i] for columns [8 n, 8 n + 8).
/// Asynchronous: a and d must be left alone until wgmma_wait. kWidth is a multiple of 8 from 16 to
/// 128.
template <int kWidth>
__device__ inline void wgmma_bf16(float (&d)[kWidth / 2], const std::uint32_t (&a)[4],
                                  std::uint64_t b, bool add = true) {
  static_assert(kWidth % 8 == 0 && 16 <= kWidth && kWidth <= 128);
  QT_WGMMA_REGISTERS("k16.f32.bf16.bf16", ", 0");
}
template <int kWidth>
__device__ inline void wgmma_f16(float (&d)[kWidth / 2], const std::uint32_t (&a)[4],
                                 std::uint64_t b, bool add = true) {
  static_assert(kWidth % 8 == 0 && 16 <= kWidth && kWidth <= 128);
  QT_WGMMA_REGISTERS("k16.f32.f16.f16", ", 0");
}
/// The same with both operands in shared memory. kWidth is 16, 32, 64 or 128.
template <int kWidth>
__device__ inline void wgmma_f16(float (&d)[kWidth / 2], std::uint64_t a, std::uint64_t b,
                                 bool add = true) {
  static_assert(kWidth == 16 || kWidth == 32 || kWidth == 64 || kWidth == 128);
  QT_WGMMA_SHARED("k16.f32.f16.f16", ", 0, 0");
}

}  // namespace quatrain::cuda

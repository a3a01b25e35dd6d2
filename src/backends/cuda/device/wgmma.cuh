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

// Operands eight at a time.
#define QT_SUMS(i)                                                                            \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define QT_NAMES0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define QT_NAMES1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define QT_NAMES2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define QT_NAMES3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define QT_NAMES4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define QT_NAMES5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define QT_NAMES6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define QT_NAMES7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define QT_NAMES8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define QT_NAMES9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define QT_NAMES10 "%80, %81, %82, %83, %84, %85, %86, %87"
#define QT_NAMES11 "%88, %89, %90, %91, %92, %93, %94, %95"
#define QT_NAMES12 "%96, %97, %98, %99, %100, %101, %102, %103"
#define QT_NAMES13 "%104, %105, %106, %107, %108, %109, %110, %111"
#define QT_NAMES14 "%112, %113, %114, %115, %116, %117, %118, %119"
#define QT_NAMES15 "%120, %121, %122, %123, %124, %125, %126, %127"
#define QT_INPUTS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)
#define QT_WGMMA(width, names, inputs)                                              \
  "{.reg .pred add; setp.eq.u32 add, 0, 0; wgmma.mma_async.sync.aligned.m64n" width \
  "k16.f32.bf16.bf16 {" names "}, " inputs ", add, 1, 1, 0;}"

/// d += a b: a [64, 16] as the lanes' fragments (as mma_bf16, 16 rows per warp), b [16, kWidth] of
/// BF16, d [64, kWidth]: d[4 n + i] as mma_bf16's d[i] for columns [8 n, 8 n + 8). Asynchronous: a
/// and d must be left alone until wgmma_wait.
template <int kWidth>
__device__ inline void wgmma_bf16(float (&d)[kWidth / 2], const std::uint32_t (&a)[4],
                                  std::uint64_t b) {
  if constexpr (kWidth == 16)
    asm volatile(QT_WGMMA("16", QT_NAMES0, "{%8, %9, %10, %11}, %12") : QT_SUMS(0) : QT_INPUTS);
  else if constexpr (kWidth == 32)
    asm volatile(QT_WGMMA("32", QT_NAMES0 ", " QT_NAMES1, "{%16, %17, %18, %19}, %20")
                 : QT_SUMS(0), QT_SUMS(8)
                 : QT_INPUTS);
  else if constexpr (kWidth == 48)
    asm volatile(
        QT_WGMMA("48", QT_NAMES0 ", " QT_NAMES1 ", " QT_NAMES2, "{%24, %25, %26, %27}, %28")
        : QT_SUMS(0), QT_SUMS(8), QT_SUMS(16)
        : QT_INPUTS);
  else if constexpr (kWidth == 64)
    asm volatile(QT_WGMMA("64", QT_NAMES0 ", " QT_NAMES1 ", " QT_NAMES2 ", " QT_NAMES3,
                          "{%32, %33, %34, %35}, %36")
                 : QT_SUMS(0), QT_SUMS(8), QT_SUMS(16), QT_SUMS(24)
                 : QT_INPUTS);
  else if constexpr (kWidth == 96)
    asm volatile(QT_WGMMA("96",
                          QT_NAMES0 ", " QT_NAMES1 ", " QT_NAMES2 ", " QT_NAMES3 ", " QT_NAMES4
                                    ", " QT_NAMES5,
                          "{%48, %49, %50, %51}, %52")
                 : QT_SUMS(0), QT_SUMS(8), QT_SUMS(16), QT_SUMS(24), QT_SUMS(32), QT_SUMS(40)
                 : QT_INPUTS);
  else if constexpr (kWidth == 128)
    asm volatile(QT_WGMMA("128",
                          QT_NAMES0 ", " QT_NAMES1 ", " QT_NAMES2 ", " QT_NAMES3 ", " QT_NAMES4
                                    ", " QT_NAMES5 ", " QT_NAMES6 ", " QT_NAMES7,
                          "{%64, %65, %66, %67}, %68")
                 : QT_SUMS(0), QT_SUMS(8), QT_SUMS(16), QT_SUMS(24), QT_SUMS(32), QT_SUMS(40),
                   QT_SUMS(48), QT_SUMS(56)
                 : QT_INPUTS);
  else if constexpr (kWidth == 160)
    asm volatile(QT_WGMMA("160",
                          QT_NAMES0 ", " QT_NAMES1 ", " QT_NAMES2 ", " QT_NAMES3 ", " QT_NAMES4
                                    ", " QT_NAMES5 ", " QT_NAMES6 ", " QT_NAMES7 ", " QT_NAMES8
                                    ", " QT_NAMES9,
                          "{%80, %81, %82, %83}, %84")
                 : QT_SUMS(0), QT_SUMS(8), QT_SUMS(16), QT_SUMS(24), QT_SUMS(32), QT_SUMS(40),
                   QT_SUMS(48), QT_SUMS(56), QT_SUMS(64), QT_SUMS(72)
                 : QT_INPUTS);
  else if constexpr (kWidth == 192)
    asm volatile(QT_WGMMA("192",
                          QT_NAMES0 ", " QT_NAMES1 ", " QT_NAMES2 ", " QT_NAMES3 ", " QT_NAMES4
                                    ", " QT_NAMES5 ", " QT_NAMES6 ", " QT_NAMES7 ", " QT_NAMES8
                                    ", " QT_NAMES9 ", " QT_NAMES10 ", " QT_NAMES11,
                          "{%96, %97, %98, %99}, %100")
                 : QT_SUMS(0), QT_SUMS(8), QT_SUMS(16), QT_SUMS(24), QT_SUMS(32), QT_SUMS(40),
                   QT_SUMS(48), QT_SUMS(56), QT_SUMS(64), QT_SUMS(72), QT_SUMS(80), QT_SUMS(88)
                 : QT_INPUTS);
  else if constexpr (kWidth == 224)
    asm volatile(QT_WGMMA("224",
                          QT_NAMES0 ", " QT_NAMES1 ", " QT_NAMES2 ", " QT_NAMES3 ", " QT_NAMES4
                                    ", " QT_NAMES5 ", " QT_NAMES6 ", " QT_NAMES7 ", " QT_NAMES8
                                    ", " QT_NAMES9 ", " QT_NAMES10 ", " QT_NAMES11 ", " QT_NAMES12
                                    ", " QT_NAMES13,
                          "{%112, %113, %114, %115}, %116")
                 : QT_SUMS(0), QT_SUMS(8), QT_SUMS(16), QT_SUMS(24), QT_SUMS(32), QT_SUMS(40),
                   QT_SUMS(48), QT_SUMS(56), QT_SUMS(64), QT_SUMS(72), QT_SUMS(80), QT_SUMS(88),
                   QT_SUMS(96), QT_SUMS(104)
                 : QT_INPUTS);
  else if constexpr (kWidth == 256)
    asm volatile(QT_WGMMA("256",
                          QT_NAMES0 ", " QT_NAMES1 ", " QT_NAMES2 ", " QT_NAMES3 ", " QT_NAMES4
                                    ", " QT_NAMES5 ", " QT_NAMES6 ", " QT_NAMES7 ", " QT_NAMES8
                                    ", " QT_NAMES9 ", " QT_NAMES10 ", " QT_NAMES11 ", " QT_NAMES12
                                    ", " QT_NAMES13 ", " QT_NAMES14 ", " QT_NAMES15,
                          "{%128, %129, %130, %131}, %132")
                 : QT_SUMS(0), QT_SUMS(8), QT_SUMS(16), QT_SUMS(24), QT_SUMS(32), QT_SUMS(40),
                   QT_SUMS(48), QT_SUMS(56), QT_SUMS(64), QT_SUMS(72), QT_SUMS(80), QT_SUMS(88),
                   QT_SUMS(96), QT_SUMS(104), QT_SUMS(112), QT_SUMS(120)
                 : QT_INPUTS);
  else
    static_assert(kWidth == 0, "no product of this width");
}

#undef QT_SUMS
#undef QT_INPUTS
#undef QT_WGMMA
#undef QT_NAMES0
#undef QT_NAMES1
#undef QT_NAMES2
#undef QT_NAMES3
#undef QT_NAMES4
#undef QT_NAMES5
#undef QT_NAMES6
#undef QT_NAMES7
#undef QT_NAMES8
#undef QT_NAMES9
#undef QT_NAMES10
#undef QT_NAMES11
#undef QT_NAMES12
#undef QT_NAMES13
#undef QT_NAMES14
#undef QT_NAMES15

}  // namespace quatrain::cuda

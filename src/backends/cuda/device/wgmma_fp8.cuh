// SPDX-License-Identifier: Apache-2.0
// Warpgroup products of E4M3: 32 columns an instruction, twice as many as of 16 bits.
//
// The instruction adds its products with fewer bits than FP32 has (about 14), so sums are taken out
// and added in FP32 every kFp8Columns columns, which is also where scales change.
//
// A row of an operand in shared memory is 128 columns, 128 bytes, in the 128-byte swizzle
// (swizzled_operand of wgmma.cuh): 32 columns on are 32 bytes on. In registers, lane l of warp w
// has of a, four columns to a word: a[0] row 16 w + l / 4, columns 4 (l % 4) on; a[1] row + 8; a[2]
// and a[3] the same, 16 columns on.
#pragma once

#include <cstdint>

#include "backends/cuda/device/wgmma.cuh"

namespace quatrain::cuda {

/// Columns that share a scale of the activations, and of the weights.
inline constexpr int kFp8Columns = 128;

/// d = a b, plus d with `add`: a [64, 32] in registers, b [32, kWidth], d [64, kWidth] as
/// wgmma_bf16 has it. Asynchronous. kWidth is a multiple of 8 from 16 to 128.
template <int kWidth>
__device__ inline void wgmma_e4m3(float (&d)[kWidth / 2], const std::uint32_t (&a)[4],
                                  std::uint64_t b, bool add = true) {
  static_assert(kWidth % 8 == 0 && 16 <= kWidth && kWidth <= 128);
  QT_WGMMA_REGISTERS("k32.f32.e4m3.e4m3", "");
}
/// The same with both operands in shared memory. kWidth is 16, 32, 64 or 128.
template <int kWidth>
__device__ inline void wgmma_e4m3(float (&d)[kWidth / 2], std::uint64_t a, std::uint64_t b,
                                  bool add = true) {
  static_assert(kWidth == 16 || kWidth == 32 || kWidth == 64 || kWidth == 128);
  QT_WGMMA_SHARED("k32.f32.e4m3.e4m3", "");
}

/// Adds a lane's four sums of eight columns to d, times the scales of its two columns.
__device__ __forceinline__ void add_scaled_eight(float* d, const float* sums, float2 scales) {
  d[0] = fmaf(sums[0], scales.x, d[0]);
  d[1] = fmaf(sums[1], scales.y, d[1]);
  d[2] = fmaf(sums[2], scales.x, d[2]);
  d[3] = fmaf(sums[3], scales.y, d[3]);
}

}  // namespace quatrain::cuda

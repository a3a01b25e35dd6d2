// SPDX-License-Identifier: Apache-2.0
// What the linear kernels share: how weights of each format become operand A of a 16-bit tensor
// core product, straight from row-major memory, and where the inputs' columns have to be for that.
//
// A lane reads 16 consecutive bytes of a row and uses them as they lie: 4 columns are its share of
// one product over 16 columns. Which 16 columns a product sums is therefore a permutation of the
// block of 128, the same for weights and inputs, and different for each width of a weight.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "backends/cuda/device/bf16_parts.cuh"
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/launch/linear.h"
#include "core/f16_activations.h"

namespace quatrain::cuda {

/// Products over 16 columns that a block takes; they are handled in pairs.
inline constexpr int kSteps = kLinearBlock / 16;

template <LinearKind kKind>
inline constexpr bool kIsFp4 = kKind == LinearKind::kNvfp4 || kKind == LinearKind::kMxfp4;
template <LinearKind kKind>
inline constexpr bool kIsFp8 = kKind == LinearKind::kFp8 || kKind == LinearKind::kFp8Rounded;

/// 16-bit parts of an input.
template <LinearKind kKind>
inline constexpr int kParts = kKind == LinearKind::kFp8Rounded ? 1 : 2;

/// Columns that 16 bytes of a row hold.
template <LinearKind kKind>
inline constexpr int kPieceColumns = kKind == LinearKind::kBf16 ? 8
                                     : kIsFp8<kKind>            ? 16
                                                                : 32;
/// 16-byte pieces of a lane per row and block.
template <LinearKind kKind>
inline constexpr int kPieces = kLinearBlock / (4 * kPieceColumns<kKind>);

/// Bytes of `columns` columns of a row.
template <LinearKind kKind>
__device__ constexpr std::int64_t bytes_of_columns(std::int64_t columns) {
  return columns * 16 / kPieceColumns<kKind>;
}

/// Where column c of a block stands in the inputs' order, in elements: pairs of steps, then the
/// four lanes of a row, then step, then the lane's four elements.
template <LinearKind kKind>
__device__ constexpr int place_of_column(int c) {
  int step = 0, lane = 0, element = c & 3;
  if constexpr (kIsFp8<kKind>) {
    step = (c >> 6) * 4 + ((c >> 2) & 3);
    lane = (c >> 4) & 3;
  } else if constexpr (kKind == LinearKind::kBf16) {
    step = (c >> 5) * 2 + ((c >> 2) & 1);
    lane = (c >> 3) & 3;
  } else {  // codes 4 apart share a register: one shift brings both into place
    const int code = c & 7;
    step = ((c >> 3) & 3) * 2 + ((code >> 1) & 1);
    lane = c >> 5;
    element = (code & 1) * 2 + (code >> 2);
  }
  return ((step >> 1) * 4 + lane) * 8 + (step & 1) * 4 + element;
}

/// A lane's part of 16 rows (g and g + 8, g = lane / 4) by one block, as it lies in memory.
template <LinearKind kKind>
struct WeightBlock {
  uint4 piece[kPieces<kKind>][2];
  /// FP8: the FP32 scale of the block, in the first. FP4: each row's scale bytes of the lane's 32
  /// columns.
  std::uint32_t scale[2];
};

/// 16 bytes that are read once: past the L1.
__device__ inline uint4 load_streamed(const char* from) {
  uint4 out;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
               : "l"(from));
  return out;
}

/// The two E4M3 of the low or the high half of a word to two F16, exact; NaN stays NaN. An
/// instruction takes either half as it is, without a shift.
template <int kHalf>
__device__ inline std::uint32_t f16x2_of_e4m3(std::uint32_t word) {
  std::uint32_t out;
  if constexpr (kHalf == 0)
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; cvt.rn.f16x2.e4m3x2 %0, low; }"
        : "=r"(out)
        : "r"(word));
  else
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; cvt.rn.f16x2.e4m3x2 %0, high; }"
        : "=r"(out)
        : "r"(word));
  return out;
}

/// The codes at bits 4·kNibble of each half to BF16, times a pair of equal scales. The bits of a
/// code make its value times 2^-126; both products are exact.
template <int kNibble>
__device__ inline std::uint32_t bf16x2_of_e2m1(std::uint32_t word, std::uint32_t scales) {
  constexpr int kUp = 6 - 4 * kNibble;
  const std::uint32_t magnitude =
      (kUp >= 0 ? word << (kUp & 31) : word >> (-kUp & 31)) & 0x01C001C0u;
  const std::uint32_t sign = (word << (12 - 4 * kNibble)) & 0x80008000u;
  constexpr std::uint32_t kTwoTo126 = 0x7E807E80u;
  return multiply_bf16x2(multiply_bf16x2(magnitude | sign, kTwoTo126), scales);
}

/// The BF16 pair of the scale of code column 16·half … of a lane.
template <LinearKind kKind>
__device__ inline std::uint32_t fp4_scales(std::uint32_t bytes, int half) {
  if constexpr (kKind == LinearKind::kMxfp4) {
    const std::uint32_t e = bytes & 255u;  // 2^-127 is a subnormal, 255 is NaN
    const std::uint32_t bits = e == 0 ? 0x40u : e == 255 ? 0x7FC0u : e << 7;
    return bits | bits << 16;
  } else {
    const std::uint32_t pair = f16x2_of_e4m3<0>((bytes >> (8 * half)) & 255u);
    const auto value = __half2float(__ushort_as_half(static_cast<unsigned short>(pair)));
    const std::uint32_t bits = __float_as_uint(value) >> 16;
    return bits | bits << 16;
  }
}

/// Operand A of steps 2·pair and 2·pair + 1.
template <LinearKind kKind>
__device__ inline void decode_pair(const WeightBlock<kKind>& w, int pair,
                                   std::uint32_t (&a)[2][4]) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    if constexpr (kIsFp8<kKind>) {
      const uint4 piece = w.piece[pair >> 1][row];
      const std::uint32_t words[2] = {pair & 1 ? piece.z : piece.x, pair & 1 ? piece.w : piece.y};
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        a[step][row] = f16x2_of_e4m3<0>(words[step]);
        a[step][row + 2] = f16x2_of_e4m3<1>(words[step]);
      }
    } else if constexpr (kKind == LinearKind::kBf16) {
      const uint4 piece = w.piece[pair][row];
      a[0][row] = piece.x;
      a[0][row + 2] = piece.y;
      a[1][row] = piece.z;
      a[1][row + 2] = piece.w;
    } else {
      const uint4 piece = w.piece[0][row];
      const std::uint32_t word = pair == 0   ? piece.x
                                 : pair == 1 ? piece.y
                                 : pair == 2 ? piece.z
                                             : piece.w;
      const std::uint32_t scales = fp4_scales<kKind>(w.scale[row], pair >> 1);
      a[0][row] = bf16x2_of_e2m1<0>(word, scales);
      a[0][row + 2] = bf16x2_of_e2m1<1>(word, scales);
      a[1][row] = bf16x2_of_e2m1<2>(word, scales);
      a[1][row + 2] = bf16x2_of_e2m1<3>(word, scales);
    }
  }
}

/// What takes the inputs of a block to the range of their parts, and sums back; `amax` is the
/// largest magnitude of the block.
template <LinearKind kKind>
__device__ inline F16ActivationRange input_range(float amax) {
  if constexpr (!kIsFp8<kKind>) return {};
  return f16_activation_range(amax);
}

/// Two inputs as pairs of 16-bit parts: part 0, and what it leaves, where there is a second.
template <LinearKind kKind>
__device__ inline void split_pair(float x, float y, float up, std::uint32_t (&part)[2]) {
  const auto bits = [](auto pair) { return reinterpret_cast<const std::uint32_t&>(pair); };
  if constexpr (kIsFp8<kKind>) {
    const float a = x * up, b = y * up;
    const __half2 high = __floats2half2_rn(a, b);
    const float2 kept = __half22float2(high);
    part[0] = bits(high);
    part[1] = kParts<kKind> == 1 ? 0 : bits(__floats2half2_rn(a - kept.x, b - kept.y));
  } else {
    const __nv_bfloat162 high = __floats2bfloat162_rn(x, y);
    part[0] = bits(high);
    part[1] = bits(__floats2bfloat162_rn(x - __uint_as_float(part[0] << 16),
                                         y - __uint_as_float(part[0] & 0xFFFF0000u)));
  }
}

template <LinearKind kKind>
__device__ inline void mma_of(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                              std::uint32_t b1) {
  if constexpr (kIsFp8<kKind>)
    mma_f16(d, a, b0, b1);
  else
    mma_bf16(d, a, b0, b1);
}

}  // namespace quatrain::cuda

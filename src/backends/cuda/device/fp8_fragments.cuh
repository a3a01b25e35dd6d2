// SPDX-License-Identifier: Apache-2.0
// From the words of experts packed for FP8 inputs to left operands of tensor core instructions,
// exactly: as E4M3 with the block's scale in the exponent, or as BF16.
#pragma once

#include <cstdint>

#include "backends/cuda/device/nvfp4_fragments.cuh"
#include "core/codec.h"
#include "core/fp8_window.h"

namespace quatrain::cuda {

/// The E4M3 codes of the eight magnitudes times 2^(i − 8), of which w · 2^k makes the i-th:
/// i = k − top + 14. Four bytes, the lowest first.
__device__ inline uint2 fp8_table(int i) {
  uint2 table = {};
  for (unsigned code = 0; code < 8; ++code) {
    const std::uint32_t byte = e4m3_encode(e2m1_decode(code) * exp2f(static_cast<float>(i - 8)));
    (code < 4 ? table.x : table.y) |= byte << (code % 4 * 8);
  }
  return table;
}
inline constexpr int kFp8TableBytes = 256;  // what a scale byte may reach
static_assert(kFp8WindowBinades * 8 <= kFp8TableBytes);

/// What products of such codes lack: 2^(top − 6), from the scale word of any block of the row.
__device__ inline float fp8_row_factor(std::uint32_t scales) {
  const int eight_tops = static_cast<int>(scales & 255u) - static_cast<int>(scales >> 8 & 255u) - 8;
  return __int_as_float((eight_tops << 20) + ((127 - 6) << 23));
}

/// The table of columns [32 i, 32 i + 32) of a slab; `tables` lie in shared memory. Of any bytes it
/// reads some table's place, or one behind them.
__device__ inline uint2 fp8_table_of(const uint2* tables, std::uint32_t scales, int i) {
  const std::uint32_t place = scales >> (16 * i + 8) & 0xF8u;  // in bytes
  return *reinterpret_cast<const uint2*>(reinterpret_cast<const char*>(tables) + place);
}

/// Words of two atoms as E4M3: {row g, row g + 8} of the first atom, then of the second.
__device__ inline void decode_fp8_pair(std::uint32_t first, std::uint32_t second, uint2 low,
                                       uint2 high, std::uint32_t (&a)[4]) {
  const std::uint32_t words[2] = {first, second};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::uint32_t q = words[i], magnitudes = q & 0x77777777u;
    a[2 * i] = __byte_perm(low.x, low.y, magnitudes) | (q & 0x80808080u);
    a[2 * i + 1] = __byte_perm(high.x, high.y, magnitudes >> 16) | (q << 4 & 0x80808080u);
  }
}

/// As slab_atom_codes(), from words for FP8 and as BF16 of w itself: high bytes and low bytes of a
/// magnitude are read from tables and put beside each other.
__device__ inline void fp8_slab_atom_codes(const uint4& codes, int i, std::uint32_t (&a)[4]) {
  const std::uint32_t q = i == 0 ? codes.x : i == 1 ? codes.y : i == 2 ? codes.z : codes.w;
  const std::uint32_t magnitudes = q & 0x77777777u;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const std::uint32_t from = row == 0 ? magnitudes : magnitudes >> 16;
    const std::uint32_t signs = (row == 0 ? q : q << 4) & 0x80808080u;
    const std::uint32_t high = __byte_perm(0x3F3F3F00u, 0x40404040u, from) | signs;
    const std::uint32_t low = __byte_perm(0xC0800000u, 0xC0804000u, from);
    a[row] = __byte_perm(low, high, 0x6240u);
    a[row + 2] = __byte_perm(low, high, 0x7351u);
  }
}

}  // namespace quatrain::cuda

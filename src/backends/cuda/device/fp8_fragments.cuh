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
inline constexpr int kFp8TableBytes = kFp8WindowBinades * 8;

/// What products of such codes lack: 2^(top − 6), from the scale word of any block of the row.
__device__ inline float fp8_row_factor(std::uint32_t scales) {
  const int eight_tops = static_cast<int>(scales & 255u) - static_cast<int>(scales >> 8 & 255u) - 8;
  return __int_as_float((eight_tops << 20) + ((127 - 6) << 23));
}

/// The table at `place`, a multiple of 8 that a block's scales give, of those at the shared address
/// `tables`.
__device__ inline uint2 load_fp8_table(std::uint32_t tables, std::uint32_t place) {
  uint2 table;
  asm("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(table.x), "=r"(table.y) : "r"(tables + place));
  return table;
}

/// The table of columns [32 pair, 32 pair + 32) of a slab, from the row's word of scales.
__device__ inline uint2 load_pair_table(std::uint32_t tables, std::uint32_t scales, int pair) {
  return load_fp8_table(tables, __byte_perm(scales, 0, pair == 0 ? 0x4441u : 0x4443u));
}

/// Bytes of `table` by the nibbles of `places`, each below 8. __byte_perm() would mask them first.
__device__ inline std::uint32_t select_bytes(uint2 table, std::uint32_t places) {
  std::uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(table.x), "r"(table.y), "r"(places));
  return bytes;
}

/// Words of two atoms as E4M3: {row g, row g + 8} of the first atom, then of the second.
__device__ inline void decode_fp8_pair(std::uint32_t first, std::uint32_t second, uint2 low,
                                       uint2 high, std::uint32_t (&a)[4]) {
  const std::uint32_t words[2] = {first, second};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::uint32_t q = words[i], magnitudes = q & 0x77777777u;
    a[2 * i] = select_bytes(low, magnitudes) | (q & 0x80808080u);
    a[2 * i + 1] = select_bytes(high, magnitudes >> 16) | (q << 4 & 0x80808080u);
  }
}

/// The operands of the two pairs of atoms of a slab. `tables`: the shared address of fp8_table()s.
__device__ __forceinline__ void decode_fp8_slab(const Slab& slab, std::uint32_t tables,
                                                std::uint32_t (&first)[4],
                                                std::uint32_t (&second)[4]) {
  decode_fp8_pair(slab.codes.x, slab.codes.y, load_pair_table(tables, slab.scales.x, 0),
                  load_pair_table(tables, slab.scales.y, 0), first);
  decode_fp8_pair(slab.codes.z, slab.codes.w, load_pair_table(tables, slab.scales.x, 1),
                  load_pair_table(tables, slab.scales.y, 1), second);
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
    const std::uint32_t high = select_bytes({0x3F3F3F00u, 0x40404040u}, from) | signs;
    const std::uint32_t low = select_bytes({0xC0800000u, 0xC0804000u}, from);
    a[row] = __byte_perm(low, high, 0x6240u);
    a[row + 2] = __byte_perm(low, high, 0x7351u);
  }
}

}  // namespace quatrain::cuda

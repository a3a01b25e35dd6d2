// SPDX-License-Identifier: Apache-2.0
// From packed words to the left operand of a tensor core instruction, exactly.
//
// Spelled for the instruction count: 9 integer operations per 8 weights, and with their scales 4
// products and an operation per scale more.
#pragma once

#include <cstdint>

#include "backends/cuda/device/bf16_parts.cuh"
#include "backends/cuda/launch/experts_layout.h"

namespace quatrain::cuda {

/// s · 2^119 as BF16 in both halves, from byte `i` of a word of packed scales. Two bytes are
/// decoded at once, and products take the half they need: an operation per scale, when both are
/// used.
__device__ inline std::uint32_t scale_bf16x2(std::uint32_t word, int i) {
  const std::uint32_t two = __byte_perm(word, 0, i < 2 ? 0x4140u : 0x4342u) * 16u + 0x73807380u;
  std::uint32_t both;
  if (i % 2 == 0)
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %1; mov.b32 %0, {low, low};}"
        : "=r"(both)
        : "r"(two));
  else
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %1; mov.b32 %0, {high, high};}"
        : "=r"(both)
        : "r"(two));
  return both;
}

/// The bits of `a` where `mask` has ones, those of `b` elsewhere: one instruction, which the
/// compiler does not find.
__device__ inline std::uint32_t select_bits(std::uint32_t a, std::uint32_t b, std::uint32_t mask) {
  std::uint32_t bits;
  asm("lop3.b32 %0, %1, %2, %3, 0xE4;" : "=r"(bits) : "r"(a), "r"(b), "r"(mask));
  return bits;
}

/// The fourth codes of two atoms from their words, the even one's where a first code of a quad
/// lies, the odd one's where a second one does. Other bits are left over.
__device__ inline std::uint32_t fourth_codes(std::uint32_t even, std::uint32_t odd) {
  return select_bits(even << 1, select_bits(odd >> 6, even >> 7, 0x01B001B0u), 0x90009000u);
}

/// The fragment of an atom: {row g, row g + 8} x {columns 2t.., columns 2t + 8..}, each two BF16 of
/// w · 2^-126. `fourth` holds its fourth codes where a first code lies.
__device__ inline void atom_codes(std::uint32_t q, std::uint32_t fourth, std::uint32_t (&a)[4]) {
  constexpr std::uint32_t kMask = 0x81C081C0u;
  a[0] = q & kMask;
  a[1] = q << 3 & kMask;
  a[2] = q << 6 & kMask;
  a[3] = fourth & kMask;
}

/// What a lane needs of one slab: its words of the four atoms, and the scales of rows g and g + 8.
struct Slab {
  uint4 codes;
  uint2 scales;
};

/// A lane's words of the four atoms.
__device__ inline uint4 slab_codes(const std::uint8_t* chunk, int slab, int lane) {
  return *reinterpret_cast<const uint4*>(chunk + slab * kSlabCodeBytes + lane * 16);
}
/// The scale bytes of rows g and g + 8, four each.
__device__ inline const std::uint8_t* slab_scales(const std::uint8_t* chunk, int slab, int lane) {
  return chunk + kChunkCodeBytes + slab * kSlabScaleBytes + lane / 4 * 8;
}
__device__ inline Slab load_slab(const std::uint8_t* chunk, int slab, int lane) {
  return {slab_codes(chunk, slab, lane),
          *reinterpret_cast<const uint2*>(slab_scales(chunk, slab, lane))};
}

/// The codes of atom `i`, a constant after unrolling, as atom_codes() has them. What two atoms
/// share is computed once when both are decoded.
__device__ inline void slab_atom_codes(const uint4& codes, int i, std::uint32_t (&a)[4]) {
  const std::uint32_t even = i < 2 ? codes.x : codes.z;
  const std::uint32_t odd = i < 2 ? codes.y : codes.w;
  const std::uint32_t fourth = fourth_codes(even, odd);
  atom_codes(i % 2 == 0 ? even : odd, i % 2 == 0 ? fourth : fourth << 3, a);
}

/// The same times their scales: BF16 of w · s · 2^-7.
__device__ inline void decode_slab_atom(const Slab& slab, int i, std::uint32_t (&a)[4]) {
  slab_atom_codes(slab.codes, i, a);
  const std::uint32_t low = scale_bf16x2(slab.scales.x, i), high = scale_bf16x2(slab.scales.y, i);
  a[0] = multiply_bf16x2(a[0], low);
  a[1] = multiply_bf16x2(a[1], high);
  a[2] = multiply_bf16x2(a[2], low);
  a[3] = multiply_bf16x2(a[3], high);
}

/// The packed scale at byte `i` of a word, a constant, as s · 2^(bias − 112); NaN is NaN with a
/// bias of 231. `place` is 2^20, which the compiler must not know: it would shift by it, on the
/// pipe that codes keep busy.
template <int kBias>
__device__ inline float scale_float(std::uint32_t word, int i, std::uint32_t place) {
  return __uint_as_float(__byte_perm(word, 0, 0x4440u | static_cast<unsigned>(i)) * place +
                         (static_cast<std::uint32_t>(kBias) << 23));
}
inline constexpr std::uint32_t kScaleFloatPlace = 1u << 20;

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// The packed layout of NVFP4 experts, shared by the packing kernel, both products and the tests.
//
// A matrix is cut into chunks of 32 rows by 256 columns: 4096 bytes of codes, then 512 bytes of
// block scales. Four chunks, 128 rows, follow each other; these tiles run along the columns first.
// One bulk copy brings a chunk to the decode kernel, or a tile to the prefill kernel. Rows and
// columns that the matrix lacks are zero.
//
//   chunk : 2 slabs of rows x 4 slabs of columns, columns first
//   slab  : 16 rows x 64 columns = 4 atoms; 16 bytes per lane, one word per atom; and 64 bytes of
//           scales, for each of 8 lanes groups the word of row g, then that of row g + 8
//   atom  : 16 rows x 16 columns, the left operand of one tensor core instruction. The word of lane
//           (g = lane / 4, t = lane % 4) holds two quads: the low half columns 2t and 2t + 8, the
//           high half 2t + 1 and 2t + 9, of rows g and g + 8.
//   quad  : four codes of one lane, the first three at the bits from which a shift and a mask make
//           them a BF16 that reads `w` · 2^-126. The bits of the fourth ones of atoms 2i and 2i + 1
//           share what is left of both words, so that three shifts and two selections bring them to
//           the places of a first and a second code.
//
// Experts for FP8 inputs have the same places, but for the bits of a word and the scales:
//
//   word  : nibbles 0 to 3 are row g's codes without their signs, of columns 2t, 2t + 8, 2t + 1 and
//           2t + 9, nibbles 4 to 7 those of row g + 8: selectors of a byte permutation, by which a
//           table of E4M3 codes is read. The signs of nibbles 0 to 3 are at bits 7, 15, 23 and 31,
//           where that puts them; the others' four bits lower.
//   scale : of each 32 columns, with scale 2^k, first the packed scale, then 8 (k − t + 14), where
//           t is
//           the row's top exponent (core/fp8_window.h): the place of the block's table.
//
// Gate and up rows alternate by 8, so that a lane's row g is the gate of the up in its row g + 8.
#pragma once

#include <cstdint>

#include "core/codec.h"

namespace quatrain::cuda {

inline constexpr int kChunkRows = 32;
inline constexpr int kChunkCols = 256;
inline constexpr int kChunkCodeBytes = kChunkRows * kChunkCols / 2;
inline constexpr int kChunkBytes = kChunkCodeBytes + kChunkRows * kChunkCols / 16;
inline constexpr int kTileRows = 4 * kChunkRows;
inline constexpr int kTileBytes = 4 * kChunkBytes;  // 128 rows x 256 columns
inline constexpr int kSlabCols = 64;
inline constexpr int kSlabCodeBytes = 512;
inline constexpr int kSlabScaleBytes = 64;

/// Products of decoded weights are w · s · 2^-7: what is multiplied back in, in FP32.
inline constexpr float kPackedUnit = 128.0f;

QT_HOST_DEVICE inline int padded_to(int n, int multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

/// One packed matrix; `rows` and `cols` are those of the matrix, without padding.
struct PackedShape {
  int rows = 0;
  int cols = 0;
  QT_HOST_DEVICE int row_tiles() const { return padded_to(rows, kTileRows) / kTileRows; }
  QT_HOST_DEVICE int col_chunks() const { return padded_to(cols, kChunkCols) / kChunkCols; }
  QT_HOST_DEVICE std::int64_t bytes() const {
    return std::int64_t{row_tiles()} * col_chunks() * kTileBytes;
  }
};

/// The first projection has gate and up for every hidden column, and hidden columns are padded as
/// the second projection's columns are.
QT_HOST_DEVICE inline PackedShape first_projection(int hidden, int inner) {
  return {2 * padded_to(inner, kChunkCols), hidden};
}
QT_HOST_DEVICE inline PackedShape second_projection(int hidden, int inner) {
  return {hidden, inner};
}

enum class PackedRows : std::uint8_t { kPlain, kGate, kUp };

/// The packed row of row `row` of a matrix.
QT_HOST_DEVICE inline int packed_row(PackedRows kind, int row) {
  if (kind == PackedRows::kPlain) return row;
  return row / 8 * 16 + row % 8 + (kind == PackedRows::kUp ? 8 : 0);
}

/// Byte offset of the chunk that holds (row, col).
QT_HOST_DEVICE inline std::int64_t chunk_offset(const PackedShape& shape, int row, int col) {
  const std::int64_t tile = std::int64_t{row / kTileRows} * shape.col_chunks() + col / kChunkCols;
  return tile * kTileBytes + row % kTileRows / kChunkRows * kChunkBytes;
}

/// Number of the 16 x 64 slab of (row, col) within its chunk.
QT_HOST_DEVICE inline int slab_of(int row, int col) {
  return row % kChunkRows / 16 * 4 + col % kChunkCols / kSlabCols;
}

/// Where the code of (row, col) lies: the byte offset of the words of its two atoms, which of these
/// is its own, the half of the words, and its place in the quad.
struct CodePlace {
  std::int64_t words = 0;
  int atom = 0;
  int half = 0;
  int member = 0;
};
QT_HOST_DEVICE inline CodePlace code_place(const PackedShape& shape, int row, int col) {
  const int lane = row % 8 * 4 + col % 8 / 2;
  const int pair = col % kSlabCols / 32;
  return {chunk_offset(shape, row, col) + slab_of(row, col) * kSlabCodeBytes + lane * 16 + pair * 8,
          col % 32 / 16, col % 2, row % 16 / 8 + col % 16 / 8 * 2};
}

/// Byte offset of the scale of columns [16 block, 16 block + 16) of a row.
QT_HOST_DEVICE inline std::int64_t scale_place(const PackedShape& shape, int row, int block) {
  const int col = block * 16;
  return chunk_offset(shape, row, col) + kChunkCodeBytes + slab_of(row, col) * kSlabScaleBytes +
         row % 8 * 8 + row % 16 / 8 * 4 + block % 4;
}

/// Bits of one half of the words of two atoms.
struct QuadBits {
  std::uint32_t even = 0, odd = 0;
};

/// The bits of E2M1 code `code` as member `member` of the quad of atom `atom`, 0 or 1, of a pair.
QT_HOST_DEVICE inline QuadBits quad_bits(int atom, int member, std::uint32_t code) {
  const std::uint32_t sign = code >> 3 & 1u, magnitude = code & 7u;
  if (member < 3) {
    const std::uint32_t bits = (sign << 15 | magnitude << 6) >> (3 * member);
    return atom == 0 ? QuadBits{bits, 0} : QuadBits{0, bits};
  }
  const int down = 3 * atom;
  return {(sign << 14 | (magnitude & 1u) << 13) >> down, magnitude >> 1 << 13 >> down};
}

/// The bits in a word for FP8 of the E2M1 code `code` at a place.
QT_HOST_DEVICE inline std::uint32_t fp8_bits(int half, int member, std::uint32_t code) {
  const int row = member % 2, column = half * 2 + member / 2;
  return (code & 7u) << (4 * (4 * row + column)) | (code >> 3 & 1u) << (8 * column + 7 - 4 * row);
}

/// Where column `col` of FP8 inputs lies in its row: the order that words have within 16 columns.
QT_HOST_DEVICE constexpr int fp8_input_place(int col) {
  return col / 16 * 16 + col % 8 / 2 * 4 + col % 2 * 2 + col % 16 / 8;
}

/// The packed scale of 2^k.
QT_HOST_DEVICE inline std::uint8_t packed_power(int k) {
  return static_cast<std::uint8_t>((k + 15) * 8);
}
/// The place of a block's table, from the block's exponent and its row's top.
QT_HOST_DEVICE inline std::uint8_t fp8_table_place(int k, int top) {
  return static_cast<std::uint8_t>((k - top + 14) * 8);
}

/// The packed byte of |scale|: exponent and three mantissa bits of its F16, so that one
/// multiply-add makes the BF16 of s · 2^119. NaN becomes a byte that decodes to NaN. Signs and
/// zeros of scales go into the codes, as the BF16 has neither.
QT_HOST_DEVICE inline std::uint8_t packed_scale(std::uint8_t e4m3) {
  const std::uint8_t magnitude = e4m3 & 0x7Fu;
  if (magnitude == 0x7Fu) return 0xC1u;
  return static_cast<std::uint8_t>(f16_encode(e4m3_decode(magnitude)) >> 7);
}

/// `codes` (any number of nibbles) with the sign of their scale folded in; zero for a zero scale.
QT_HOST_DEVICE inline std::uint32_t signed_codes(std::uint32_t codes, std::uint8_t e4m3) {
  if ((e4m3 & 0x7Fu) == 0) return 0;
  return (e4m3 & 0x80u) != 0 ? codes ^ 0x88888888u : codes;
}

}  // namespace quatrain::cuda

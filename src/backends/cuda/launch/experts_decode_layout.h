// SPDX-License-Identifier: Apache-2.0
// Inputs and shared memory of the decode kernel.
#pragma once

#include "backends/cuda/launch/experts_config.h"
#include "backends/cuda/launch/experts_layout.h"

namespace quatrain::cuda {

/// Warps that stream weights, and what each has of them at a time: units of 32 rows, a group, by
/// one chunk of columns. A warp keeps two of them under way.
inline constexpr int kStreamWarps = 16;
inline constexpr int kGroupRows = kChunkRows;
inline constexpr int kGroupSlabs = kGroupRows / 16;
inline int groups_of(const PackedShape& shape) {
  return padded_to(shape.rows, kGroupRows) / kGroupRows;
}
inline constexpr int kRingBytes = 2 * kChunkBytes;

/// Rounds of the stream, a unit of each warp, whose sums may wait to be added up.
QT_HOST_DEVICE constexpr int decode_sum_rounds(int tile_tokens) { return tile_tokens == 8 ? 3 : 2; }
/// Every block converts the inputs for itself while they take no more than this; blocks share the
/// work otherwise.
inline constexpr int kMostOwnInputBytes = 28672;
inline int decode_own_input_bytes(const ExpertsProblem& p, int tile_tokens) {
  if (tile_tokens > 8) return 0;
  const std::int64_t bytes = std::int64_t{p.tokens} * p.parts * padded_to(p.hidden, kChunkCols) * 2;
  return bytes <= kMostOwnInputBytes ? static_cast<int>(bytes) : 0;
}
/// What the warps of a block share beside that.
inline constexpr int kDecodeStateBytes = 256;
/// Warps that add up sums, a group each in turns.
inline constexpr int kAdders = 2;
/// Warps of a block, whole warpgroups: after the adders one that watches over the inputs and one
/// that fetches weights.
inline constexpr int kDecodeWarps = 20;

/// Where column `col` of a row's first part lies, in elements; further parts follow at multiples of
/// a chunk. Within 32 columns the order is that of the right operands of two atoms: lane t's eight
/// numbers, columns 2t, 2t + 1, 2t + 8, 2t + 9 and those 16 later, follow each other.
QT_HOST_DEVICE constexpr int decode_input_place(int col, int parts) {
  const int chunk = col / kChunkCols * (parts * kChunkCols);
  const int lane = col % 8 / 2;
  return chunk + col % kChunkCols / 32 * 32 + lane * 8 + col % 32 / 16 * 4 + col % 16 / 8 * 2 +
         col % 2;
}

inline DecodeLayout decode_layout(const ExpertsProblem& p, int tile_tokens) {
  const int slots = p.tokens * p.k;
  const int passes = p.experts + slots / tile_tokens;
  DecodeLayout at = {};
  at.sums = kStreamWarps * kRingBytes;
  const int rounds = decode_sum_rounds(tile_tokens);
  at.own_inputs = at.sums + rounds * kStreamWarps * kGroupSlabs * (tile_tokens / 8) * 32 * 16;
  at.barriers = at.own_inputs + decode_own_input_bytes(p, tile_tokens);
  at.tiles = at.barriers + 8 * (rounds * (kStreamWarps + 1) + 4 * kStreamWarps);
  at.tiles = padded_to(at.tiles, 16);
  at.sorted = at.tiles + 8 * (passes < slots ? passes : slots);
  at.ids = at.sorted + padded_to(2 * slots, 16);
  at.ranks = at.ids + padded_to(2 * slots, 16);
  at.offsets = at.ranks + padded_to(2 * slots, 16);
  at.state = padded_to(at.offsets + 4 * p.experts, 16);
  at.bytes = at.state + kDecodeStateBytes;
  return at;
}

}  // namespace quatrain::cuda

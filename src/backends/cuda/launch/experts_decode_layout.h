// SPDX-License-Identifier: Apache-2.0
// Shared memory of the decode kernel: sized on the host, laid out the same way on the device.
#pragma once

#include "backends/cuda/launch/experts_config.h"
#include "backends/cuda/launch/experts_layout.h"

namespace quatrain::cuda {

/// Chunks of one piece, the smallest part of a sum that one block computes alone.
inline constexpr int kPieceChunks = 2;

/// Bytes from a token's inputs to the next one's: a chunk's columns in each part, and 16 bytes that
/// move consecutive tokens to other banks.
QT_HOST_DEVICE constexpr int decode_token_stride(int parts) { return parts * kChunkCols * 2 + 16; }
/// One buffer of the ring: a chunk of 128 rows and the inputs it meets.
QT_HOST_DEVICE constexpr int decode_stage_bytes(int tile_tokens, int parts) {
  return kTileBytes + tile_tokens * decode_token_stride(parts);
}

/// Byte offsets into shared memory; the ring starts at 0.
struct DecodeLayout {
  int halves;  // sums of the warps that take every second chunk
  int barriers;
  int tiles, sorted, ranks, offsets, tile_count;
  int bytes;
  int max_pieces;  // of a row tile, in either projection
};

QT_HOST_DEVICE inline DecodeLayout decode_layout(const ExpertsProblem& p, int tile_tokens,
                                                 int stages) {
  const int slots = p.tokens * p.k;
  const int passes = p.experts + slots / tile_tokens;
  const int chunks = p.hidden > p.inner ? p.hidden : p.inner;
  DecodeLayout at = {};
  at.halves = stages * decode_stage_bytes(tile_tokens, p.parts);
  at.barriers = at.halves + 8 * 32 * 16 * (tile_tokens / 8);
  at.tiles = at.barriers + 2 * 8 * stages;
  at.sorted = at.tiles + 8 * (passes < slots ? passes : slots);
  at.ranks = at.sorted + padded_to(2 * slots, 16);
  at.offsets = at.ranks + padded_to(2 * slots, 16);
  at.tile_count = at.offsets + 4 * p.experts;
  at.bytes = padded_to(at.tile_count + 4, 16);
  at.max_pieces = padded_to(chunks, kPieceChunks * kChunkCols) / (kPieceChunks * kChunkCols);
  return at;
}

}  // namespace quatrain::cuda

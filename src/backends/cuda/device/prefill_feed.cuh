// SPDX-License-Identifier: Apache-2.0
// The feeding half of the experts' prefill kernel: one warp with bulk copies of packed weights,
// three with the tokens' rows, gathered as they are copied.
#pragma once

#include "backends/cuda/device/prefill_tiles.cuh"
#include "backends/cuda/device/warp_arrival.cuh"
#include "core/fp8_activations.h"

namespace quatrain::cuda::prefill {

__device__ inline void fetch_weights(const PrefillArgs& args, const Projection& p,
                                     const Shared& shared) {
  if (lane_id() != 0) return;
  RingPosition at;
  for (TileWalk walk(args, p); walk.more(); walk.next()) {
    const int expert = walk.tile().expert, row_tile = walk.row_tile();
    // A tile past the last one repeats it; nobody stores its results.
    const std::uint8_t* from[kRowTiles];
    for (int r = 0; r < kRowTiles; ++r)
      from[r] = p.weights + expert * p.expert_bytes +
                std::int64_t{min(row_tile + r, p.row_tiles - 1)} * p.chunks * kTileBytes;
    for (int c = 0; c < p.chunks; ++c, at.next(kWeightStages)) {
      barrier_wait(shared.weights_empty + at.at, at.parity ^ 1u);
      barrier_expect(shared.weights_full + at.at, kWeightStageBytes);
      for (int r = 0; r < kRowTiles; ++r)
        bulk_copy(shared.base + kWeightsAt + at.at * kWeightStageBytes + r * kTileBytes,
                  from[r] + c * kTileBytes, kTileBytes, shared.weights_full + at.at);
    }
  }
}

// A warp of the gather fills in the tokens that it copies itself: every 12th and the three after.
__device__ inline void fill_table(const PrefillArgs& args, const PassTile& tile, int row_pieces,
                                  TokenTable& table) {
  const int own = warp_id() % 4 * kWarpRows;
  for (int i = lane_id(); i < kWarpRows * kGatherSteps; i += kWarp) {
    const int first = own + i % kWarpRows, step = i / kWarpRows;
    const int n = first + step * kGatherStep;
    // Columns past the count repeat the last token; nobody looks at their sums.
    const int slot = args.sorted[tile.first + min(n, tile.count - 1)];
    const int row = args.inputs.slots_per_row.quotient(slot);
    const float* scales = args.inputs.row_scales;
    table.offsets[first][step] = static_cast<unsigned>(row) * static_cast<unsigned>(row_pieces);
    if (n >= kWidestPass) continue;
    table.slots[n] = n < tile.count ? slot : -1;
    table.units[n] = kPackedUnit * (scales != nullptr ? scales[row] : 1.0f);
    table.weights[n] = args.routed.weight_first ? args.routed.weights[slot] : 1.0f;
  }
  __syncwarp();
}

// from + n, by one instruction: the compiler would add what `from` is made of anew.
__device__ inline const uint4* pieces_behind(const uint4* from, unsigned n) {
  const uint4* to;
  asm("mad.wide.u32 %0, %1, 16, %2;" : "=l"(to) : "r"(n), "l"(from));
  return to;
}

// A piece of the nth token of a thread, which has every 12th; `to` is the first one's place. At
// every step the piece moves by 64 bytes in the swizzle.
__device__ inline void copy_piece(std::uint32_t to, int nth, const uint4* from) {
  copy16((to ^ (nth % 2 * 64)) + nth * kGatherStep * 128, from);
}

// One piece of 64 columns of `count` tokens.
__device__ inline void gather_slab(const uint4* from, const unsigned (&offsets)[kGatherSteps],
                                   int count, std::uint32_t to) {
  constexpr int kBatch = 4;
#pragma unroll
  for (int begin = 0; begin < kGatherSteps; begin += kBatch) {
    if (begin >= count) break;
    const uint4 four = *reinterpret_cast<const uint4*>(offsets + begin);
    const unsigned of[kBatch] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
      if (begin + i < count) copy_piece(to, begin + i, pieces_behind(from, of[i]));
  }
}

// The scales of the tokens that a warp of the gather fills in and copies, two of them to a lane, of
// a chunk that was asked for during the one before.
class TokenScales {
 public:
  __device__ TokenScales(const float* scales, const TokenTable& table, int width) {
    const int own = warp_id() % 4 * kWarpRows;
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      const int at = lane_id() + i * kWarp, first = own + at % kWarpRows, step = at / kWarpRows;
      const int n = first + step * kGatherStep;
      token_[i] = step < kGatherSteps && n < width ? n : -1;
      // A row has as many scales as eighths of its pieces.
      from_[i] = scales + (token_[i] >= 0 ? table.offsets[first][step] / 8 : 0);
    }
    load();
  }
  __device__ void load() {
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      if (token_[i] >= 0) of_chunk_[i] = __ldg(reinterpret_cast<const float2*>(from_[i]));
      from_[i] += 2;
    }
  }
  __device__ void store(float* to, int half) const {
#pragma unroll
    for (int i = 0; i < kTokens; ++i)
      if (token_[i] >= 0) to[token_[i]] = half == 0 ? of_chunk_[i].x : of_chunk_[i].y;
  }

 private:
  static constexpr int kTokens = (kWarpRows * kGatherSteps + kWarp - 1) / kWarp;
  const float* from_[kTokens];
  int token_[kTokens];  // −1 for none
  float2 of_chunk_[kTokens];
};

// All columns of a tile's tokens, kSlabs slabs of 64 to a stage. Where the pieces of the chunk at
// hand are stays in registers; its slabs are a constant distance from each other, which copies add
// by themselves.
template <int kSlabs>
__device__ __forceinline__ void gather_tile(const uint4* from,
                                            const unsigned (&offsets)[kGatherSteps], int chunks,
                                            int width, int count, int place, const Shared& shared,
                                            RingPosition& at) {
  constexpr int kSteps = (kWidestPass / kSlabs + kGatherStep - 1) / kGatherStep;
  const uint4* pieces[kSteps];
#pragma unroll
  for (int i = 0; i < kSteps; ++i) pieces[i] = from + offsets[i];
#pragma unroll 1
  for (int chunk = 0; chunk < chunks; ++chunk) {
#pragma unroll
    for (int slab = 0; slab < kChunkCols / kSlabCols; ++slab) {
      if (slab % kSlabs == 0) barrier_wait(shared.tokens_empty + at.at, at.parity ^ 1u);
      const std::uint32_t to = shared.tokens(at.at) + place + slab % kSlabs * width * 128;
#pragma unroll
      for (int i = 0; i < kSteps; ++i)
        if (i < count) copy_piece(to, i, pieces[i] + slab * (kSlabCols / 8));
      if (slab % kSlabs < kSlabs - 1) continue;
      arrive_when_copied(shared.tokens_full + at.at);
      at.next(kTokenStages);
    }
#pragma unroll
    for (int i = 0; i < kSteps; ++i) pieces[i] += kChunkCols / 8;
  }
}

// The same of several parts, whose products take longer.
__device__ __forceinline__ void gather_parts(const uint4* from,
                                             const unsigned (&offsets)[kGatherSteps], int parts,
                                             int chunks, int width, int count, int place,
                                             const Shared& shared, RingPosition& at) {
  const int slabs = slabs_per_stage(width);
  for (int slab = 0; slab < chunks * (kChunkCols / kSlabCols); slab += slabs)
    for (int part = 0; part < parts; ++part, at.next(kTokenStages)) {
      barrier_wait(shared.tokens_empty + at.at, at.parity ^ 1u);
      const std::uint32_t to = shared.tokens(at.at) + place;
      for (int s = 0; s < slabs; ++s)
        gather_slab(from + part * chunks * (kChunkCols / 8) + (slab + s) * (kSlabCols / 8), offsets,
                    count, to + s * width * 128);
      arrive_when_copied(shared.tokens_full + at.at);
    }
}

template <int kParts>
__device__ inline void fetch_tokens(const PrefillArgs& args, const Projection& p,
                                    const Shared& shared) {
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
  const int piece = thread % 8, first = thread / 8;
  const int place = first * 128 + ((piece ^ first % 8) << 4);
  const auto* from = reinterpret_cast<const uint4*>(args.inputs.values) + piece;
  RingPosition at, table_at;
  for (TileWalk walk(args, p); walk.more(); walk.next()) {
    const PassTile tile = walk.tile();
    barrier_wait(shared.table_empty + table_at.at, table_at.parity ^ 1u);
    TokenTable& table = shared.table(table_at.at);
    fill_table(args, tile, kParts * p.chunks * (kChunkCols / 8), table);
    barrier_arrive(shared.table_full + table_at.at);
    table_at.next(kTableStages);
    const auto& offsets = table.offsets[first];
    const int width = width_of(tile);
    const int count = (width - first + kGatherStep - 1) / kGatherStep;
    if constexpr (kParts > 1)
      gather_parts(from, offsets, kParts, p.chunks, width, count, place, shared, at);
    else if (slabs_per_stage(width) > 1)
      gather_tile<2>(from, offsets, p.chunks, width, count, place, shared, at);
    else
      gather_tile<1>(from, offsets, p.chunks, width, count, place, shared, at);
  }
  wait_for_copies();  // none may outlive the block
}

// As fetch_tokens, of FP8 codes: a stage has 128 columns and their scales.
__device__ inline void fetch_fp8_tokens(const PrefillArgs& args, const Fp8Rows& rows,
                                        const Projection& p, const Shared& shared,
                                        float* token_scales) {
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
  const int piece = thread % 8, first = thread / 8;
  const int place = first * 128 + ((piece ^ first % 8) << 4);
  constexpr int kHalves = kChunkCols / kFp8ActivationBlock;
  RingPosition at, table_at;
  for (TileWalk walk(args, p); walk.more(); walk.next()) {
    const PassTile tile = walk.tile();
    barrier_wait(shared.table_empty + table_at.at, table_at.parity ^ 1u);
    TokenTable& table = shared.table(table_at.at);
    fill_table(args, tile, p.chunks * (kChunkCols / 16), table);
    barrier_arrive(shared.table_full + table_at.at);
    table_at.next(kTableStages);
    const int width = width_of(tile);
    const int count = (width - first + kGatherStep - 1) / kGatherStep;
    TokenScales scales(rows.scales, table, width);
    for (int chunk = 0; chunk < p.chunks; ++chunk) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half, at.next(kTokenStages)) {
        barrier_wait(shared.tokens_empty + at.at, at.parity ^ 1u);
        scales.store(token_scales + at.at * kWidestFp8Pass, half);
        warp_arrive(shared.tokens_full + at.at);
        const std::uint8_t* codes = rows.codes + (chunk * kHalves + half) * kFp8ActivationBlock;
        gather_slab(reinterpret_cast<const uint4*>(codes) + piece, table.offsets[first], count,
                    shared.tokens(at.at) + place);
        arrive_when_copied(shared.tokens_full + at.at);
      }
      if (chunk + 1 < p.chunks) scales.load();
    }
  }
  wait_for_copies();  // none may outlive the block
}

}  // namespace quatrain::cuda::prefill

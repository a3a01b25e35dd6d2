// SPDX-License-Identifier: Apache-2.0
// The feeding half of the experts' prefill kernel for wide tiles: three warps gather the tokens'
// codes as they copy them, the fourth brings all else.
#pragma once

#include "backends/cuda/device/prefill_feed.cuh"
#include "backends/cuda/device/wide_tiles.cuh"

namespace quatrain::cuda::prefill::wide {

/// The row tile of this block: the second one of a cluster may be past the last and then repeats
/// it; nobody stores its results.
__device__ inline int own_row_tile(const TileWalk& walk, const Projection& p) {
  return min(walk.row_tile() + static_cast<int>(cluster_rank()), p.row_tiles - 1);
}

/// One warp: the table of every tile, its packed weights, and the scales of its tokens, of which
/// each lane has every 32nd and asks for a chunk ahead.
class Supplier {
 public:
  __device__ Supplier(const Fp8PrefillArgs& args, const Projection& p, Shared& shared)
      : args_(args), p_(p), shared_(shared) {}

  __device__ void run() {
    for (TileWalk walk(args_.common, p_, cluster_index(), cluster_count()); walk.more();
         walk.next()) {
      const PassTile tile = walk.tile();
      fill_table(tile);
      load_scales(0);
      const std::uint8_t* from = p_.weights + tile.expert * p_.expert_bytes +
                                 std::int64_t{own_row_tile(walk, p_)} * p_.chunks * kTileBytes;
      for (int chunk = 0; chunk < p_.chunks; ++chunk) {
        copy_weights(from + chunk * kTileBytes);
        store_scales(0);
        store_scales(1);
        if (chunk + 1 < p_.chunks) load_scales(chunk + 1);
      }
    }
  }

 private:
  static constexpr int kBlocksOfChunk = kChunkCols / kFp8ActivationBlock;

  __device__ void fill_table(const PassTile& tile) {
    barrier_wait(shared_.table_empty + table_.at, table_.parity ^ 1u);
    TokenTable& table = shared_.table[table_.at];
#pragma unroll
    for (int i = 0; i < kSupplyTokens; ++i) {
      const int n = lane_id() + i * kWarp;
      if (n >= kWidestWidePass) break;
      const int slot = args_.common.sorted[tile.first + min(n, tile.count - 1)];
      const int row = args_.common.inputs.slots_per_row.quotient(slot);
      table.rows[n] = static_cast<unsigned>(row);
      table.slots[n] = n < tile.count ? slot : -1;
    }
    rows_ = table.rows + lane_id();
    warp_arrive(shared_.table_full + table_.at);
    table_.next(kTableStages);
  }

  __device__ void copy_weights(const std::uint8_t* from) {
    if (lane_id() == 0) {
      barrier_wait(shared_.weights_empty + weights_.at, weights_.parity ^ 1u);
      barrier_expect(shared_.weights_full + weights_.at, kTileBytes);
      bulk_copy(shared_.weights[weights_.at], from, kTileBytes, shared_.weights_full + weights_.at);
    }
    __syncwarp();
    weights_.next(kWeightStages);
  }

  __device__ void load_scales(int chunk) {
    const auto* from = reinterpret_cast<const float2*>(args_.inputs.scales) + chunk;
    static_assert(kBlocksOfChunk == 2);
#pragma unroll
    for (int i = 0; i < kSupplyTokens; ++i)
      if (lane_id() + i * kWarp < kWidestWidePass)
        scales_[i] = __ldg(from + rows_[i * kWarp] * static_cast<unsigned>(p_.chunks));
  }
  __device__ void store_scales(int block) {
    barrier_wait(shared_.tokens_empty + tokens_.at, tokens_.parity ^ 1u);
    float* to = shared_.scales[tokens_.at];
#pragma unroll
    for (int i = 0; i < kSupplyTokens; ++i) {
      const int n = lane_id() + i * kWarp;
      if (n < kWidestWidePass) to[n] = block == 0 ? scales_[i].x : scales_[i].y;
    }
    warp_arrive(shared_.tokens_full + tokens_.at);
    tokens_.next(kTokenStages);
  }

  const Fp8PrefillArgs& args_;
  const Projection& p_;
  Shared& shared_;
  RingPosition weights_, tokens_, table_;
  const unsigned* rows_ = nullptr;  // of this lane's tokens
  float2 scales_[kSupplyTokens] = {};
};

/// Three warps: a piece of 16 bytes of every 12th token for each thread. Where the pieces are stays
/// in registers.
__device__ inline void gather_tokens(const Fp8PrefillArgs& args, const Projection& p,
                                     Shared& shared) {
  const int warp = uniform_warp_id() % 4, lane = lane_id();
  const int piece = lane % 8, first = warp * kWarpRows + lane / 8;
  const int place = first * 128 + ((piece ^ first % 8) << 4);
  RingPosition at, table_at;
  for (TileWalk walk(args.common, p, cluster_index(), cluster_count()); walk.more(); walk.next()) {
    const int width = kHalves * half_of(walk.tile());
    // The four tokens of a warp's copy are there together, or not.
    const int count = (width - warp * kWarpRows + kGatherStep - 1) / kGatherStep;
    barrier_wait(shared.table_full + table_at.at, table_at.parity);
    unsigned offsets[kGatherSteps];  // in pieces
#pragma unroll
    for (int i = 0; i < kGatherSteps; ++i)
      if (i < count)
        offsets[i] = shared.table[table_at.at].rows[first + i * kGatherStep] *
                     static_cast<unsigned>(p.chunks * (kChunkCols / 16));
    warp_arrive(shared.table_empty + table_at.at);
    table_at.next(kTableStages);
    const auto* from = reinterpret_cast<const uint4*>(args.inputs.codes) + piece;
#pragma unroll 1
    for (int chunk = 0; chunk < p.chunks; ++chunk, from += kChunkCols / 16) {
#pragma unroll
      for (int block = 0; block < kChunkCols / kFp8Columns; ++block) {
        barrier_wait(shared.tokens_empty + at.at, at.parity ^ 1u);
        const std::uint32_t to =
            shared_address(shared.tokens[at.at]) + static_cast<unsigned>(place);
#pragma unroll
        for (int i = 0; i < kGatherSteps; ++i) {
          if (i >= count) break;
          copy_piece(to, i, pieces_behind(from, offsets[i]) + block * (kFp8Columns / 16));
        }
        arrive_when_copied(shared.tokens_full + at.at);
        at.next(kTokenStages);
      }
    }
  }
  wait_for_copies();  // none may outlive the block
}

}  // namespace quatrain::cuda::prefill::wide

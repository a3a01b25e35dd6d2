// SPDX-License-Identifier: Apache-2.0
// The shared memory of a block of attention over latents, and the softmax sums of a range of tiles
// of keys, which its two warp groups make together.
#pragma once

#include <cmath>

#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/latent_keys.cuh"
#include "backends/cuda/device/latent_queries.cuh"
#include "backends/cuda/device/latent_results.cuh"
#include "backends/cuda/device/row_math.cuh"
#include "backends/cuda/device/wgmma_f16.cuh"
#include "backends/cuda/launch/attention.h"

namespace quatrain::cuda::latent {

struct Shared {
  unsigned char q[kTileBytes];
  union {
    struct {
      unsigned char keys[2][kTileBytes];
      unsigned char weights[kHeads * kPanelRowBytes];
    };
    float out[kHeads][kOutStride];  // sums or results of the block
  };
  float largest[2][kHeads];
  float total[2][kHeads];
  float part_largest[2][kHeads];  // of this block's parts
  float part_total[2][kHeads];
  float2 turns[kMostPairs];        // of the output's trailing pairs
  float2 query_turns[kMostPairs];  // of the queries'
};
static_assert(kHeads == kTileKeys, "queries and keys have panels of one size");
static_assert(sizeof(float) * kHeads * kOutStride <= 2 * kTileBytes + kHeads * kPanelRowBytes);

// ---- softmax and sums of a range of tiles ----

// Of one thread: the rows l / 4 and l / 4 + 8 of its warp's sixteen. Scores are in units of log 2.
struct Sums {
  // Columns of the warp group, as wgmma_f16.cuh lays them out. Undefined before the first tile.
  float out[kWidth / 4];
  float largest[2];
  float total[2];  // of the keys that this thread weighs
};

__device__ inline int group_id() { return warp_id() / kGroupWarps; }
// First of the two rows of this thread.
__device__ inline int first_row() { return warp_id() % kGroupWarps * 16 + lane_id() / 4; }

// scores = q keysᵀ for the half of the tile that this warp group scores; returns at once.
__device__ inline void begin_scores(const Shared& shared, const unsigned char* stage,
                                    float (&scores)[16]) {
  constexpr int kStride = 8 * kPanelRowBytes;
  const std::uint32_t q = shared_address(shared.q);
  const std::uint32_t keys = shared_address(stage) + group_id() * (kTileBytes / 16);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kWidth / 16; ++k) {
    const int at = k / 4 * kPanelBytes + k % 4 * 32;
    wgmma_f16<32>(scores, operand(q + at, 16, kStride), operand(keys + at, 16, kStride), k > 0);
  }
  wgmma_commit();
}

// Turns scores into weights, for both warp groups, and rescales the sums. Products and sums are
// rounded as they are written, so that attention_latent_few.cu has the same.
__device__ inline void weigh(Shared& shared, const float (&scores)[16], int present, float scale,
                             Sums& sums) {
  float scaled[16];
  float best[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int key = 32 * group_id() + i / 4 * 8 + 2 * (lane_id() % 4) + i % 2;
    scaled[i] = key < present ? __fmul_rn(scores[i], scale) : -INFINITY;
    best[i / 2 % 2] = fmaxf(best[i / 2 % 2], scaled[i]);
  }
  float factor[2];
  bool grows = false;  // a maximum that sums were made with
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    best[h] = quad_max(best[h]);
    if (lane_id() % 4 == 0) shared.largest[group_id()][first_row() + 8 * h] = best[h];
  }
  __syncthreads();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float other = shared.largest[1 - group_id()][first_row() + 8 * h];
    const float largest = fmaxf(sums.largest[h], fmaxf(best[h], other));
    factor[h] = weight_of(sums.largest[h] - largest);
    grows |= factor[h] != 1.0f && sums.largest[h] != -INFINITY;
    sums.largest[h] = largest;
  }
#pragma unroll
  for (int i = 0; i < 16; i += 2) {
    const int h = i / 2 % 2;
    const float a = weight_of(scaled[i] - sums.largest[h]);
    const float b = weight_of(scaled[i + 1] - sums.largest[h]);
    sums.total[h] = fmaf(sums.total[h], i < 4 ? factor[h] : 1.0f, __fadd_rn(a, b));
    const int chunk = 4 * group_id() + i / 4;
    *reinterpret_cast<std::uint32_t*>(shared.weights + panel_offset(first_row() + 8 * h, chunk) +
                                      4 * (lane_id() % 4)) = f16_pair(a, b);
  }
  if (__any_sync(kAllLanes, grows)) {
#pragma unroll
    for (int i = 0; i < kWidth / 4; ++i) sums.out[i] *= factor[i / 2 % 2];
  }
}

// sums.out (+)= weights · values for the columns of this warp group.
__device__ inline void add_values(const Shared& shared, const unsigned char* stage, bool accumulate,
                                  Sums& sums) {
  constexpr int kStride = 8 * kPanelRowBytes;
  const std::uint32_t weights = shared_address(shared.weights);
  const std::uint32_t values = shared_address(stage) + group_id() * (kTileBytes / 2);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kTileKeys / 16; ++k)
    wgmma_m64n256_rows(sums.out, operand(weights + 32 * k, 16, kStride),
                       operand(values + 16 * kPanelRowBytes * k, kPanelBytes, kStride),
                       accumulate || k > 0);
  wgmma_commit();
  wgmma_wait<0>();
}

// The softmax sums of the tiles [begin, end) of row r for `heads` heads with queries at q; null
// where they are in shared memory already.
template <CacheFormat kFormat>
__device__ void sum_tiles(const AttendArgs& args, Shared& shared, const RowKeys& keys, int r,
                          const float* q, int heads, int begin, int end, float scale, Sums& sums) {
  const RowSources sources(args, keys, r);
  // Of the warp's keys in the kSourceTiles tiles from `tile` on, a lane each.
  const auto sources_of = [&](int tile) {
    return sources.of((tile + lane_id() / kKeysPerWarp) * kTileKeys + warp_id() * kKeysPerWarp +
                      lane_id() % kKeysPerWarp);
  };
  Source now = sources_of(begin), later = 0;
  const auto load = [&](int tile) {
    const int at = tile - begin;
    load_keys<kFormat>(now, at % kSourceTiles * kKeysPerWarp, shared.keys[at & 1]);
  };
  if (begin < end) {
    load(begin);
    if (begin + 1 < end) load(begin + 1);
    if (q != nullptr) load_queries(args, q, heads, shared.query_turns, shared.q);
    if (begin + kSourceTiles < end) later = sources_of(begin + kSourceTiles);
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    sums.largest[h] = -INFINITY;
    sums.total[h] = 0;
  }
  for (int tile = begin; tile < end; ++tile) {
    const unsigned char* stage = shared.keys[(tile - begin) & 1];
    if (tile == begin && begin + 1 < end)
      wait_copies<1>();
    else
      wait_copies<0>();
    fence_operands();
    __syncthreads();  // the tile is there, and the other stage and the weights have been used
    if (tile == begin) let_next_start();  // which asks for weights behind the first keys
    float scores[16];
    begin_scores(shared, stage, scores);
    if (tile > begin && tile + 1 < end) {
      const bool is_last = (tile + 1 - begin) % kSourceTiles == kSourceTiles - 1;
      load(tile + 1);
      if (is_last) {
        now = later;
        later = sources_of(tile + 2 + kSourceTiles);
      }
    }
    wgmma_wait<0>();
    weigh(shared, scores, keys.count - tile * kTileKeys, scale, sums);
    fence_operands();
    __syncthreads();
    add_values(shared, stage, tile > begin, sums);
  }
}

}  // namespace quatrain::cuda::latent

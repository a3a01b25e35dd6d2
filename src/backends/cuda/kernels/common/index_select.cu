// SPDX-License-Identifier: Apache-2.0
// index_select: scores of the visible keys, then an exact top-k per row. Keys in FP32 are scored
// here in FP32; others on tensor cores (kernels/sm90a/index_scores.cu).
//
// Rows that see no more than topk keys need no scores; their blocks exit at once. The scratch holds
// the scores of `score_rows` rows, so longer steps take several passes of two kernels each.
#include <algorithm>
#include <cmath>

#include "backends/cuda/cuda_check.h"
#include "backends/cuda/device/cache_rows.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/sequence_view.cuh"
#include "backends/cuda/launch/attention.h"

namespace quatrain::cuda {
namespace {

// Tiles of 32 keys of one row; a lane per head, a warp per 8 keys ----

constexpr int kScoreWarps = 4;
constexpr int kScoreThreads = kScoreWarps * kWarp;
constexpr int kKeysPerWarp = 8;
constexpr int kTileKeys = kScoreWarps * kKeysPerWarp;
constexpr int kMaxTileBlocks = 512;               // of a row; beyond, blocks take several tiles
constexpr int kQueryStride = kMaxIndexWidth + 4;  // spreads the lanes' rows over the banks

struct ScoreTile {
  alignas(16) float keys[kTileKeys][kMaxIndexWidth];
  alignas(16) float queries[kWarp][kQueryStride];
};

// Keys begin … begin + 31 of the sequence to FP32; zeros from `visible` on.
__device__ void load_keys(ScoreTile& tile, const IndexSelectArgs& args, int slot, int begin,
                          int visible) {
  const PagedRows paged(args.batch, args.keys, slot);
  const int chunks = args.width / 8;
  for (int i = static_cast<int>(threadIdx.x); i < kTileKeys * chunks; i += kScoreThreads) {
    const int key = i / chunks;
    const int column = i % chunks * 8;
    float values[8] = {};
    if (begin + key < visible) load8(args.keys.rows, paged.row(begin + key), column, values);
    auto* to = reinterpret_cast<float4*>(&tile.keys[key][column]);
    to[0] = {values[0], values[1], values[2], values[3]};
    to[1] = {values[4], values[5], values[6], values[7]};
  }
}

// Queries of heads h … h + 31; zeros from the last head on.
__device__ void load_queries(ScoreTile& tile, const IndexSelectArgs& args, const float* q, int h) {
  const int chunks = args.width / 4;
  for (int i = static_cast<int>(threadIdx.x); i < kWarp * chunks; i += kScoreThreads) {
    const int head = i / chunks;
    const int column = i % chunks * 4;
    float4 value = {0, 0, 0, 0};
    if (h + head < args.heads)
      value = *reinterpret_cast<const float4*>(q + (h + head) * args.width + column);
    *reinterpret_cast<float4*>(&tile.queries[head][column]) = value;
  }
}

// totals[i] += weight · ReLU(q_lane · key_i) for the warp's keys.
__device__ void score_keys(const ScoreTile& tile, int width, float weight,
                           float (&totals)[kKeysPerWarp]) {
  float dots[kKeysPerWarp] = {};
  for (int d = 0; d < width; d += 4) {
    const float4 q = *reinterpret_cast<const float4*>(&tile.queries[lane_id()][d]);
#pragma unroll
    for (int i = 0; i < kKeysPerWarp; ++i) {
      const float4 k =
          *reinterpret_cast<const float4*>(&tile.keys[warp_id() * kKeysPerWarp + i][d]);
      dots[i] = fmaf(q.x, k.x, dots[i]);
      dots[i] = fmaf(q.y, k.y, dots[i]);
      dots[i] = fmaf(q.z, k.z, dots[i]);
      dots[i] = fmaf(q.w, k.w, dots[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kKeysPerWarp; ++i) totals[i] += weight * fmaxf(dots[i], 0.0f);
}

// Scores of the keys begin … begin + 31 of row r. Starts with a barrier, so that the previous tile
// has been used.
__device__ void score_tile(ScoreTile& tile, const IndexSelectArgs& args, int r, int begin,
                           int visible, float scale, float* scores) {
  __syncthreads();
  load_keys(tile, args, args.batch.slots[r], begin, visible);
  const float* q = args.q + std::int64_t{r} * args.heads * args.width;
  float totals[kKeysPerWarp] = {};
  for (int h = 0; h < args.heads; h += kWarp) {
    __syncthreads();  // the previous heads' queries have been used
    load_queries(tile, args, q, h);
    __syncthreads();
    const int head = h + lane_id();
    const float weight =
        head < args.heads ? args.weights[std::int64_t{r} * args.heads + head] * scale : 0.0f;
    score_keys(tile, args.width, weight, totals);
  }
#pragma unroll
  for (int i = 0; i < kKeysPerWarp; ++i) {
    const float score = warp_sum(totals[i]);
    const int w = begin + warp_id() * kKeysPerWarp + i;
    if (lane_id() == 0 && w < visible) scores[w] = score;
  }
}

// The grid covers the largest context; blocks beyond what a row can see have nothing to do.
__global__ void __launch_bounds__(kScoreThreads)
    score_kernel(IndexSelectArgs args, int first_row, float scale) {
  __shared__ ScoreTile tile;
  const int r = first_row + static_cast<int>(blockIdx.x);
  if (args.batch.slots[r] < 0) return;
  const int visible = (args.batch.positions[r] + 1) / args.keys.ratio;
  if (visible <= args.topk) return;
  float* scores = args.scores + std::int64_t{blockIdx.x} * args.score_columns;
  const int step = static_cast<int>(gridDim.y) * kTileKeys;
  for (int begin = static_cast<int>(blockIdx.y) * kTileKeys; begin < visible; begin += step)
    score_tile(tile, args, r, begin, visible, scale, scores);
}

}  // namespace

void index_select(const IndexSelectArgs& args, cudaStream_t stream) {
  const float scale =
      1.0f / std::sqrt(static_cast<float>(args.width) * static_cast<float>(args.heads));
  const bool may_need_scores = args.score_columns > args.topk;
  for (int first = 0; first < args.batch.rows; first += args.score_rows) {
    const auto rows = static_cast<unsigned>(std::min(args.score_rows, args.batch.rows - first));
    if (may_need_scores && has_index_scores_f16(args)) {
      index_scores_f16(args, first, static_cast<int>(rows), scale, stream);
    } else if (may_need_scores) {
      const int tiles = (args.score_columns + kTileKeys - 1) / kTileKeys;
      const dim3 grid(rows, static_cast<unsigned>(std::min(tiles, kMaxTileBlocks)));
      score_kernel<<<grid, kScoreThreads, 0, stream>>>(args, first, scale);
      QT_CUDA(cudaGetLastError());
    }
    top_k(args, first, static_cast<int>(rows), stream);
  }
}

}  // namespace quatrain::cuda

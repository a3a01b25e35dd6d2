// SPDX-License-Identifier: Apache-2.0
// index_select: scores of the visible keys, then an exact top-k per row.
//
// Rows that see no more than topk keys need no scores; their blocks exit at once. The scratch holds
// the scores of `score_rows` rows, so longer steps take several passes of two kernels each.
#include <algorithm>
#include <cmath>

#include "backends/cuda/cuda_check.h"
#include "backends/cuda/device/cache_rows.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/scalar.cuh"
#include "backends/cuda/device/sequence_view.cuh"
#include "backends/cuda/launch/attention.h"

namespace quatrain::cuda {
namespace {

// ---- scores: tiles of 32 keys of one row; a lane per head, a warp per 8 keys ----

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

// ---- top-k: a block per row; radix select, then compaction in order of index ----

constexpr int kSelectThreads = 1024;
constexpr int kSelectWarps = kSelectThreads / kWarp;
constexpr int kDigits = 256;

struct SelectState {
  int histogram[kDigits];
  int digit;
  int remaining;
  int larger[kSelectWarps];
  int equal[kSelectWarps];
};

// The digit of the `remaining`-th largest candidate, and how many of that digit are still wanted.
// By one warp: lane l owns eight digits, from 255 − 8l down.
__device__ void find_digit(SelectState& state, int remaining) {
  constexpr int kPerLane = kDigits / kWarp;
  const int top = kDigits - 1 - lane_id() * kPerLane;
  int own = 0;
  for (int i = 0; i < kPerLane; ++i) own += state.histogram[top - i];
  int before = own;  // inclusive prefix sum over lanes
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int other = __shfl_up_sync(kAllLanes, before, offset);
    if (lane_id() >= offset) before += other;
  }
  before -= own;
  for (int i = 0; i < kPerLane; ++i) {
    const int count = state.histogram[top - i];
    if (before < remaining && remaining <= before + count) {  // true for one digit of one lane
      state.digit = top - i;
      state.remaining = remaining - before;
    }
    before += count;
  }
}

struct Threshold {
  unsigned key;  // of the k-th largest score
  int equal;     // how many scores equal to it are selected
};

__device__ Threshold find_threshold(SelectState& state, const float* scores, int n, int k) {
  Threshold found = {0, k};
  unsigned known = 0;  // bits of the key that are settled
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = static_cast<int>(threadIdx.x); i < kDigits; i += kSelectThreads)
      state.histogram[i] = 0;
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < n; i += kSelectThreads) {
      const unsigned key = ordered_key(scores[i]);
      if (((key ^ found.key) & known) == 0)
        atomicAdd(&state.histogram[(key >> shift) & (kDigits - 1)], 1);
    }
    __syncthreads();
    if (warp_id() == 0) find_digit(state, found.equal);
    __syncthreads();
    found.key |= static_cast<unsigned>(state.digit) << shift;
    found.equal = state.remaining;
    known |= static_cast<unsigned>(kDigits - 1) << shift;
  }
  return found;
}

// selected = indices of all scores above the threshold and of the first ones equal to it,
// ascending.
__device__ void compact(SelectState& state, const float* scores, int n, Threshold threshold,
                        int* selected) {
  const unsigned lower_lanes = (1u << lane_id()) - 1;
  int larger_before = 0;  // among scores[0, begin)
  int equal_before = 0;
  for (int begin = 0; begin < n; begin += kSelectThreads) {
    const int i = begin + static_cast<int>(threadIdx.x);
    const unsigned key = i < n ? ordered_key(scores[i]) : 0;
    const bool is_larger = i < n && key > threshold.key;
    const bool is_equal = i < n && key == threshold.key;
    const unsigned larger = __ballot_sync(kAllLanes, is_larger);
    const unsigned equal = __ballot_sync(kAllLanes, is_equal);
    __syncthreads();  // the counts of the previous round have been read
    if (lane_id() == 0) {
      state.larger[warp_id()] = __popc(larger);
      state.equal[warp_id()] = __popc(equal);
    }
    __syncthreads();
    int my_larger = larger_before + __popc(larger & lower_lanes);
    int my_equal = equal_before + __popc(equal & lower_lanes);
    for (int w = 0; w < kSelectWarps; ++w) {
      if (w < warp_id()) {
        my_larger += state.larger[w];
        my_equal += state.equal[w];
      }
      larger_before += state.larger[w];
      equal_before += state.equal[w];
    }
    if (is_larger || (is_equal && my_equal < threshold.equal))
      selected[my_larger + min(my_equal, threshold.equal)] = i;
  }
}

__global__ void __launch_bounds__(kSelectThreads)
    select_kernel(IndexSelectArgs args, int first_row) {
  __shared__ SelectState state;
  const int r = first_row + static_cast<int>(blockIdx.x);
  int* selected = args.selected + std::int64_t{r} * args.topk;
  const int visible = args.batch.slots[r] < 0 ? 0 : (args.batch.positions[r] + 1) / args.keys.ratio;
  if (visible <= args.topk) {
    for (int i = static_cast<int>(threadIdx.x); i < args.topk; i += kSelectThreads)
      selected[i] = i < visible ? i : -1;
    return;
  }
  const float* scores = args.scores + std::int64_t{blockIdx.x} * args.score_columns;
  compact(state, scores, visible, find_threshold(state, scores, visible, args.topk), selected);
}

}  // namespace

void index_select(const IndexSelectArgs& args, cudaStream_t stream) {
  const float scale =
      1.0f / std::sqrt(static_cast<float>(args.width) * static_cast<float>(args.heads));
  const bool may_need_scores = args.score_columns > args.topk;
  for (int first = 0; first < args.batch.rows; first += args.score_rows) {
    const auto rows = static_cast<unsigned>(std::min(args.score_rows, args.batch.rows - first));
    if (may_need_scores) {
      const int tiles = (args.score_columns + kTileKeys - 1) / kTileKeys;
      const dim3 grid(rows, static_cast<unsigned>(std::min(tiles, kMaxTileBlocks)));
      score_kernel<<<grid, kScoreThreads, 0, stream>>>(args, first, scale);
      QT_CUDA(cudaGetLastError());
    }
    select_kernel<<<rows, kSelectThreads, 0, stream>>>(args, first);
    QT_CUDA(cudaGetLastError());
  }
}

}  // namespace quatrain::cuda

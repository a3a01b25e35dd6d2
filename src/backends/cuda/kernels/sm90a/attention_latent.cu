// SPDX-License-Identifier: Apache-2.0
// attend at the width of DeepSeek-V4's latents, 512: tensor-core products in F16 with FP32 sums.
//
// A block serves up to 64 heads of one row, the M of its products; keys are gathered in tiles of 64
// into two stages of shared memory and are keys and values at once. Both warp groups of the block
// score half of a tile each, exchange row maxima and probabilities, and accumulate half of the
// columns each.
//
// In layers with compressed entries, a row whose sequence brings at most kFewRows rows to the step
// (a decode step) is split over the blocks of a cluster, two of them or, where a sequence may have
// more than kFewTiles tiles, four; they combine through each other's shared memory. Every other row
// takes one block: a window has but two tiles. Which tiles a block gets and the order of the sums
// depend on the layer, the reserved context and the row alone, so its bits are the same in any
// batch.
#include <cooperative_groups.h>

#include <algorithm>
#include <cmath>

#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/latent_keys.cuh"
#include "backends/cuda/device/latent_queries.cuh"
#include "backends/cuda/device/row_math.cuh"
#include "backends/cuda/device/wgmma_f16.cuh"
#include "backends/cuda/launch/attention.h"
#include "backends/cuda/launch/launch.h"

namespace quatrain::cuda {
namespace {

using namespace latent;

constexpr int kThreads = latent::kWarps * kWarp;
constexpr int kGroupWarps = latent::kWarps / 2;
constexpr int kFewTiles = 6;
constexpr int kProcessors = 132;    // of an H100 or H200
constexpr int kMaxRowBlocks = 128;  // clusters along the rows; beyond, they take several
constexpr int kConvertedRows = 65;  // of a step; fewer convert their latents themselves
constexpr int kOutStride = kWidth + 8;

struct Shared {
  unsigned char q[kTileBytes];
  union {
    struct {
      unsigned char keys[2][kTileBytes];
      unsigned char weights[kHeads * kPanelRowBytes];
    };
    float out[kHeads][kOutStride];  // of a split
  };
  float largest[2][kHeads];
  float total[2][kHeads];
  float2 turns[kWidth / 2];        // of the output's trailing pairs
  float2 query_turns[kWidth / 2];  // of the queries'
};
static_assert(kHeads == kTileKeys, "queries and keys have panels of one size");
static_assert(sizeof(float) * kHeads * kOutStride <= 2 * kTileBytes + kHeads * kPanelRowBytes);

// The rotations of the row's queries and those that its output undoes; a barrier must follow before
// they are used.
__device__ void find_turns(const AttendArgs& args, int r, Shared& shared) {
  for (int p = static_cast<int>(threadIdx.x); p < args.pairs; p += kThreads) {
    shared.turns[p] = rotation(args.batch.positions[r], args.inv_freq[p], true);
    shared.query_turns[p] = rotation(args.batch.positions[r], args.inv_freq[p], false);
  }
}

// ---- softmax and sums of a range of tiles ----

// Of one thread: the rows l / 4 and l / 4 + 8 of its warp's sixteen. Scores are in units of log 2.
struct Sums {
  float out[kWidth / 4];  // columns of the warp group, as wgmma_f16.cuh lays them out
  float largest[2];
  float total[2];  // of the keys that this thread weighs
};

__device__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}
__device__ float quad_sum(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

__device__ int group_id() { return warp_id() / kGroupWarps; }
// First of the two rows of this thread.
__device__ int first_row() { return warp_id() % kGroupWarps * 16 + lane_id() / 4; }

// scores = q keysᵀ for the half of the tile that this warp group scores; returns at once.
__device__ void begin_scores(const Shared& shared, const unsigned char* stage,
                             float (&scores)[16]) {
  constexpr int kStride = 8 * kPanelRowBytes;
  const std::uint32_t q = shared_address(shared.q);
  const std::uint32_t keys = shared_address(stage) + group_id() * (kTileBytes / 16);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kWidth / 16; ++k) {
    const int at = k / 4 * kPanelBytes + k % 4 * 32;
    wgmma_m64n32(scores, operand(q + at, 16, kStride), operand(keys + at, 16, kStride), k > 0);
  }
  wgmma_commit();
}

// Turns scores into weights, for both warp groups, and rescales the sums.
__device__ void weigh(Shared& shared, const float (&scores)[16], int present, float scale,
                      Sums& sums) {
  float scaled[16];
  float best[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int key = 32 * group_id() + i / 4 * 8 + 2 * (lane_id() % 4) + i % 2;
    scaled[i] = key < present ? scores[i] * scale : -INFINITY;
    best[i / 2 % 2] = fmaxf(best[i / 2 % 2], scaled[i]);
  }
  float factor[2];
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
    factor[h] = exp2f(sums.largest[h] - largest);
    sums.largest[h] = largest;
    sums.total[h] *= factor[h];
  }
#pragma unroll
  for (int i = 0; i < 16; i += 2) {
    const int h = i / 2 % 2;
    const float a = exp2f(scaled[i] - sums.largest[h]);
    const float b = exp2f(scaled[i + 1] - sums.largest[h]);
    sums.total[h] += a + b;
    const int chunk = 4 * group_id() + i / 4;
    *reinterpret_cast<std::uint32_t*>(shared.weights + panel_offset(first_row() + 8 * h, chunk) +
                                      4 * (lane_id() % 4)) = f16_pair(a, b);
  }
  if (__any_sync(kAllLanes, factor[0] != 1.0f || factor[1] != 1.0f)) {
#pragma unroll
    for (int i = 0; i < kWidth / 4; ++i) sums.out[i] *= factor[i / 2 % 2];
  }
}

// sums.out += weights · values for the columns of this warp group.
__device__ void add_values(const Shared& shared, const unsigned char* stage, Sums& sums) {
  constexpr int kStride = 8 * kPanelRowBytes;
  const std::uint32_t weights = shared_address(shared.weights);
  const std::uint32_t values = shared_address(stage) + group_id() * (kTileBytes / 2);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kTileKeys / 16; ++k)
    wgmma_m64n256_rows(sums.out, operand(weights + 32 * k, 16, kStride),
                       operand(values + 16 * kPanelRowBytes * k, kPanelBytes, kStride));
  wgmma_commit();
  wgmma_wait<0>();
}

// The softmax sums of the tiles [begin, end) of row r for `heads` heads with queries at q.
template <CacheFormat kFormat>
__device__ void sum_tiles(const AttendArgs& args, Shared& shared, const RowKeys& keys, int r,
                          const float* q, int heads, int begin, int end, float scale, Sums& sums) {
  const RowSources sources(args, keys, r);
  const auto source_of = [&](int tile) {
    const int own = tile * kTileKeys + warp_id() * kKeysPerWarp + lane_id();
    return lane_id() < kKeysPerWarp ? sources.of(own) : Source{0};
  };
  const auto load = [&](Source source, int tile) {
    load_keys<kFormat>(source, shared.keys[(tile - begin) & 1]);
  };
  Source next = source_of(begin + 2);
  if (begin < end) {
    const Source first = source_of(begin), second = source_of(begin + 1);
    load(first, begin);
    if (begin + 1 < end) load(second, begin + 1);
    load_queries(args, q, heads, shared.query_turns, shared.q);
  }
#pragma unroll
  for (int i = 0; i < kWidth / 4; ++i) sums.out[i] = 0;
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
    float scores[16];
    begin_scores(shared, stage, scores);
    if (tile > begin && tile + 1 < end) {
      load(next, tile + 1);
      next = source_of(tile + 2);
    }
    wgmma_wait<0>();
    weigh(shared, scores, keys.count - tile * kTileKeys, scale, sums);
    fence_operands();
    __syncthreads();
    add_values(shared, stage, sums);
  }
}

// ---- results ----

// Columns column, column + 1 of the output; column is even.
__device__ float2 turned(const AttendArgs& args, const Shared& shared, int column, float a,
                         float b) {
  float pair[2] = {a, b};
  const int p = column / 2 - (kWidth / 2 - args.pairs);
  if (p >= 0) rotate_pair(pair, shared.turns[p]);
  return {pair[0], pair[1]};
}

constexpr float kLog2e = 1.4426950408889634f;

// Both halves' totals of this thread's rows.
__device__ void join_totals(Shared& shared, const Sums& sums, float (&totals)[2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float own = quad_sum(sums.total[h]);
    if (lane_id() % 4 == 0) shared.total[group_id()][first_row() + 8 * h] = own;
  }
  __syncthreads();
#pragma unroll
  for (int h = 0; h < 2; ++h)
    totals[h] = shared.total[0][first_row() + 8 * h] + shared.total[1][first_row() + 8 * h];
}

// out = the results of a block that has all tiles. They pass through shared memory, so that all
// warps write whole lines of the rows that there are.
__device__ void finish_row(const AttendArgs& args, Shared& shared, const Sums& sums, int heads,
                           const float* sinks, float* out) {
  float totals[2];
  join_totals(shared, sums, totals);  // the last tile has been used
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = first_row() + 8 * h;
    if (row >= heads) continue;
    const float sink = sinks[row] * kLog2e;
    const float best = fmaxf(sums.largest[h], sink);
    const float weight = exp2f(sums.largest[h] - best);
    const float factor = weight / (totals[h] * weight + exp2f(sink - best));
    float* to = &shared.out[row][group_id() * (kWidth / 2) + 2 * (lane_id() % 4)];
#pragma unroll
    for (int j = 0; j < kWidth / 16; ++j)
      *reinterpret_cast<float2*>(to + 8 * j) = {sums.out[4 * j + 2 * h] * factor,
                                                sums.out[4 * j + 2 * h + 1] * factor};
  }
  __syncthreads();
  for (int row = warp_id(); row < heads; row += latent::kWarps)
#pragma unroll
    for (int column = 4 * lane_id(); column < kWidth; column += 4 * kWarp) {
      const float4 x = *reinterpret_cast<const float4*>(&shared.out[row][column]);
      const float2 low = turned(args, shared, column, x.x, x.y);
      const float2 high = turned(args, shared, column + 2, x.z, x.w);
      *reinterpret_cast<float4*>(out + row * kWidth + column) = {low.x, low.y, high.x, high.y};
    }
}

// Leaves this split's sums where the other blocks of the cluster can read them.
__device__ void publish(Shared& shared, const Sums& sums, int heads) {
  float totals[2];
  join_totals(shared, sums, totals);
  __syncthreads();  // the totals and the last tile have been used
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = first_row() + 8 * h;
    if (row >= heads) continue;
    if (group_id() == 0 && lane_id() % 4 == 0) {
      shared.largest[0][row] = sums.largest[h];
      shared.total[0][row] = totals[h];
    }
    if (totals[h] == 0) continue;  // nobody reads the sums of a split without keys
    float* out = &shared.out[row][group_id() * (kWidth / 2) + 2 * (lane_id() % 4)];
#pragma unroll
    for (int j = 0; j < kWidth / 16; ++j)
      *reinterpret_cast<float2*>(out + 8 * j) = {sums.out[4 * j + 2 * h],
                                                 sums.out[4 * j + 2 * h + 1]};
  }
}

// out = the sums of all splits of this block's share of the heads. A warp has a head at a time and
// asks for all that it needs of the other blocks at once: they answer slowly.
template <int kSplits>
__device__ void combine(const AttendArgs& args, Shared& shared, int rank, int heads,
                        const float* sinks, float* out) {
  constexpr int kParts = kWidth / (4 * kWarp);
  auto cluster = cooperative_groups::this_cluster();
  for (int row = rank + warp_id() * kSplits; row < heads; row += latent::kWarps * kSplits) {
    float largest[kSplits], total[kSplits];
    float4 parts[kSplits][kParts];
#pragma unroll
    for (int s = 0; s < kSplits; ++s) {
      const Shared& split = *cluster.map_shared_rank(&shared, s);
      largest[s] = split.largest[0][row];
      total[s] = split.total[0][row];
#pragma unroll
      for (int p = 0; p < kParts; ++p)
        parts[s][p] =
            *reinterpret_cast<const float4*>(&split.out[row][4 * (p * kWarp + lane_id())]);
    }
    float best = sinks[row] * kLog2e;
#pragma unroll
    for (int s = 0; s < kSplits; ++s) best = fmaxf(best, largest[s]);
    float divisor = exp2f(sinks[row] * kLog2e - best);
    float4 sum[kParts] = {};
#pragma unroll
    for (int s = 0; s < kSplits; ++s) {
      const float weight = exp2f(largest[s] - best);
      divisor = fmaf(weight, total[s], divisor);
      if (total[s] == 0) continue;  // a split without keys has left no sums
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        sum[p].x = fmaf(weight, parts[s][p].x, sum[p].x);
        sum[p].y = fmaf(weight, parts[s][p].y, sum[p].y);
        sum[p].z = fmaf(weight, parts[s][p].z, sum[p].z);
        sum[p].w = fmaf(weight, parts[s][p].w, sum[p].w);
      }
    }
    const float factor = 1.0f / divisor;
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      const int column = 4 * (p * kWarp + lane_id());
      const float2 low = turned(args, shared, column, sum[p].x * factor, sum[p].y * factor);
      const float2 high = turned(args, shared, column + 2, sum[p].z * factor, sum[p].w * factor);
      *reinterpret_cast<float4*>(out + row * kWidth + column) = {low.x, low.y, high.x, high.y};
    }
  }
}

// ---- kernels ----

__host__ __device__ bool has_entries(const AttendArgs& args) {
  return args.entries.rows.data != nullptr;
}

// Zeros for padding: of `threads` threads, this block's are those from `first` on.
__device__ void clear(float* out, int heads, int first, int threads) {
  for (int i = first + static_cast<int>(threadIdx.x); i < heads * kWidth; i += threads) out[i] = 0;
}

// The latent of row r, which is no padding, to its place in the ring.
__device__ void store_latent(const AttendArgs& args, int r) {
  const std::int64_t row =
      std::int64_t{args.batch.slots[r]} * args.window + args.batch.positions[r] % args.window;
  store_row(args.ring, row, args.latents + std::int64_t{r} * kWidth);
}

// Rows that are not split; in layers without entries all of them, and padding.
template <CacheFormat kFormat>
__global__ void __launch_bounds__(kThreads, 1)
    attend_row_kernel(AttendArgs args, int heads_per_block, float scale) {
  extern __shared__ __align__(1024) unsigned char raw[];
  let_next_start();
  Shared& shared = *reinterpret_cast<Shared*>(raw);
  const int r = static_cast<int>(blockIdx.y);
  const int head = static_cast<int>(blockIdx.x) * heads_per_block;
  const int heads = min(heads_per_block, args.heads - head);
  const std::int64_t at = (std::int64_t{r} * args.heads + head) * kWidth;
  const bool is_row = args.batch.slots[r] >= 0;
  if (!is_row || (has_entries(args) && is_few(args.batch, r))) {
    wait_for_previous();
    if (!has_entries(args)) clear(args.out + at, heads, 0, kThreads);
    return;
  }
  find_turns(args, r, shared);
  __syncthreads();
  wait_for_previous();
  const RowKeys keys = find_keys(args, r);
  Sums sums;
  sum_tiles<kFormat>(args, shared, keys, r, args.q + at, heads, 0,
                     (keys.count + kTileKeys - 1) / kTileKeys, scale, sums);
  if (args.stores && head == 0) store_latent(args, r);
  finish_row(args, shared, sums, heads, args.sinks + head, args.out + at);
}

// Rows of sequences that bring few rows, and padding; `heads_per_block` heads at a time.
template <CacheFormat kFormat, int kSplits>
__global__ void __launch_bounds__(kThreads, 1)
    attend_split_kernel(AttendArgs args, int heads_per_block, float scale) {
  extern __shared__ __align__(1024) unsigned char raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw);
  let_next_start();
  const int rank = static_cast<int>(blockIdx.x);
  const int head = static_cast<int>(blockIdx.y) * heads_per_block;
  const int heads = min(heads_per_block, args.heads - head);
  const int first = static_cast<int>(blockIdx.z);
  for (int r = first; r < args.batch.rows; r += gridDim.z) {
    const std::int64_t at = (std::int64_t{r} * args.heads + head) * kWidth;
    const bool is_row = args.batch.slots[r] >= 0;
    if (!is_row || !is_few(args.batch, r)) {
      if (r == first) wait_for_previous();
      if (!is_row) clear(args.out + at, heads, rank * kThreads, kSplits * kThreads);
      continue;
    }
    find_turns(args, r, shared);
    __syncthreads();
    if (r == first) wait_for_previous();
    const RowKeys keys = find_keys(args, r);
    const int tiles = (keys.count + kTileKeys - 1) / kTileKeys;
    Sums sums;
    sum_tiles<kFormat>(args, shared, keys, r, args.q + at, heads, tiles * rank / kSplits,
                       tiles * (rank + 1) / kSplits, scale, sums);
    if (args.stores && rank == kSplits - 1 && head == 0) store_latent(args, r);
    publish(shared, sums, heads);
    cooperative_groups::this_cluster().sync();
    combine<kSplits>(args, shared, rank, heads, args.sinks + head, args.out + at);
    cooperative_groups::this_cluster().sync();  // before the next row overwrites the sums
  }
}

// This step's latents in F16, as the cache will hold them: many rows read each of them.
template <CacheFormat kFormat>
__global__ void __launch_bounds__(kChunks) convert_step_kernel(AttendArgs args) {
  let_next_start();
  wait_for_previous();
  const std::int64_t r = blockIdx.x;
  const int chunk = static_cast<int>(threadIdx.x);
  const Source source = reinterpret_cast<Source>(args.latents + r * kWidth) + kStepTag;
  static_cast<uint4*>(args.step_rows)[r * kChunks + chunk] =
      decode<kFormat>(fetch<kFormat>(source, chunk), source, chunk);
}

// Smaller blocks while they leave processors idle; a head's bits do not depend on its block.
int heads_per_block(int blocks) {
  return blocks <= kProcessors / 4 ? kHeads / 4 : blocks <= kProcessors / 2 ? kHeads / 2 : kHeads;
}

template <CacheFormat kFormat, int kSplits>
void launch_split(const AttendArgs& args, float scale, cudaStream_t stream) {
  static const bool is_ready = [] {
    allow_shared(attend_split_kernel<kFormat, kSplits>, sizeof(Shared));
    return true;
  }();
  (void)is_ready;
  const int rows = args.batch.rows, heads = heads_per_block(rows * kSplits);
  const dim3 grid(kSplits, static_cast<unsigned>((args.heads + heads - 1) / heads),
                  static_cast<unsigned>(std::min(rows, kMaxRowBlocks)));
  launch(attend_split_kernel<kFormat, kSplits>,
         {.grid = grid, .block = kThreads, .shared = sizeof(Shared), .cluster_x = kSplits}, stream,
         args, heads, scale);
}

template <CacheFormat kFormat>
void launch_format(AttendArgs args, cudaStream_t stream) {
  constexpr std::size_t kBytes = sizeof(Shared);
  static const bool is_ready = [] {
    allow_shared(attend_row_kernel<kFormat>, kBytes);
    return true;
  }();
  (void)is_ready;
  const float scale = kLog2e / std::sqrt(static_cast<float>(kWidth));
  const int rows = args.batch.rows;
  if (rows >= kConvertedRows) {
    launch(convert_step_kernel<kFormat>, {.grid = static_cast<unsigned>(rows), .block = kChunks},
           stream, args);
  } else {
    args.step_rows = nullptr;
  }
  if (has_entries(args)) {
    const int most_entries =
        args.selected != nullptr ? args.topk : args.batch.blocks_per_slot * args.entries.per_block;
    if (args.window + most_entries <= kFewTiles * kTileKeys)
      launch_split<kFormat, 2>(args, scale, stream);
    else
      launch_split<kFormat, 4>(args, scale, stream);
    if (rows <= kFewRows || args.batch.is_decode) return;
  }
  const int heads = has_entries(args) ? kHeads : heads_per_block(rows);
  const dim3 grid(static_cast<unsigned>((args.heads + heads - 1) / heads),
                  static_cast<unsigned>(rows));
  launch(attend_row_kernel<kFormat>, {.grid = grid, .block = kThreads, .shared = kBytes}, stream,
         args, heads, scale);
}

}  // namespace

void attend_latent(const AttendArgs& args, cudaStream_t stream) {
  if (args.batch.rows == 0) return;
  switch (args.ring.format) {
    case CacheFormat::kBf16:
      return launch_format<CacheFormat::kBf16>(args, stream);
    case CacheFormat::kPackedLatent:
      return launch_format<CacheFormat::kPackedLatent>(args, stream);
    default:
      return launch_format<CacheFormat::kF16>(args, stream);
  }
}

}  // namespace quatrain::cuda

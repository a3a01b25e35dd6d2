// SPDX-License-Identifier: Apache-2.0
// attend at the width of DeepSeek-V4's latents, 512: tensor-core products in F16 with FP32 sums.
//
// A block serves up to 64 heads of one row, the M of its products; keys are gathered in tiles of 64
// into two stages of shared memory and are keys and values at once. Both warp groups of the block
// score half of a tile each, exchange row maxima and probabilities, and accumulate half of the
// columns each.
//
// In layers with compressed entries, the tiles of a row whose sequence brings at most kFewRows rows
// to the step (a decode step) are cut into two parts or, where a sequence may have more than
// kFewTiles tiles, four. Each part is a block's of a cluster, or two are, one after the other,
// where the chip could not hold all rows otherwise; the sums of the first wait in memory. Blocks
// combine parts through each other's shared memory. Every other row takes one block: a window has
// but two tiles. Steps of so few rows that 16 heads to a block fit the chip at once have a kernel
// of their own, attention_latent_few.cu, and so have rows that are not split in long steps,
// attention_latent_rows.cu. Which tiles are a part and the order of the sums depend on
// the layer, the reserved context and the row alone, so its bits are the same in any batch.
#include <algorithm>
#include <cmath>

#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/latent_results.cuh"
#include "backends/cuda/device/latent_sums.cuh"
#include "backends/cuda/launch/attention.h"
#include "backends/cuda/launch/launch.h"
#include "backends/cuda/launch/matrix.h"

namespace quatrain::cuda {
namespace {

using namespace latent;

constexpr int kFewTiles = 6;
constexpr int kProcessors = 132;    // of an H100 or H200
constexpr int kMaxRowBlocks = 128;  // clusters along the rows; beyond, they take several
constexpr int kConvertedRows = 65;  // of a step; fewer convert their latents themselves
constexpr int kMostParking = 66;    // clusters of two

// ---- results ----

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

// Leaves the sums of a part at `to`, where the other blocks of the cluster can read them.
__device__ void publish(Shared& shared, const Sums& sums, int heads, int part,
                        float (*to)[kOutStride]) {
  float totals[2];
  join_totals(shared, sums, totals);
  __syncthreads();  // the totals and the last tile have been used
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = first_row() + 8 * h;
    if (row >= heads) continue;
    if (group_id() == 0 && lane_id() % 4 == 0) {
      shared.part_largest[part][row] = sums.largest[h];
      shared.part_total[part][row] = totals[h];
    }
    if (totals[h] == 0) continue;  // nobody uses the sums of a part without keys
    float* out = &to[row][group_id() * (kWidth / 2) + 2 * (lane_id() % 4)];
#pragma unroll
    for (int j = 0; j < kWidth / 16; ++j)
      *reinterpret_cast<float2*>(out + 8 * j) = {sums.out[4 * j + 2 * h],
                                                 sums.out[4 * j + 2 * h + 1]};
  }
}

// ---- kernels ----

__host__ __device__ bool has_entries(const AttendArgs& args) {
  return args.entries.rows.data != nullptr;
}

// Rows that are not split; in layers without entries all of them, and padding.
template <CacheFormat kFormat>
__global__ void __launch_bounds__(kThreads, 1)
    attend_row_kernel(AttendArgs args, int heads_per_block, float scale) {
  extern __shared__ __align__(1024) unsigned char raw[];
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
  sum_tiles<kFormat>(args, shared, keys, r, args.q + at, heads, 0, ceil_div(keys.count, kTileKeys),
                     scale, sums);
  if (args.stores && head == 0) store_latent(args, r);
  finish_row(args, shared, sums, heads, args.sinks + head, args.out + at);
}

// Rows of sequences that bring few rows, and padding; `heads_per_block` heads at a time.
template <CacheFormat kFormat, int kParts, int kOwn>
__global__ void __launch_bounds__(kThreads, 1)
    attend_split_kernel(AttendArgs args, int heads_per_block, float scale) {
  extern __shared__ __align__(1024) unsigned char raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw);
  constexpr int kRanks = kParts / kOwn;
  const int rank = static_cast<int>(blockIdx.x);
  const int head = static_cast<int>(blockIdx.y) * heads_per_block;
  const int heads = min(heads_per_block, args.heads - head);
  const int first = static_cast<int>(blockIdx.z);
  for (int r = first; r < args.batch.rows; r += gridDim.z) {
    const std::int64_t at = (std::int64_t{r} * args.heads + head) * kWidth;
    const bool is_row = args.batch.slots[r] >= 0;
    if (!is_row || !is_few(args.batch, r)) {
      if (r == first) wait_for_previous();
      if (!is_row) clear(args.out + at, heads, rank * kThreads, kRanks * kThreads);
      continue;
    }
    find_turns(args, r, shared);
    __syncthreads();
    if (r == first) wait_for_previous();
    const RowKeys keys = find_keys(args, r);
    const int tiles = ceil_div(keys.count, kTileKeys);
    const float* q = args.q + at;
#pragma unroll 1
    for (int own = 0; own < kOwn; ++own) {
      const int part = rank * kOwn + own;
      const int begin = tiles * part / kParts, end = tiles * (part + 1) / kParts;
      Sums sums;
      sum_tiles<kFormat>(args, shared, keys, r, q, heads, begin, end, scale, sums);
      if (begin < end) q = nullptr;
      publish(shared, sums, heads, own, own < kOwn - 1 ? parked(args, rank) : shared.out);
    }
    if (args.stores && rank == kRanks - 1 && head == 0) store_latent(args, r);
    cooperative_groups::this_cluster().sync();
    combine<kParts, kOwn, 1>(args, shared, rank, heads, args.sinks + head, args.out + at);
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

// Smaller blocks while the chip holds those of all rows at once; a head's bits do not depend on its
// block.
int heads_per_block(const AttendArgs& args, int at_once) {
  int heads = kHeads;
  while (heads > kFewHeads && args.batch.rows * ceil_div(args.heads, heads / 2) <= at_once)
    heads /= 2;
  return heads;
}

template <CacheFormat kFormat, int kParts, int kOwn>
struct Split {
  static constexpr int kRanks = kParts / kOwn;
  static constexpr auto kKernel = attend_split_kernel<kFormat, kParts, kOwn>;

  static LaunchShape shape() {
    return {.grid = kRanks, .block = kThreads, .shared = sizeof(Shared), .cluster_x = kRanks};
  }
  // Clusters that the chip holds, fewer than it has processors for: none reaches across its parts.
  static int at_once() {
    static const int clusters = [] {
      allow_shared(kKernel, sizeof(Shared));
      return resident_clusters(kKernel, shape());
    }();
    return clusters;
  }
  static void launch(const AttendArgs& args, int heads, int most_rows, float scale,
                     cudaStream_t stream) {
    LaunchShape shape = Split::shape();
    shape.grid = dim3(kRanks, static_cast<unsigned>(ceil_div(args.heads, heads)),
                      static_cast<unsigned>(std::min(args.batch.rows, most_rows)));
    cuda::launch(kKernel, shape, stream, args, heads, scale);
  }
};

template <CacheFormat kFormat, int kParts>
void launch_split(const AttendArgs& args, float scale, cudaStream_t stream) {
  using Wide = Split<kFormat, kParts, 1>;
  const int heads = heads_per_block(args, Wide::at_once());
  if (heads == kFewHeads) return attend_latent_few(args, kParts, scale, stream);
  if constexpr (kParts == 4) {
    using Narrow = Split<kFormat, kParts, 2>;
    // No more clusters than find room for what they park.
    const int clusters = std::min(Narrow::at_once(), kMostParking);
    const int fewer = heads_per_block(args, clusters);
    const int most = clusters / ceil_div(args.heads, fewer);
    if (args.batch.rows * ceil_div(args.heads, heads) > Wide::at_once() && most > 0)
      return Narrow::launch(args, fewer, most, scale, stream);
  }
  Wide::launch(args, heads, kMaxRowBlocks, scale, stream);
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
    const int most_entries = args.selected != nullptr
                                 ? args.topk
                                 : args.batch.blocks_per_slot * args.entries.per_block.value();
    if (args.window + most_entries <= kFewTiles * kTileKeys)
      launch_split<kFormat, 2>(args, scale, stream);
    else
      launch_split<kFormat, 4>(args, scale, stream);
    if (rows <= kFewRows || args.batch.is_decode) return;
  }
  if (has_attend_latent_rows(args)) return attend_latent_rows(args, scale, stream);
  const int heads = has_entries(args) ? kHeads : heads_per_block(args, kProcessors);
  const dim3 grid(static_cast<unsigned>(ceil_div(args.heads, heads)), static_cast<unsigned>(rows));
  launch(attend_row_kernel<kFormat>, {.grid = grid, .block = kThreads, .shared = kBytes}, stream,
         args, heads, scale);
}

}  // namespace

std::int64_t attend_parked_bytes() {
  return std::int64_t{kMostParking} * 2 * kHeads * kOutStride * bytes_of(DType::kF32);
}

void attend_latent(const AttendArgs& args, cudaStream_t stream) {
  if (args.batch.rows == 0) return;
  with_format<CacheFormat::kPackedLatent>(
      args.ring.format, [&]<CacheFormat kFormat>() { launch_format<kFormat>(args, stream); });
}

}  // namespace quatrain::cuda

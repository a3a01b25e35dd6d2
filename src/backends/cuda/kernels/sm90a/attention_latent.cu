// SPDX-License-Identifier: Apache-2.0
// attend at the width of DeepSeek-V4's latents, 512: tensor-core products in F16 with FP32 sums.
//
// A block serves up to 64 heads of one row, the M of its products; keys are gathered in tiles of 64
// into two stages of shared memory and are keys and values at once. Both warp groups of the block
// score half of a tile each, exchange row maxima and probabilities, and accumulate half of the
// columns each.
//
// A row whose sequence brings at most kFewRows rows to the step (a decode step) is split over the
// eight blocks of a cluster; they combine through each other's shared memory. Every other row takes
// one block. Which tiles a block gets and the order of the sums depend on the row alone, so its
// bits are the same in any batch.
#include <cooperative_groups.h>

#include <algorithm>
#include <cmath>

#include "backends/cuda/cuda_check.h"
#include "backends/cuda/device/cache_rows.cuh"
#include "backends/cuda/device/sequence_view.cuh"
#include "backends/cuda/device/wgmma_f16.cuh"
#include "backends/cuda/launch/attention.h"

namespace quatrain::cuda {
namespace {

constexpr int kWidth = kLatentWidth;
constexpr int kHeads = 64;  // of a block
constexpr int kTileKeys = 64;
constexpr int kGroupWarps = 4;
constexpr int kThreads = 2 * kGroupWarps * kWarp;
constexpr int kKeysPerWarp = kTileKeys / (2 * kGroupWarps);
constexpr int kChunks = kWidth / 8;  // of 16 bytes in a row
constexpr int kSplits = 8;           // blocks of a cluster
constexpr int kFewRows = 4;
constexpr int kMaxRowBlocks = 128;  // clusters along the rows; beyond, they take several
constexpr int kOutStride = kWidth + 8;

constexpr int kPanelBytes = kTileKeys * kPanelRowBytes;
constexpr int kTileBytes = kWidth / kPanelColumns * kPanelBytes;

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
};
static_assert(kHeads == kTileKeys, "queries and keys have panels of one size");
static_assert(sizeof(float) * kHeads * kOutStride <= 2 * kTileBytes + kHeads * kPanelRowBytes);

// ---- which keys a row has, and where they are ----

struct RowKeys {
  int window_begin;  // first position
  int window_count;
  int count;
  const int* selected;  // entries by rank; null: entry = rank
};

__device__ RowKeys find_keys(const AttendArgs& args, int r) {
  const int position = args.batch.positions[r];
  RowKeys keys = {.window_begin = max(0, position + 1 - args.window), .selected = nullptr};
  keys.window_count = keys.count = position + 1 - keys.window_begin;
  if (args.entries.rows.data == nullptr) return keys;
  const int visible = (position + 1) / args.entries.ratio;
  keys.count += args.selected == nullptr ? visible : min(args.topk, visible);
  if (args.selected != nullptr) keys.selected = args.selected + std::int64_t{r} * args.topk;
  return keys;
}

// Does the row's sequence bring at most kFewRows rows to this step? For rows that are no padding.
__device__ bool is_few(const BatchView& batch, int r) {
  const int first = batch.first_rows[r];
  const int after = first + kFewRows;
  return after >= batch.rows || batch.slots[after] != batch.slots[r] ||
         batch.first_rows[after] != first;
}

// A row in memory: of a cache, or of this step's latents (FP32, with kStepTag added). 0: none.
using Source = unsigned long long;
constexpr Source kStepTag = 1;

class RowSources {
 public:
  __device__ RowSources(const AttendArgs& args, const RowKeys& keys, int r)
      : args_(args),
        keys_(keys),
        recent_(args.batch, r, args.window),
        paged_(args.batch, args.entries, args.batch.slots[r]) {}

  __device__ Source of(int k) const {
    if (k >= keys_.count) return 0;
    if (k >= keys_.window_count) {
      const int rank = k - keys_.window_count;
      const int entry = keys_.selected != nullptr ? keys_.selected[rank] : rank;
      return reinterpret_cast<Source>(row_address(args_.entries.rows, paged_.row(entry)));
    }
    const int position = keys_.window_begin + k;
    if (recent_.in_step(position))
      return reinterpret_cast<Source>(args_.latents + recent_.step_row(position) * kWidth) +
             kStepTag;
    return reinterpret_cast<Source>(row_address(args_.ring, recent_.ring_row(position)));
  }

 private:
  const AttendArgs& args_;
  const RowKeys& keys_;
  RecentRows recent_;
  PagedRows paged_;
};

// ---- rows into shared memory, as F16 ----

__device__ std::uint32_t f16_pair(float a, float b) {
  const __half2 pair = __floats2half2_rn(a, b);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}

__device__ uint4 f16_chunk(const float (&x)[8]) {
  return {f16_pair(x[0], x[1]), f16_pair(x[2], x[3]), f16_pair(x[4], x[5]), f16_pair(x[6], x[7])};
}

// Bytes of a chunk of eight columns on their way from a cache that is not F16, or from the step.
struct RawChunk {
  uint4 low, high;
};

template <CacheFormat kFormat>
__device__ RawChunk fetch(Source source, int chunk) {
  RawChunk raw = {};
  if (source == 0) return raw;
  if ((source & kStepTag) != 0) {
    const auto* from = reinterpret_cast<const uint4*>(source - kStepTag) + 2 * chunk;
    raw.low = from[0];
    raw.high = from[1];
  } else if constexpr (kFormat == CacheFormat::kBf16) {
    raw.low = reinterpret_cast<const uint4*>(source)[chunk];
  } else if constexpr (kFormat == CacheFormat::kPackedLatent) {
    constexpr PackedLatent kLayout(kWidth);
    const auto* row = reinterpret_cast<const unsigned char*>(source);
    const bool is_code = chunk < kLayout.codes / 8;
    const int at = is_code ? 8 * chunk : kLayout.codes + 16 * (chunk - kLayout.codes / 8);
    const uint2 first = *reinterpret_cast<const uint2*>(row + at);
    raw.low.x = first.x;
    raw.low.y = first.y;
    if (is_code) {
      raw.high.x = row[kLayout.scales_at + chunk / (kLatentBlock / 8)];
    } else {
      const uint2 second = *reinterpret_cast<const uint2*>(row + at + 8);
      raw.low.z = second.x;
      raw.low.w = second.y;
    }
  }
  return raw;
}

__device__ uint4 bf16_to_f16(uint4 raw) {
  const std::uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
  std::uint32_t out[4];
#pragma unroll
  for (int j = 0; j < 4; ++j)
    out[j] = f16_pair(__uint_as_float(words[j] << 16), __uint_as_float(words[j] & 0xFFFF0000u));
  return {out[0], out[1], out[2], out[3]};
}

// Eight E4M3 codes times a power of two: exact but for results that are F16 subnormals.
__device__ uint4 e4m3_to_f16(std::uint32_t low, std::uint32_t high, std::uint8_t scale) {
  const __half2 factor = __float2half2_rn(ue8m0_decode(scale));
  const std::uint32_t words[2] = {low, high};
  std::uint32_t out[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    std::uint32_t pair;
    const auto codes = static_cast<std::uint16_t>(words[j / 2] >> (16 * (j % 2)));
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"(codes));
    const __half2 product = __hmul2(*reinterpret_cast<const __half2*>(&pair), factor);
    out[j] = *reinterpret_cast<const std::uint32_t*>(&product);
  }
  return {out[0], out[1], out[2], out[3]};
}

template <CacheFormat kFormat>
__device__ uint4 decode(const AttendArgs& args, const RawChunk& raw, Source source, int chunk) {
  if (source == 0) return {0, 0, 0, 0};
  if ((source & kStepTag) != 0) {
    const uint4 parts[2] = {raw.low, raw.high};
    const auto* values = reinterpret_cast<const float*>(parts);
    float x[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] = as_stored(args.ring, 8 * chunk + j, values[j]);
    return f16_chunk(x);
  }
  if constexpr (kFormat == CacheFormat::kPackedLatent)
    if (chunk < PackedLatent(kWidth).codes / 8)
      return e4m3_to_f16(raw.low.x, raw.low.y, static_cast<std::uint8_t>(raw.high.x));
  return bf16_to_f16(raw.low);
}

__device__ std::uint32_t chunk_address(const unsigned char* tile, int row, int chunk) {
  return shared_address(tile) + chunk / 8 * kPanelBytes + panel_offset(row, chunk % 8);
}

__device__ void store_chunk(std::uint32_t to, uint4 x) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x.x), "r"(x.y), "r"(x.z),
               "r"(x.w)
               : "memory");
}

// The keys of this warp into a stage; lane j < kKeysPerWarp knows the source of key j.
template <CacheFormat kFormat>
__device__ void load_keys(const AttendArgs& args, Source own, unsigned char* stage) {
  constexpr int kBatch = kFormat == CacheFormat::kF16 ? 2 : 4;
  const int first = warp_id() * kKeysPerWarp;
#pragma unroll
  for (int begin = 0; begin < kKeysPerWarp; begin += kBatch) {
    Source sources[kBatch];
    RawChunk raw[kBatch][2];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      sources[j] = __shfl_sync(kAllLanes, own, begin + j);
      const bool is_direct =
          kFormat == CacheFormat::kF16 && sources[j] != 0 && (sources[j] & kStepTag) == 0;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int chunk = lane_id() + half * kWarp;
        if (is_direct)
          copy_async16(chunk_address(stage, first + begin + j, chunk),
                       reinterpret_cast<const uint4*>(sources[j]) + chunk);
        else
          raw[j][half] = fetch<kFormat>(sources[j], chunk);
      }
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      if (kFormat == CacheFormat::kF16 && sources[j] != 0 && (sources[j] & kStepTag) == 0) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int chunk = lane_id() + half * kWarp;
        store_chunk(chunk_address(stage, first + begin + j, chunk),
                    decode<kFormat>(args, raw[j][half], sources[j], chunk));
      }
    }
  }
  copy_commit();
}

// Queries of `heads` heads; zeros in the other rows.
__device__ void load_queries(const float* q, int heads, unsigned char* tile) {
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < kHeads * kChunks; i += kThreads) {
    const int head = i / kChunks;
    const int chunk = i % kChunks;
    float x[8] = {};
    if (head < heads) {
      const auto* from = reinterpret_cast<const float4*>(q + head * kWidth + 8 * chunk);
      const float4 low = from[0];
      const float4 high = from[1];
      x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
      x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
    }
    store_chunk(chunk_address(tile, head, chunk), f16_chunk(x));
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
  wgmma_begin();
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
  wgmma_begin();
#pragma unroll
  for (int k = 0; k < kTileKeys / 16; ++k)
    wgmma_m64n256_rows(sums.out, operand(weights + 32 * k, 16, kStride),
                       operand(values + 16 * kPanelRowBytes * k, kPanelBytes, kStride));
  wgmma_commit();
  wgmma_wait();
}

// The softmax sums of the tiles [begin, end) of a row. Queries have been written to shared memory.
template <CacheFormat kFormat>
__device__ void sum_tiles(const AttendArgs& args, Shared& shared, const RowKeys& keys, int r,
                          int begin, int end, float scale, Sums& sums) {
  const RowSources sources(args, keys, r);
  const auto source_of = [&](int tile) {
    const int own = tile * kTileKeys + warp_id() * kKeysPerWarp + lane_id();
    return lane_id() < kKeysPerWarp ? sources.of(own) : Source{0};
  };
  const auto load = [&](Source source, int tile) {
    load_keys<kFormat>(args, source, shared.keys[(tile - begin) & 1]);
  };
#pragma unroll
  for (int i = 0; i < kWidth / 4; ++i) sums.out[i] = 0;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    sums.largest[h] = -INFINITY;
    sums.total[h] = 0;
  }
  if (begin >= end) return;
  load(source_of(begin), begin);
  if (begin + 1 < end) load(source_of(begin + 1), begin + 1);
  Source next = source_of(begin + 2);
  for (int tile = begin; tile < end; ++tile) {
    const unsigned char* stage = shared.keys[(tile - begin) & 1];
    if (tile == begin && begin + 1 < end)
      copy_wait<1>();
    else
      copy_wait<0>();
    fence_operands();
    __syncthreads();  // the tile is there, and the other stage and the weights have been used
    float scores[16];
    begin_scores(shared, stage, scores);
    if (tile > begin && tile + 1 < end) {
      load(next, tile + 1);
      next = source_of(tile + 2);
    }
    wgmma_wait();
    weigh(shared, scores, keys.count - tile * kTileKeys, scale, sums);
    fence_operands();
    __syncthreads();
    add_values(shared, stage, sums);
  }
}

// ---- results ----

// The weight of a row's sums and the divisor, once the sink has joined.
struct Finish {
  float factor;
  __device__ Finish(float largest, float total, float sink) {
    const float best = fmaxf(largest, sink);
    const float weight = exp2f(largest - best);
    factor = weight / (total * weight + exp2f(sink - best));
  }
};

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

template <CacheFormat kFormat>
__global__ void __launch_bounds__(kThreads, 1) attend_row_kernel(AttendArgs args, float scale) {
  extern __shared__ unsigned char raw[];
  Shared& shared = *reinterpret_cast<Shared*>((reinterpret_cast<std::uintptr_t>(raw) + 1023) &
                                              ~std::uintptr_t{1023});
  const int r = static_cast<int>(blockIdx.y);
  const int head = static_cast<int>(blockIdx.x) * kHeads;
  const int heads = min(kHeads, args.heads - head);
  if (args.batch.slots[r] < 0 || is_few(args.batch, r)) return;
  const std::int64_t at = (std::int64_t{r} * args.heads + head) * kWidth;
  const RowKeys keys = find_keys(args, r);
  load_queries(args.q + at, heads, shared.q);
  Sums sums;
  sum_tiles<kFormat>(args, shared, keys, r, 0, (keys.count + kTileKeys - 1) / kTileKeys, scale,
                     sums);
  float totals[2];
  join_totals(shared, sums, totals);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = first_row() + 8 * h;
    if (row >= heads) continue;
    const Finish finish(sums.largest[h], totals[h], args.sinks[head + row] * kLog2e);
    float* out = args.out + at + row * kWidth + group_id() * (kWidth / 2) + 2 * (lane_id() % 4);
#pragma unroll
    for (int j = 0; j < kWidth / 16; ++j)
      *reinterpret_cast<float2*>(out + 8 * j) = {sums.out[4 * j + 2 * h] * finish.factor,
                                                 sums.out[4 * j + 2 * h + 1] * finish.factor};
  }
}

// Leaves this split's sums where the other blocks of the cluster can read them.
__device__ void publish(Shared& shared, const Sums& sums) {
  float totals[2];
  join_totals(shared, sums, totals);
  __syncthreads();  // the totals and the last tile have been used
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = first_row() + 8 * h;
    if (group_id() == 0 && lane_id() % 4 == 0) {
      shared.largest[0][row] = sums.largest[h];
      shared.total[0][row] = totals[h];
    }
    float* out = &shared.out[row][group_id() * (kWidth / 2) + 2 * (lane_id() % 4)];
#pragma unroll
    for (int j = 0; j < kWidth / 16; ++j)
      *reinterpret_cast<float2*>(out + 8 * j) = {sums.out[4 * j + 2 * h],
                                                 sums.out[4 * j + 2 * h + 1]};
  }
}

// out = the sums of all splits of this block's share of the heads; a warp takes 128 columns.
__device__ void combine(Shared& shared, int rank, int heads, const float* sinks, float* out) {
  constexpr int kParts = kWidth / (4 * kWarp);
  auto cluster = cooperative_groups::this_cluster();
  for (int i = warp_id(); i < (heads + kSplits - 1) / kSplits * kParts; i += kThreads / kWarp) {
    const int row = rank + i / kParts * kSplits;
    if (row >= heads) continue;
    const int column = i % kParts * 4 * kWarp + 4 * lane_id();
    float largest[kSplits], total[kSplits];
    float best = sinks[row] * kLog2e;
#pragma unroll
    for (int s = 0; s < kSplits; ++s) {
      const Shared& split = *cluster.map_shared_rank(&shared, s);
      largest[s] = split.largest[0][row];
      total[s] = split.total[0][row];
      best = fmaxf(best, largest[s]);
    }
    float divisor = exp2f(sinks[row] * kLog2e - best);
    float4 sum = {0, 0, 0, 0};
#pragma unroll
    for (int s = 0; s < kSplits; ++s) {
      if (total[s] == 0) continue;  // a split without keys
      const Shared& split = *cluster.map_shared_rank(&shared, s);
      const float weight = exp2f(largest[s] - best);
      const float4 part = *reinterpret_cast<const float4*>(&split.out[row][column]);
      divisor = fmaf(weight, total[s], divisor);
      sum.x = fmaf(weight, part.x, sum.x);
      sum.y = fmaf(weight, part.y, sum.y);
      sum.z = fmaf(weight, part.z, sum.z);
      sum.w = fmaf(weight, part.w, sum.w);
    }
    const float factor = 1.0f / divisor;
    *reinterpret_cast<float4*>(out + row * kWidth + column) = {sum.x * factor, sum.y * factor,
                                                               sum.z * factor, sum.w * factor};
  }
}

// Rows of sequences that bring few rows, and padding; `heads_per_block` heads at a time.
template <CacheFormat kFormat>
__global__ void __cluster_dims__(kSplits, 1, 1) __launch_bounds__(kThreads, 1)
    attend_split_kernel(AttendArgs args, int heads_per_block, float scale) {
  extern __shared__ unsigned char raw[];
  Shared& shared = *reinterpret_cast<Shared*>((reinterpret_cast<std::uintptr_t>(raw) + 1023) &
                                              ~std::uintptr_t{1023});
  const int rank = static_cast<int>(blockIdx.x);
  const int head = static_cast<int>(blockIdx.y) * heads_per_block;
  const int heads = min(heads_per_block, args.heads - head);
  for (int r = static_cast<int>(blockIdx.z); r < args.batch.rows; r += gridDim.z) {
    const std::int64_t at = (std::int64_t{r} * args.heads + head) * kWidth;
    if (args.batch.slots[r] < 0) {
      for (int i = rank * kThreads + static_cast<int>(threadIdx.x); i < heads * kWidth;
           i += kSplits * kThreads)
        args.out[at + i] = 0;
      continue;
    }
    if (!is_few(args.batch, r)) continue;
    const RowKeys keys = find_keys(args, r);
    const int tiles = (keys.count + kTileKeys - 1) / kTileKeys;
    load_queries(args.q + at, heads, shared.q);
    Sums sums;
    sum_tiles<kFormat>(args, shared, keys, r, tiles * rank / kSplits, tiles * (rank + 1) / kSplits,
                       scale, sums);
    publish(shared, sums);
    cooperative_groups::this_cluster().sync();
    combine(shared, rank, heads, args.sinks + head, args.out + at);
    cooperative_groups::this_cluster().sync();  // before the next row overwrites the sums
  }
}

template <CacheFormat kFormat>
void launch(const AttendArgs& args, cudaStream_t stream) {
  constexpr int kBytes = sizeof(Shared) + 1024;
  static const bool is_ready = [] {
    for (const void* kernel : {reinterpret_cast<const void*>(attend_row_kernel<kFormat>),
                               reinterpret_cast<const void*>(attend_split_kernel<kFormat>)})
      QT_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    return true;
  }();
  (void)is_ready;
  const float scale = kLog2e / std::sqrt(static_cast<float>(kWidth));
  const int rows = args.batch.rows;
  // Smaller blocks while they leave processors idle; a head's bits do not depend on its block.
  const int heads_per_block = rows <= 4 ? 16 : rows <= 8 ? 32 : kHeads;
  const dim3 split_grid(kSplits,
                        static_cast<unsigned>((args.heads + heads_per_block - 1) / heads_per_block),
                        static_cast<unsigned>(std::min(rows, kMaxRowBlocks)));
  attend_split_kernel<kFormat>
      <<<split_grid, kThreads, kBytes, stream>>>(args, heads_per_block, scale);
  QT_CUDA(cudaGetLastError());
  if (rows <= kFewRows) return;
  const dim3 row_grid(static_cast<unsigned>((args.heads + kHeads - 1) / kHeads),
                      static_cast<unsigned>(rows));
  attend_row_kernel<kFormat><<<row_grid, kThreads, kBytes, stream>>>(args, scale);
  QT_CUDA(cudaGetLastError());
}

}  // namespace

void attend_latent(const AttendArgs& args, cudaStream_t stream) {
  if (args.batch.rows == 0) return;
  switch (args.ring.format) {
    case CacheFormat::kBf16:
      return launch<CacheFormat::kBf16>(args, stream);
    case CacheFormat::kPackedLatent:
      return launch<CacheFormat::kPackedLatent>(args, stream);
    default:
      return launch<CacheFormat::kF16>(args, stream);
  }
}

}  // namespace quatrain::cuda

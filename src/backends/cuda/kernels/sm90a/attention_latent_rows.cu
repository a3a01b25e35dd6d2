// SPDX-License-Identifier: Apache-2.0
// attend_latent of rows that are not split, in long steps with caches in F16: prompts.
//
// Blocks stay and take one row after the other, up to 64 heads of each. Four warps bring keys, half
// of a tile's columns at a time. Two groups of four warps have every second tile each: a group
// makes the scores of its own tiles and turns them into weights, for both groups, since each sums
// the values of half of the columns over all tiles. The values of a tile come before the scores of
// the next one, so that its place in shared memory is free early: there is room for two. What a
// tile leaves for the next, the largest scores and the totals, passes from group to group through
// shared memory. The queries of a row are brought by all warps, some of them while the results of
// the row before leave registers. Tiles, their order and the bits of a row are those of
// sum_tiles().
//
// Limits: a tile's values, the next one's scores and their weights follow each other, 3,950 cycles
// of which tensor cores have work for 2,050; then the queries and results of a row.
#include <algorithm>
#include <cmath>

#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/latent_keys.cuh"
#include "backends/cuda/device/latent_queries.cuh"
#include "backends/cuda/device/latent_results.cuh"
#include "backends/cuda/device/warp_arrival.cuh"
#include "backends/cuda/device/wgmma_f16.cuh"
#include "backends/cuda/launch/attention.h"
#include "backends/cuda/launch/launch.h"
#include "backends/cuda/launch/matrix.h"

namespace quatrain::cuda {
namespace {

using namespace latent;

constexpr int kFeedWarps = 4;
constexpr int kFeedThreads = kFeedWarps * kWarp;
constexpr int kAllThreads = kThreads + kFeedThreads;
constexpr int kGroupThreads = kGroupWarps * kWarp;
constexpr int kHalfBytes = kTileBytes / 2;  // of half of the columns of a tile
// Registers per thread once the warps have shared them out: 256 · 200 + 128 · 104 ≤ 384 · 168.
constexpr int kSumRegisters = 200, kFeedRegisters = 104;

/// What a group says of its tile.
struct alignas(1024) Published {
  unsigned char weights[kHeads * kPanelRowBytes];
  float2 rows[kHeads];           // the factor that sums before it take, the largest score so far
  float4 totals[kGroupThreads];  // so far, as State has them
};

/// What of a row is a block's.
struct Item {
  int r = 0;
  int head = 0;
  int heads = 0;  // 0: there is no more
  int count = 0;  // keys
};

__device__ const float* queries_of(const AttendArgs& args, const Item& item) {
  return args.q + (std::int64_t{item.r} * args.heads + item.head) * kWidth;
}

constexpr int kFedHeads = kHeads / 2;  // whose queries the warps that bring keys load
// Rows that have rotations at a time: those of one are made while others' results are turned.
constexpr int kTurnRows = 4;

struct Shared {
  unsigned char q[kTileBytes];
  unsigned char keys[2][kTileBytes];
  Published tiles[2];
  float2 turns[kTurnRows][kMostPairs];  // of the queries
  Item item;
  Barrier full[2][2];    // [stage][half]: keys are there
  Barrier empty[2][2];   // the group of the half has used them
  Barrier published[2];  // of tiles
  Barrier has_item;      // and turns
  Barrier has_queries;
  Barrier row_read;  // no more scores are made of them
};
static_assert(sizeof(Shared) <= 227 * 1024);

// ---- keys and queries ----

/// The warps that bring them.
class Feeder {
 public:
  __device__ Feeder(const AttendArgs& args, Shared& shared)
      : args_(args),
        shared_(shared),
        per_row_(ceil_div(args.heads, kHeads)),
        at_(static_cast<int>(blockIdx.x)),
        warp_(uniform_warp_id() - latent::kWarps),
        place_(warp_ * kOwnKeys * kPanelRowBytes + lane_id() / 8 * kPanelBytes) {}

  __device__ void run() {
    Row row = find_row();
    while (row.item.heads > 0) {
      const int end = ceil_div(row.item.count, kTileKeys);
      Row next;
      for (int tile = 0; tile < end; ++tile) {
        load_keys(row.sources, tile % kSourceTiles * kOwnKeys);
        if (tile == 0) load_row(row.item);
        if (tile == min(end, kSourceTiles) - 1) {  // both stages are on their way
          next = find_row();
          prefetch_queries(next.item);
        }
        if (tile % kSourceTiles == kSourceTiles - 1 && tile + 1 < end)
          row.sources = RowSources(args_, row.keys, row.item.r).of(own_key(tile + 1));
      }
      row = next;
    }
    load_row(row.item);
  }

 private:
  static constexpr int kOwnKeys = kTileKeys / kFeedWarps;
  static constexpr int kSourceTiles = kWarp / kOwnKeys;  // whose keys a warp looks up at once

  struct Row {
    Item item;
    RowKeys keys = {};
    Source sources = 0;  // of the warp's keys in the tiles that are loaded next, a lane each
  };

  /// The key of a lane among those of the tiles from `tile` on.
  __device__ int own_key(int tile) const {
    return (tile + lane_id() / kOwnKeys) * kTileKeys + warp_ * kOwnKeys + lane_id() % kOwnKeys;
  }

  /// The next that this kernel takes. Padding becomes zeros, in layers with entries elsewhere.
  __device__ Row find_row() {
    const bool has_entries = args_.entries.rows.data != nullptr;
    while (at_ < per_row_ * args_.batch.rows) {
      const int r = at_ / per_row_, head = at_ % per_row_ * kHeads;
      const int heads = min(kHeads, args_.heads - head);
      at_ += static_cast<int>(gridDim.x);
      if (args_.batch.slots[r] < 0) {
        if (!has_entries)
          clear(args_.out + (std::int64_t{r} * args_.heads + head) * kWidth, heads, -kThreads,
                kFeedThreads);
        continue;
      }
      if (has_entries && is_few(args_.batch, r)) continue;
      Row row{{r, head, heads}, find_keys(args_, r)};
      row.item.count = row.keys.count;
      row.sources = RowSources(args_, row.keys, r).of(own_key(0));
      return row;
    }
    return {};
  }

  /// The warp's keys of the next tile; lane first + j knows the source of key j.
  __device__ void load_keys(Source own, int first) {
    unsigned char* stage = shared_.keys[ring_.at] + place_;
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      barrier_wait(&shared_.empty[ring_.at][half], ring_.parity ^ 1u);
      const std::uint32_t to = shared_address(stage + half * kHalfBytes);
      const int chunk = half * kWarp + lane_id();
#pragma unroll
      for (int j = 0; j < kOwnKeys; ++j) {
        const Source source = __shfl_sync(kAllLanes, own, first + j);
        copy16_or_zeros(to + static_cast<std::uint32_t>(panel_offset(j, lane_id() % 8)),
                        reinterpret_cast<const uint4*>(source & ~kTags) + chunk, source != 0);
      }
      arrive_when_copied(&shared_.full[ring_.at][half]);
    }
    ring_.next(2);
  }

  /// The item, and the first of its queries.
  __device__ void load_row(const Item& item) {
    using Batch = QueryBatch<kFeedHeads, kHeads, kFeedWarps, true>;
    float2* turns = shared_.turns[row_ % kTurnRows];
    const int nth = static_cast<int>(threadIdx.x) - kThreads;
    if (item.heads > 0 && nth < args_.pairs)
      turns[nth] = rotation(args_.batch.positions[item.r], args_.inv_freq[nth], false);
    const int heads = min(item.heads, kFedHeads);
    Batch batch(queries_of(args_, item), warp_, heads);
    barrier_wait(&shared_.row_read, row_ % 2 ^ 1u);
    if (nth == 0) shared_.item = item;
    barrier_arrive(&shared_.has_item);
    barrier_wait(&shared_.has_item, row_ % 2);  // the others' turns
    batch.store(args_, turns, shared_.q);
#pragma unroll 1
    for (int begin = warp_ + kFeedHeads * kFeedWarps; begin < heads;
         begin += kFeedHeads * kFeedWarps)
      Batch(queries_of(args_, item), begin, heads).store(args_, turns, shared_.q);
    fence_operands();
    warp_arrive(&shared_.has_queries);
    ++row_;
  }
  __device__ void prefetch_queries(const Item& item) const {
    constexpr int kLine = 128;
    const char* from = reinterpret_cast<const char*>(queries_of(args_, item));
    for (int at = (static_cast<int>(threadIdx.x) - kThreads) * kLine; at < item.heads * kWidth * 4;
         at += kFeedThreads * kLine)
      prefetch_to_l2(from + at);
  }
  static constexpr int kFeedHeads = 3;  // that are on their way through registers

  const AttendArgs& args_;
  Shared& shared_;
  const int per_row_;
  int at_;  // of the items, of which this block has every gridDim.x-th
  const int warp_;
  const int place_;  // in a stage, of the lane's chunks of the warp's first key
  RingPosition ring_;
  unsigned row_ = 0;  // counts them
};

// ---- scores, weights and sums ----

/// Of one thread, which has two rows of a tile. Scores are in units of log 2.
struct State {
  float largest[2];
  float total[2][2];  // [half of a tile][row] of the keys that the thread weighs
};

/// A group at work.
class Summer {
 public:
  __device__ Summer(const AttendArgs& args, Shared& shared, float scale)
      : args_(args),
        shared_(shared),
        scale_(scale),
        group_(uniform_warp_id() / kGroupWarps),
        head_(warp_id() % kGroupWarps * 16 + lane_id() / 4) {}

  __device__ void run() {
    for (unsigned row = 0;; ++row) {
      barrier_wait(&shared_.has_item, row % 2);
      const Item item = shared_.item;
      if (item.heads == 0) return;
      load_queries(item, shared_.turns[row % kTurnRows]);
      find_sinks(item);
      barrier_wait(&shared_.has_queries, row % 2);
      sum_row(item);
      store(item, shared_.turns[row % kTurnRows]);
    }
  }

 private:
  /// The other queries: no sums need registers yet.
  __device__ void load_queries(const Item& item, const float2* turns) const {
    using Batch = QueryBatch<(kHeads - kFedHeads) / latent::kWarps, kHeads, latent::kWarps, true>;
    Batch(queries_of(args_, item), kFedHeads + warp_id(), item.heads)
        .store(args_, turns, shared_.q);
    fence_operands();
    warp_arrive(&shared_.has_queries);
  }

  __device__ void find_sinks(const Item& item) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int head = head_ + 8 * h;
      sinks_[h] = head < item.heads ? args_.sinks[item.head + head] * kLog2e : 0;
    }
  }

  /// sums_ and state_ of all tiles.
  __device__ void sum_row(const Item& item) {
#pragma unroll
    for (float& sum : sums_) sum = 0;  // which ends the registers' use for those of the last row
    // The compiler knows by this that it is the same in all lanes, and so are operands' addresses.
    const int end = __shfl_sync(kAllLanes, ceil_div(item.count, kTileKeys), 0);
    int tile = 0;
    if ((first_ & 1) == group_) {
      float scores[32];
      begin_scores(first_, scores);
      wgmma_wait<0>();
      wgmma_results(scores);
      if (end <= 2) warp_arrive(&shared_.row_read);
      state_ = {{-INFINITY, -INFINITY}, {}};
      weigh(first_, scores, item.count);
      add_tile(first_, true);
      tile = 1;
    } else if (end == 1) {
      warp_arrive(&shared_.row_read);
    }
    // A tile of the other group, and one of this.
    for (; tile + 1 < end; tile += 2) {
      const int other = first_ + tile, own = other + 1;
      float scores[32];
      learn(other, tile == 0);
      begin_values(other, tile == 0);
      begin_scores(own, scores);
      wgmma_wait<1>();
      wgmma_results(sums_);
      release(other);
      wgmma_wait<0>();
      wgmma_results(scores);
      if (tile + 3 >= end) warp_arrive(&shared_.row_read);
      weigh(own, scores, item.count - (tile + 1) * kTileKeys);
      add_tile(own, false);
    }
    if (tile < end) {
      const int other = first_ + tile;
      learn(other, tile == 0);
      begin_values(other, tile == 0);
      wgmma_wait<0>();
      wgmma_results(sums_);
      release(other);
    }
    first_ += end;
  }

  // Of the block's tiles, counted over all rows, the nth is group n % 2's and has stage n % 2.
  __device__ static std::uint32_t parity(int n) { return static_cast<std::uint32_t>(n) / 2 % 2; }

  /// scores = q keysᵀ; returns at once.
  __device__ void begin_scores(int n, float (&scores)[32]) const {
    constexpr int kStride = 8 * kPanelRowBytes;
    for (int half = 0; half < 2; ++half) barrier_wait(&shared_.full[n % 2][half], parity(n));
    fence_operands();
    const std::uint64_t q = operand(shared_address(shared_.q), 16, kStride);
    const std::uint64_t keys =
        operand_behind(operand(shared_address(shared_.keys), 16, kStride), (n & 1) * kTileBytes);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kWidth / 16; ++k) {
      const int at = k / 4 * kPanelBytes + k % 4 * 32;
      wgmma_f16<kTileKeys>(scores, operand_behind(q, at), operand_behind(keys, at), k > 0);
    }
    wgmma_commit();
  }

  /// Waits for what the other group says of its tile; sums_ take its factor.
  __device__ void learn(int n, bool is_first) {
    barrier_wait(&shared_.published[n % 2], parity(n));
    const Published& tile = shared_.tiles[n % 2];
    const float4 totals = tile.totals[static_cast<int>(threadIdx.x) % kGroupThreads];
    const float2 rows[2] = {tile.rows[head_], tile.rows[head_ + 8]};
    state_ = {{rows[0].y, rows[1].y}, {{totals.x, totals.y}, {totals.z, totals.w}}};
    if (!is_first) rescale({rows[0].x, rows[1].x});
  }

  /// Scores of the nth tile become weights, for both groups. Products and sums are rounded as they
  /// are in weigh() of latent_sums.cuh.
  __device__ void weigh(int n, float (&scores)[32], int present) {
    Published& tile = shared_.tiles[n % 2];
    if (present < kTileKeys) {
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const int key = i / 4 * 8 + 2 * (lane_id() % 4) + i % 2;
        if (key >= present) scores[i] = -INFINITY;
      }
    }
    float best[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      scores[i] = __fmul_rn(scores[i], scale_);
      best[i / 2 % 2] = fmaxf(best[i / 2 % 2], scores[i]);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float largest = fmaxf(state_.largest[h], quad_max(best[h]));
      factor_[h] = weight_of(state_.largest[h] - largest);
      state_.largest[h] = largest;
      if (lane_id() % 4 == 0) tile.rows[head_ + 8 * h] = {factor_[h], largest};
    }
#pragma unroll
    for (int i = 0; i < 32; i += 2) {
      const int h = i / 2 % 2, half = i / 16;
      const float a = weight_of(scores[i] - state_.largest[h]);
      const float b = weight_of(scores[i + 1] - state_.largest[h]);
      float& total = state_.total[half][h];
      total = fmaf(total, i % 16 < 4 ? factor_[h] : 1.0f, __fadd_rn(a, b));
      *reinterpret_cast<std::uint32_t*>(tile.weights + panel_offset(head_ + 8 * h, i / 4) +
                                        4 * (lane_id() % 4)) = f16_pair(a, b);
    }
    tile.totals[static_cast<int>(threadIdx.x) % kGroupThreads] = {
        state_.total[0][0], state_.total[0][1], state_.total[1][0], state_.total[1][1]};
    fence_operands();
    warp_arrive(&shared_.published[n % 2]);
  }

  __device__ void rescale(float2 factor) {
    if (!__any_sync(kAllLanes, factor.x != 1 || factor.y != 1)) return;
#pragma unroll
    for (int i = 0; i < kWidth / 4; ++i) sums_[i] *= i / 2 % 2 == 0 ? factor.x : factor.y;
  }

  /// sums_ (+)= weights · values for the columns of this group; returns at once.
  __device__ void begin_values(int n, bool is_first) {
    constexpr int kStride = 8 * kPanelRowBytes;
    const std::uint64_t weights = operand_behind(
        operand(shared_address(shared_.tiles), 16, kStride), (n & 1) * int{sizeof(Published)});
    const std::uint64_t values =
        operand_behind(operand(shared_address(shared_.keys), kPanelBytes, kStride),
                       (n & 1) * kTileBytes + group_ * kHalfBytes);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kTileKeys / 16; ++k)
      wgmma_m64n256_rows(sums_, operand_behind(weights, 32 * k),
                         operand_behind(values, 16 * kPanelRowBytes * k), !is_first || k > 0);
    wgmma_commit();
  }
  /// The group's own tile to sums_.
  __device__ void add_tile(int n, bool is_first) {
    barrier_wait(&shared_.published[n % 2], parity(n));  // by all of its warps
    if (!is_first) rescale({factor_[0], factor_[1]});
    begin_values(n, is_first);
    wgmma_wait<0>();
    wgmma_results(sums_);
    release(n);
  }
  __device__ void release(int n) const { warp_arrive(&shared_.empty[n % 2][group_]); }

  /// Two columns of a result, the first of them even.
  __device__ float2 turned(int column, float2 x, const float2* turns) const {
    const int p = column / 2 - (kWidth / 2 - args_.pairs);
    if (p < 0) return x;
    float pair[2] = {x.x, x.y};
    rotate_pair(pair, {turns[p].x, -turns[p].y});
    return {pair[0], pair[1]};
  }
  /// out = the results of a row, two columns of a head to a lane at a time.
  __device__ void store(const Item& item, const float2* turns) const {
    constexpr int kOwn = kWidth / 2;
    constexpr int kTurned = kOwn - 2 * kMostPairs;  // from here on columns may be turned
    const int first = group_ * kOwn;
    float* out = args_.out + (std::int64_t{item.r} * args_.heads + item.head) * kWidth + first +
                 lane_id() % 4 * 2;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int head = head_ + 8 * h;
      const bool exists = head < item.heads;
      const float total = quad_sum(state_.total[0][h]) + quad_sum(state_.total[1][h]);
      const float best = fmaxf(state_.largest[h], sinks_[h]);
      const float weight = exp2f(state_.largest[h] - best);
      const float factor = weight / (total * weight + exp2f(sinks_[h] - best));
#pragma unroll
      for (int at = 0; at < kOwn; at += 8) {
        const float* sum = sums_ + at / 2 + 2 * h;
        float2 pair = {sum[0] * factor, sum[1] * factor};
        if (at >= kTurned) pair = turned(first + at + lane_id() % 4 * 2, pair, turns);
        if (exists) __stcs(reinterpret_cast<float2*>(out + head * kWidth + at), pair);
      }
    }
  }

  const AttendArgs& args_;
  Shared& shared_;
  const float scale_;
  const int group_;
  const int head_;          // first of the thread's two
  int first_ = 0;           // tile of the row
  float sums_[kWidth / 4];  // of the thread's rows and the group's columns
  State state_;
  float sinks_[2];
  float factor_[2];  // of the sums before the last tile that this group weighed
};

__global__ void __launch_bounds__(kAllThreads, 1)
    attend_rows_kernel(const __grid_constant__ AttendArgs args, float scale) {
  extern __shared__ __align__(1024) unsigned char raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw);
  let_next_start();
  if (threadIdx.x == 0) {
    init_ring(shared.full[0], kFeedThreads, shared.empty[0], kGroupWarps * kWarpArrivals, 4);
    for (Barrier& published : shared.published)
      barrier_init(&published, kGroupWarps * kWarpArrivals);
    barrier_init(&shared.has_item, kFeedThreads);
    barrier_init(&shared.has_queries, (latent::kWarps + kFeedWarps) * kWarpArrivals);
    barrier_init(&shared.row_read, latent::kWarps * kWarpArrivals);
    barrier_init_fence();
  }
  __syncthreads();
  wait_for_previous();
  if (warp_id() < latent::kWarps) {
    raise_registers<kSumRegisters>();
    Summer(args, shared, scale).run();
  } else {
    lower_registers<kFeedRegisters>();
    Feeder(args, shared).run();
  }
}

}  // namespace

bool has_attend_latent_rows(const AttendArgs& args) {
  return args.batch.rows >= kLongStepRows && args.step_rows != nullptr && !args.stores &&
         args.ring.format == CacheFormat::kF16;
}

void attend_latent_rows(const AttendArgs& args, float scale, cudaStream_t stream) {
  LaunchShape shape{.block = kAllThreads, .shared = sizeof(Shared)};
  static const int at_once = [&] {
    allow_shared(attend_rows_kernel, sizeof(Shared));
    return resident_clusters(attend_rows_kernel, shape);
  }();
  shape.grid =
      static_cast<unsigned>(std::min(args.batch.rows * ceil_div(args.heads, kHeads), at_once));
  launch(attend_rows_kernel, shape, stream, args, scale);
}

}  // namespace quatrain::cuda

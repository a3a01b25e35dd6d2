// SPDX-License-Identifier: Apache-2.0
// attend_latent of few rows, whose time is latency alone: 16 heads to a block, all that the block
// has to read asked for at once, and products of single warps, which wait for nothing but their
// operands. Parts, and the order and the bits of every sum are those of attention_latent.cu: on
// Hopper a chain of mma.sync sums as one of wgmma does.
//
// A part of a row's tiles of 64 keys is a block's. Each of its eight warps scores eight keys of a
// tile, with all queries in registers; they exchange maxima and weights, and each accumulates 64 of
// the columns.
#include <cmath>

#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/latent_queries.cuh"
#include "backends/cuda/device/latent_results.cuh"
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/launch/attention.h"
#include "backends/cuda/launch/launch.h"
#include "backends/cuda/launch/matrix.h"

namespace quatrain::cuda {
namespace {

using namespace latent;

constexpr int kRows = kFewHeads;
constexpr int kStages = 3;
constexpr int kSteps = kWidth / 16;                        // of a score's sum
constexpr int kColumnTiles = kWidth / latent::kWarps / 8;  // of a warp
constexpr int kQueryPanelBytes = kRows * kPanelRowBytes;   // 64 columns of the queries
static_assert(kRows == 16 && kKeysPerWarp == 8, "a product of 16 by 8");
static_assert(kWidth == latent::kWarps * kPanelColumns, "a panel of columns to each warp");

struct Shared {
  union {
    unsigned char keys[kStages][kTileBytes];
    float out[kRows][kOutStride];  // sums of the block's part
  };
  unsigned char q[kRows * kWidth * 2];
  unsigned char weights[kRows * kPanelRowBytes];
  float largest[kRows][latent::kWarps];     // of a warp's scores
  float2 pair_sums[latent::kWarps][kWarp];  // of the weights of a lane's two keys, of its two rows
  float total[2][kRows];                    // of the two groups of warps
  float part_largest[1][kRows];
  float part_total[1][kRows];
  float2 turns[kMostPairs];        // of the output's trailing pairs
  float2 query_turns[kMostPairs];  // of the queries'
};

// A lane's two rows are this one and the one 8 further.
__device__ int first_row() { return lane_id() / 4; }

// Where the lane's 16 bytes of the operand of 16 rows by 16 columns are that is the nth of its
// panels, which lie `panel_bytes` apart.
__device__ int rows_offset(int nth, int panel_bytes) {
  return nth / 4 * panel_bytes + panel_offset(lane_id() % 16, nth % 4 * 2 + lane_id() / 16);
}

// The softmax sums of a part of a row's keys, as a lane has them.
class Part {
 public:
  __device__ explicit Part(Shared& shared) : shared_(shared) {}

  // All queries, which are in shared memory.
  __device__ void load_queries() {
    const std::uint32_t q = shared_address(shared_.q);
#pragma unroll
    for (int k = 0; k < kSteps; ++k) ldmatrix_x4(q_[k], q + rows_offset(k, kQueryPanelBytes));
  }

  // Adds a tile, of whose keys the first `present` are there.
  __device__ void add(const unsigned char* tile, int present, float scale) {
    float scores[4] = {};
    score(tile, scores);
    float factor[2];
    weigh(scores, present, scale, factor);
    __syncthreads();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int j = 0; j < kGroupWarps; ++j) {
        const float2 pairs =
            shared_.pair_sums[warp_id() / kGroupWarps * kGroupWarps + j][lane_id()];
        total_[h] = fmaf(total_[h], j == 0 ? factor[h] : 1.0f, h == 0 ? pairs.x : pairs.y);
      }
    }
    add_values(tile);
  }

  // Leaves them where the other blocks of the cluster can read them.
  __device__ void publish(int heads) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float sum = quad_sum(total_[h]);
      if (warp_id() % kGroupWarps == 0 && lane_id() % 4 == 0)
        shared_.total[warp_id() / kGroupWarps][first_row() + 8 * h] = sum;
    }
    __syncthreads();  // and the last tile has been used
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = first_row() + 8 * h;
      if (row >= heads) continue;
      const float total = shared_.total[0][row] + shared_.total[1][row];
      if (warp_id() == 0 && lane_id() % 4 == 0) {
        shared_.part_largest[0][row] = largest_[h];
        shared_.part_total[0][row] = total;
      }
      if (total == 0) continue;  // nobody uses the sums of a part without keys
      float* out = &shared_.out[row][warp_id() * kPanelColumns + 2 * (lane_id() % 4)];
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n)
        *reinterpret_cast<float2*>(out + 8 * n) = {out_[n][2 * h], out_[n][2 * h + 1]};
    }
  }

 private:
  // scores = q keysᵀ for this warp's keys.
  __device__ void score(const unsigned char* tile, float (&scores)[4]) const {
    const std::uint32_t keys = shared_address(tile) + warp_id() * kKeysPerWarp * kPanelRowBytes;
#pragma unroll
    for (int k = 0; k < kSteps; k += 2) {
      std::uint32_t b[4];
      ldmatrix_x4(
          b, keys + k / 4 * kPanelBytes + panel_offset(lane_id() % 8, k % 4 * 2 + lane_id() / 8));
      mma_f16(scores, q_[k], b[0], b[1]);
      mma_f16(scores, q_[k + 1], b[2], b[3]);
    }
  }

  // Turns scores into weights and rescales the sums; the total is left to the caller.
  __device__ void weigh(const float (&scores)[4], int present, float scale, float (&factor)[2]) {
    const int key = kKeysPerWarp * warp_id() + 2 * (lane_id() % 4);
    float scaled[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      scaled[i] = key + i % 2 < present ? __fmul_rn(scores[i], scale) : -INFINITY;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float best = quad_max(fmaxf(scaled[2 * h], scaled[2 * h + 1]));
      if (lane_id() % 4 == 0) shared_.largest[first_row() + 8 * h][warp_id()] = best;
    }
    __syncthreads();
    bool grows = false;  // a maximum that sums were made with
    float pair_sums[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = first_row() + 8 * h;
      const auto* of = reinterpret_cast<const float4*>(shared_.largest[row]);
      const float4 low = of[0], high = of[1];
      const float best = fmaxf(fmaxf(fmaxf(low.x, low.y), fmaxf(low.z, low.w)),
                               fmaxf(fmaxf(high.x, high.y), fmaxf(high.z, high.w)));
      const float largest = fmaxf(largest_[h], best);
      factor[h] = weight_of(largest_[h] - largest);
      grows |= factor[h] != 1.0f && largest_[h] != -INFINITY;
      largest_[h] = largest;
      const float a = weight_of(scaled[2 * h] - largest),
                  b = weight_of(scaled[2 * h + 1] - largest);
      pair_sums[h] = __fadd_rn(a, b);
      *reinterpret_cast<std::uint32_t*>(shared_.weights + panel_offset(row, warp_id()) +
                                        4 * (lane_id() % 4)) = f16_pair(a, b);
    }
    shared_.pair_sums[warp_id()][lane_id()] = {pair_sums[0], pair_sums[1]};
    if (__any_sync(kAllLanes, grows)) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) out_[n][i] *= factor[i / 2];
    }
  }

  // out += weights · values for the columns of this warp, a panel.
  __device__ void add_values(const unsigned char* tile) {
    const std::uint32_t weights = shared_address(shared_.weights);
    const std::uint32_t values = shared_address(tile) + warp_id() * kPanelBytes;
#pragma unroll
    for (int k = 0; k < kTileKeys / 16; ++k) {
      std::uint32_t a[4];
      ldmatrix_x4(a, weights + rows_offset(k, 0));
#pragma unroll
      for (int n = 0; n < kColumnTiles; n += 2) {
        std::uint32_t b[4];
        ldmatrix_x4_transposed(b,
                               values + panel_offset(16 * k + lane_id() % 16, n + lane_id() / 16));
        mma_f16(out_[n], a, b[0], b[1]);
        mma_f16(out_[n + 1], a, b[2], b[3]);
      }
    }
  }

  Shared& shared_;
  std::uint32_t q_[kSteps][4];
  float out_[kColumnTiles][4] = {};
  float largest_[2] = {-INFINITY, -INFINITY};
  float total_[2] = {};  // of the keys of a lane in all warps of its group
};

// A block's tiles of a row on their way to shared memory, kStages of them at once.
template <CacheFormat kFormat>
class Tiles {
 public:
  __device__ Tiles(const RowSources& sources, int begin, int end,
                   unsigned char (&stages)[kStages][kTileBytes])
      : sources_(sources), next_(begin), end_(end), stages_(stages) {}

  // Finds the rows of the first keys.
  __device__ void find() { now_ = of(next_); }
  // Asks for the first tile …
  __device__ void begin() { load(); }
  // … and for as many more as there is room for.
  __device__ void fill() {
#pragma unroll 1
    for (int i = 1; i < kStages; ++i) load();
    if (next_ < end_) later_ = of(next_ - asked_ + kSourceTiles);
  }

  // The next tile, once it is there and the one before has been used.
  __device__ const unsigned char* wait() {
    if (used_ == 0)
      wait_copies<kStages - 1>();
    else
      wait_copies<kStages - 2>();
    __syncthreads();
    if (used_ > 0) load();
    return stages_[used_++ % kStages];
  }

 private:
  // Of the warp's keys in kSourceTiles tiles, a lane each.
  __device__ Source of(int tile) const {
    return sources_.of((tile + lane_id() / kKeysPerWarp) * kTileKeys + warp_id() * kKeysPerWarp +
                       lane_id() % kKeysPerWarp);
  }
  // Asks for one more tile; where there is none, for nothing.
  __device__ void load() {
    if (next_ >= end_) return commit_copies();
    const int place = asked_ % kSourceTiles;
    if (asked_ > 0 && place == 0) {
      now_ = later_;
      later_ = of(next_ + kSourceTiles);
    }
    load_keys<kFormat>(now_, place * kKeysPerWarp, stages_[asked_ % kStages]);
    ++asked_;
    ++next_;
  }

  const RowSources& sources_;
  int next_;
  const int end_;
  unsigned char (&stages_)[kStages][kTileBytes];
  Source now_ = 0, later_ = 0;
  int asked_ = 0, used_ = 0;
};

template <CacheFormat kFormat, int kParts>
__global__ void __launch_bounds__(kThreads, 1) attend_few_kernel(AttendArgs args, float scale) {
  extern __shared__ __align__(1024) unsigned char raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw);
  const int part = static_cast<int>(blockIdx.x);
  const int head = static_cast<int>(blockIdx.y) * kRows;
  const int heads = min(kRows, args.heads - head);
  const int r = static_cast<int>(blockIdx.z);
  const std::int64_t at = (std::int64_t{r} * args.heads + head) * kWidth;
  const bool is_row = args.batch.slots[r] >= 0;
  if (!is_row || !is_few(args.batch, r)) {
    wait_for_previous();
    if (!is_row) clear(args.out + at, heads, part * kThreads, kParts * kThreads);
    return;
  }
  find_turns(args, r, shared);
  const RowKeys keys = find_keys(args, r);
  const RowSources sources(args, keys, r);
  const int all = ceil_div(keys.count, kTileKeys);
  const int begin = all * part / kParts, end = all * (part + 1) / kParts;
  Tiles<kFormat> tiles(sources, begin, end, shared.keys);
  if (keys.selected == nullptr) tiles.find();
  __syncthreads();
  wait_for_previous();
  Part sums(shared);
  if (begin < end) {
    QueryBatch<kRows / latent::kWarps, kRows> queries(args.q + at, warp_id(), heads);
    if (keys.selected != nullptr) tiles.find();
    tiles.begin();
    queries.store(args, shared.query_turns, shared.q);
    __syncthreads();
    sums.load_queries();
    tiles.fill();
    let_next_start();
#pragma unroll 1
    for (int tile = begin; tile < end; ++tile)
      sums.add(tiles.wait(), keys.count - tile * kTileKeys, scale);
  }
  sums.publish(heads);
  if (args.stores && part == kParts - 1 && head == 0) store_latent(args, r);
  cooperative_groups::this_cluster().sync();
  combine<kParts, 1, kParts / 2>(args, shared, part, heads, args.sinks + head, args.out + at);
  cooperative_groups::this_cluster().sync();  // nobody leaves while its sums are read
}

template <CacheFormat kFormat, int kParts>
void launch_parts(const AttendArgs& args, float scale, cudaStream_t stream) {
  constexpr auto kKernel = attend_few_kernel<kFormat, kParts>;
  static const bool is_ready = [] {
    allow_shared(kKernel, sizeof(Shared));
    return true;
  }();
  (void)is_ready;
  const LaunchShape shape{.grid = dim3(kParts, static_cast<unsigned>(ceil_div(args.heads, kRows)),
                                       static_cast<unsigned>(args.batch.rows)),
                          .block = kThreads,
                          .shared = sizeof(Shared),
                          .cluster_x = kParts};
  launch(kKernel, shape, stream, args, scale);
}

}  // namespace

void attend_latent_few(const AttendArgs& args, int parts, float scale, cudaStream_t stream) {
  with_format<CacheFormat::kPackedLatent>(args.ring.format, [&]<CacheFormat kFormat>() {
    if (parts == 2)
      launch_parts<kFormat, 2>(args, scale, stream);
    else
      launch_parts<kFormat, 4>(args, scale, stream);
  });
}

}  // namespace quatrain::cuda

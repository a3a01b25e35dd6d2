// SPDX-License-Identifier: Apache-2.0
// Scores of index keys on tensor cores: F16 products of keys and queries, FP32 sums.
//
// A block serves one row and every gridDim.y-th tile of 128 keys, a warp 32 of them: keys are the M
// of the products and heads the N, so that ReLU, weights and the sum over heads stay in registers.
// The next tile is on its way while one is scored. Queries are scaled per head to the range of F16
// by a power of two, which their weight takes back.
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>

#include "backends/cuda/device/cache_rows.cuh"
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/f16_pairs.cuh"
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/row_math.cuh"
#include "backends/cuda/device/wgmma_f16.cuh"
#include "backends/cuda/launch/attention.h"
#include "backends/cuda/launch/launch.h"

namespace quatrain::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kMaxHeads = kMaxIndexHeads;
constexpr int kTileKeys = 128;
constexpr int kKeysPerWarp = kTileKeys / kWarps;
constexpr int kChunks = kMaxIndexWidth / 8;                  // of 16 bytes in a row
constexpr int kStride = kMaxIndexWidth * 2 + 16;             // bytes; spreads rows over the banks
constexpr int kTileChunks = kTileKeys * kChunks / kThreads;  // of one thread
constexpr int kPassKeys = kThreads / kChunks;                // that the block copies at a time
constexpr int kBlockKeys = 32;  // of a paged block: 128 tokens, four per key
constexpr int kTileBlocks = kTileKeys / kBlockKeys;
static_assert(kBlockKeys % kPassKeys == 0);
constexpr int kSteps = kMaxIndexWidth / 16;  // of 16 columns in a product
constexpr int kBlocksAtOnce = 132 * 2;       // two per processor

struct Shared {
  alignas(16) unsigned char keys[2][kTileKeys * kStride];
  alignas(16) unsigned char queries[kMaxHeads * kStride];
  float weights[kMaxHeads];
  float2 turns[kMaxIndexWidth / 2];
};

// The rotations of the row's queries, by pair of columns: none but for the last pairs of the width.
// A barrier must follow.
__device__ void find_turns(Shared& shared, const IndexSelectArgs& args, int position) {
  for (int pair = static_cast<int>(threadIdx.x); pair < kMaxIndexWidth / 2; pair += kThreads) {
    const int p = pair - (args.width / 2 - args.pairs);
    const bool turns = 0 <= p && p < args.pairs;
    shared.turns[pair] = turns ? rotation(position, args.inv_freq[p], false) : float2{1.0f, 0.0f};
  }
}

__device__ float4 turned(const float4& x, const float2* turns) {
  float low[2] = {x.x, x.y}, high[2] = {x.z, x.w};
  rotate_pair(low, turns[0]);
  rotate_pair(high, turns[1]);
  return {low[0], low[1], high[0], high[1]};
}

// Heads beyond the last and columns beyond the width are zero; heads beyond the last weigh nothing.
// Eight lanes have a head, and a lane every eighth four columns. Little code: it runs once.
__device__ void load_queries(Shared& shared, const IndexSelectArgs& args, int r, float scale) {
  constexpr int kLanes = 8;  // of a head
  constexpr int kFours = kMaxIndexWidth / 4 / kLanes;
  constexpr int kHeadsAtOnce = kThreads / kLanes;
  const int first_column = lane_id() % kLanes * 4;
  const float* q = args.q + std::int64_t{r} * args.heads * args.width + first_column;
  const int first_head = static_cast<int>(threadIdx.x) / kLanes;
  float4 next[kFours];
  float next_weight = 0;
  const auto load = [&](int h) {
    const float* from = q + h * args.width;
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      const int column = 4 * kLanes * i;
      next[i] = {0, 0, 0, 0};
      if (h < args.heads && first_column + column < args.width)
        next[i] = *reinterpret_cast<const float4*>(from + column);
    }
    next_weight = h < args.heads ? args.weights[std::int64_t{r} * args.heads + h] * scale : 0.0f;
  };
  load(first_head);
#pragma unroll 1
  for (int h = first_head; h < kMaxHeads; h += kHeadsAtOnce) {
    float4 x[kFours];
    const float weight = next_weight;
    float largest = 0;
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      x[i] = turned(next[i], &shared.turns[(first_column + 4 * kLanes * i) / 2]);
      largest = fmaxf(
          largest, fmaxf(fmaxf(fabsf(x[i].x), fabsf(x[i].y)), fmaxf(fabsf(x[i].z), fabsf(x[i].w))));
    }
    if (h + kHeadsAtOnce < kMaxHeads) load(h + kHeadsAtOnce);
    // The power of two at or below the largest magnitude, where it has a reciprocal.
    const std::uint32_t exponent = min(
        max(__float_as_uint(warp_max<kLanes>(largest)) & 0x7F800000u, 0x00800000u), 0x7E800000u);
    const float down = __uint_as_float(0x7F000000u - exponent);
#pragma unroll
    for (int i = 0; i < kFours; ++i)
      *reinterpret_cast<uint2*>(shared.queries + h * kStride +
                                2 * (first_column + 4 * kLanes * i)) = {
          f16_pair(x[i].x * down, x[i].y * down), f16_pair(x[i].z * down, x[i].w * down)};
    if (lane_id() % kLanes == 0) shared.weights[h] = weight * __uint_as_float(exponent);
  }
}

// ---- keys into shared memory, as F16 ----

// Eight E2M1 codes times a power of two: exact but for results that are F16 subnormals.
__device__ uint4 e2m1_to_f16(std::uint32_t codes, std::uint8_t scale) {
  // A code's exponent and mantissa as F16 bits are its magnitude times 2^-14.
  const __half2 up = __float2half2_rn(16384.0f);
  const __half2 factor = __float2half2_rn(ue8m0_decode(scale));
  std::uint32_t out[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const std::uint32_t even = codes >> (8 * j);
    const std::uint32_t odd = codes >> (8 * j + 4);
    const std::uint32_t bits =
        (even & 8u) << 12 | (even & 7u) << 9 | (odd & 8u) << 28 | (odd & 7u) << 25;
    const __half2 value = __hmul2(__hmul2(*reinterpret_cast<const __half2*>(&bits), up), factor);
    out[j] = *reinterpret_cast<const std::uint32_t*>(&value);
  }
  return {out[0], out[1], out[2], out[3]};
}

// One tile of one thread between global and shared memory. F16 rows are copied at once by fetch();
// others wait in registers for store().
template <CacheFormat kFormat>
class TileLoader {
 public:
  // Where the keys of a tile are; `table` is that of the sequence. A tile is a whole number of
  // blocks.
  __device__ void find(const IndexSelectArgs& args, const int* table, int begin, int visible) {
#pragma unroll
    for (int b = 0; b < kTileBlocks; ++b) {
      const int first = begin + b * kBlockKeys;
      const std::int64_t block = first < visible ? table[first / kBlockKeys] : 0;
      blocks_[b] = row_address(args.keys.rows, block * kBlockKeys);
    }
  }

  // The tile that was found.
  __device__ void fetch(const IndexSelectArgs& args, int begin, int visible, unsigned char* tile) {
    const int chunks = args.width / 8;
#pragma unroll
    for (int i = 0; i < kTileChunks; ++i) {
      const bool is_there = begin + key_of(i) < visible && chunk() < chunks;
      // The keys of one i lie in one block.
      const unsigned char* row =
          blocks_[i * kPassKeys / kBlockKeys] + key_of(i) % kBlockKeys * args.keys.rows.row_bytes;
      if constexpr (kFormat == CacheFormat::kF16) {
        unsigned char* to = tile + key_of(i) * kStride + 16 * chunk();
        copy16_or_zeros(shared_address(to), row + 16 * chunk(), is_there);
      } else if constexpr (kFormat == CacheFormat::kBf16) {
        raw_[i] = {0, 0, 0, 0};
        if (is_there) raw_[i] = *reinterpret_cast<const uint4*>(row + 16 * chunk());
      } else {
        raw_[i].x = raw_[i].y = 0;
        if (is_there) {
          raw_[i].x = *reinterpret_cast<const std::uint32_t*>(row + 4 * chunk());
          raw_[i].y = row[args.width / 2 + chunk() / (kIndexBlock / 8)];
        }
      }
    }
    commit_copies();
  }

  __device__ void store(unsigned char* tile) const {
    if constexpr (kFormat != CacheFormat::kF16) {
#pragma unroll
      for (int i = 0; i < kTileChunks; ++i) {
        auto* to = reinterpret_cast<uint4*>(tile + key_of(i) * kStride + 16 * chunk());
        if constexpr (kFormat == CacheFormat::kBf16)
          *to = bf16_to_f16(raw_[i]);
        else
          *to = e2m1_to_f16(raw_[i].x, static_cast<std::uint8_t>(raw_[i].y));
      }
    }
  }

 private:
  __device__ static int chunk() { return static_cast<int>(threadIdx.x) % kChunks; }
  __device__ static int key_of(int i) {
    return static_cast<int>(threadIdx.x) / kChunks + i * kPassKeys;
  }
  const unsigned char* blocks_[kTileBlocks];
  uint4 raw_[kTileChunks];
};

// Scores of the warp's 32 keys of a tile.
__device__ void score_tile(const Shared& shared, const unsigned char* tile, int heads, int begin,
                           int visible, float* scores) {
  const int first = warp_id() * kKeysPerWarp;
  const std::uint32_t keys =
      shared_address(tile) + (first + lane_id() % 16) * kStride + lane_id() / 16 * 16;
  std::uint32_t a[2][kSteps][4];
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int k = 0; k < kSteps; ++k) ldmatrix_x4(a[m][k], keys + m * 16 * kStride + 32 * k);
  const std::uint32_t queries =
      shared_address(shared.queries) + lane_id() % 8 * kStride + lane_id() / 8 * 16;
  float totals[2][2] = {};
  for (int h = 0; h < heads; h += 8) {
    float dots[2][4] = {};
#pragma unroll
    for (int k = 0; k < kSteps; k += 2) {
      std::uint32_t b[4];
      ldmatrix_x4(b, queries + h * kStride + 32 * k);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        mma_f16(dots[m], a[m][k], b[0], b[1]);
        mma_f16(dots[m], a[m][k + 1], b[2], b[3]);
      }
    }
    const float even = shared.weights[h + 2 * (lane_id() % 4)];
    const float odd = shared.weights[h + 2 * (lane_id() % 4) + 1];
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        totals[m][half] = fmaf(even, fmaxf(dots[m][2 * half], 0.0f), totals[m][half]);
        totals[m][half] = fmaf(odd, fmaxf(dots[m][2 * half + 1], 0.0f), totals[m][half]);
      }
  }
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float total = totals[m][half];
      total += __shfl_xor_sync(kAllLanes, total, 1);
      total += __shfl_xor_sync(kAllLanes, total, 2);
      const int key = begin + first + 16 * m + 8 * half + lane_id() / 4;
      if (lane_id() % 4 == 0 && key < visible) scores[key] = total;
    }
}

// The grid covers the largest context; blocks beyond what a row can see have nothing to do.
template <CacheFormat kFormat>
__global__ void __launch_bounds__(kThreads, 2)
    index_scores_kernel(IndexSelectArgs args, int first_row, float scale) {
  extern __shared__ unsigned char raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw);
  const int r = first_row + static_cast<int>(blockIdx.x);
  const int slot = args.batch.slots[r];
  const int visible = slot < 0 ? 0 : (args.batch.positions[r] + 1) / args.keys.ratio;
  const int step = static_cast<int>(gridDim.y) * kTileKeys;
  int begin = static_cast<int>(blockIdx.y) * kTileKeys;
  if (visible <= args.topk || begin >= visible) return wait_for_previous();
  const int* table = args.batch.block_table + std::int64_t{slot} * args.batch.blocks_per_slot;
  TileLoader<kFormat> loader;
  loader.find(args, table, begin, visible);
  find_turns(shared, args, args.batch.positions[r]);
  __syncthreads();
  wait_for_previous();
  float* scores = args.scores + std::int64_t{blockIdx.x} * args.score_columns;
  loader.fetch(args, begin, visible, shared.keys[0]);
  load_queries(shared, args, r, scale);
  loader.store(shared.keys[0]);
  let_next_start();
  for (int stage = 0; begin < visible; begin += step, stage ^= 1) {
    const bool has_next = begin + step < visible;
    if (has_next) loader.find(args, table, begin + step, visible);
    wait_copies<0>();
    __syncthreads();  // the tile is there, and the other stage has been used
    if (has_next) loader.fetch(args, begin + step, visible, shared.keys[stage ^ 1]);
    score_tile(shared, shared.keys[stage], args.heads, begin, visible, scores);
    if (has_next) loader.store(shared.keys[stage ^ 1]);
  }
}

template <CacheFormat kFormat>
void launch_format(const IndexSelectArgs& args, int first_row, int rows, float scale,
                   cudaStream_t stream) {
  static const bool is_ready = [] {
    allow_shared(index_scores_kernel<kFormat>, sizeof(Shared));
    return true;
  }();
  (void)is_ready;
  const int tiles = (args.score_columns + kTileKeys - 1) / kTileKeys;
  const int per_row = std::min(tiles, std::max(1, kBlocksAtOnce / rows));
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(per_row));
  launch(index_scores_kernel<kFormat>, {.grid = grid, .block = kThreads, .shared = sizeof(Shared)},
         stream, args, first_row, scale);
}

}  // namespace

void index_scores_f16(const IndexSelectArgs& args, int first_row, int rows, float scale,
                      cudaStream_t stream) {
  with_format<CacheFormat::kPackedIndexKey>(args.keys.rows.format, [&]<CacheFormat kFormat>() {
    launch_format<kFormat>(args, first_row, rows, scale, stream);
  });
}

}  // namespace quatrain::cuda

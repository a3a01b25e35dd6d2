// SPDX-License-Identifier: Apache-2.0
// multiply_decoded: tiles of 192 tokens by 128 weight rows on F16 warpgroup products.
//
// Two kernels before lay out what the products read as shared memory holds it: one decodes the
// weights, one splits the inputs as it does for linear_tiles.cu. Blocks work in pairs on the same
// tokens and neighbouring rows, and each brings half of the tokens' inputs to both. One thread
// copies, three half blocks of columns ahead and across tiles; three warpgroups take 64 tokens
// each, and one scales and adds its sums while the others' products run. Sums are those of
// linear_stream.cu in the same order, and have the same bits; those of the slices so far wait in
// shared memory, from where the copy engine takes the last ones to memory.
//
// Limits: shared memory, which tensor cores read at 96 bytes a cycle while 53 arrive.
#include <algorithm>

#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/cluster.cuh"
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/exchange.cuh"
#include "backends/cuda/device/linear_blobs.cuh"
#include "backends/cuda/device/row_pairs.cuh"
#include "backends/cuda/device/warp_arrival.cuh"
#include "backends/cuda/device/wgmma.cuh"
#include "backends/cuda/launch/launch.h"
#include "backends/cuda/launch/linear_decoded.h"

namespace quatrain::cuda {
namespace {

constexpr LinearKind kKind = LinearKind::kFp8Rounded;
constexpr int kGroups = 3;  // of warps that multiply
constexpr int kGroupWarps = 4;
constexpr int kGroupThreads = kGroupWarps * kWarp;
constexpr int kThreads = (1 + kGroups) * kGroupThreads;
constexpr int kGroupTokens = 64;
constexpr int kTokens = kGroups * kGroupTokens;
// Registers per thread once the groups have shared them out: 128 · 40 + 384 · 152 ≤ 65536.
constexpr int kCopyRegisters = 40, kProductRegisters = 152;

// What the kernels before make of a block of 128 columns: halves of 64, and the tokens' factors.
using InputTile = InputBlob<kTokens, 1>;
using WeightTile = InputBlob<kPairRows, 1>;
constexpr int kInputBytes = InputTile::kHalfBytes;
constexpr int kWeightBytes = WeightTile::kHalfBytes;
constexpr int kHalfRow = 128;  // bytes

struct DecodedTiles : RowPairs {
  const char* inputs = nullptr;   // [token tiles][groups][blocks] of InputTile
  const char* weights = nullptr;  // [pairs][2][blocks][2 halves] of a WeightTile
};

/// Where the weights of a tile of rows and a block of columns begin.
__device__ std::int64_t weight_offset(const DecodedTiles& args, int pair, int rank, int block) {
  return ((std::int64_t{pair} * kBlocksOfPair + rank) * args.blocks + block) * (2 * kWeightBytes);
}

// ---- the kernels before ----

constexpr int kDecodeThreads = 256;
constexpr int kPieces = kLinearBlock / 16;  // of 16 columns of a row

struct WeightValues {
  const std::uint8_t* of[kMaxProducts] = {};  // [rows, cols]
};

/// The grid is [blocks of columns, 2 pairs].
__global__ void __launch_bounds__(kDecodeThreads)
    decode_kernel(const __grid_constant__ DecodedTiles args,
                  const __grid_constant__ WeightValues values, char* weights) {
  let_next_start();
  const int block = static_cast<int>(blockIdx.x);
  const int pair = static_cast<int>(blockIdx.y) / kBlocksOfPair;
  const int rank = static_cast<int>(blockIdx.y) % kBlocksOfPair;
  const RowTile tile = row_tile(args, pair, rank);
  const int rows = args.products[tile.product].rows - tile.row;
  const int piece = static_cast<int>(threadIdx.x) % kPieces;
  const int cols = args.blocks * kLinearBlock;
  constexpr int kRowsAtOnce = kDecodeThreads / kPieces, kRounds = kPairRows / kRowsAtOnce;
  uint4 codes[kRounds];
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    const int row = i * kRowsAtOnce + static_cast<int>(threadIdx.x) / kPieces;
    const auto* from = values.of[tile.product] + std::int64_t{tile.row + row} * cols +
                       block * kLinearBlock + piece * 16;
    codes[i] = row < rows ? load_streamed(reinterpret_cast<const char*>(from)) : uint4{0, 0, 0, 0};
  }
  wait_for_previous();
  char* to = weights + weight_offset(args, pair, rank, block) + piece / 4 * kWeightBytes;
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    const int row = i * kRowsAtOnce + static_cast<int>(threadIdx.x) / kPieces;
    const std::uint32_t words[4] = {codes[i].x, codes[i].y, codes[i].z, codes[i].w};
    // Four lanes hold four columns each of every step: a chunk is two columns of each of them.
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 chunk = quad_transposed(
          {f16x2_of_e4m3<0>(words[2 * half]), f16x2_of_e4m3<1>(words[2 * half]),
           f16x2_of_e4m3<0>(words[2 * half + 1]), f16x2_of_e4m3<1>(words[2 * half + 1])});
      const int nth = (half * 4 + piece % 4) ^ (row % 8);
      *reinterpret_cast<uint4*>(to + row * kHalfRow + nth * 16) = chunk;
    }
  }
}

__global__ void __launch_bounds__(kSplitWarps* kWarp)
    split_kernel(const __grid_constant__ LinearTiles args, char* inputs) {
  let_next_start();
  wait_for_previous();
  split_all<kKind, kTokens>(args, static_cast<int>(blockIdx.z), inputs);
}

// ---- the products ----

constexpr int kStageBytes = kInputBytes + kWeightBytes;
constexpr int kFactorBytes = InputTile::kFactorBytes;
static_assert(kStageBytes % 1024 == 0);  // which the swizzle counts from
constexpr int kStages = 3;
// A token's sums: rows of the result, apart so that lanes of eight tokens meet no bank twice.
constexpr int kTotalPitch = kPairRows + 8;
constexpr int kTotalBytes = kTokens * kTotalPitch * 4;

struct Shared {
  char* stages;    // [kStages]: inputs of half a block, weights
  float* factors;  // [kStages][kTokens]: with second halves
  float* totals;   // [kTokens][kTotalPitch]: sums of the slices so far, and results on their way
  Barrier* full;   // [kStages]
  Barrier* empty;  // [kStages]

  static constexpr std::size_t kBytes =
      1024 + kTotalBytes + kStages * (kStageBytes + kFactorBytes + 2 * sizeof(Barrier));
  __device__ explicit Shared(char* memory)
      : stages(memory + (1024 - shared_address(memory) % 1024) % 1024),
        factors(reinterpret_cast<float*>(stages + kStages * kStageBytes)),
        totals(factors + kStages * kTokens),
        full(reinterpret_cast<Barrier*>(totals + kTokens * kTotalPitch)),
        empty(full + kStages) {}
};

/// One thread: half of the tokens' inputs to both blocks, the rows' weights to this one.
__device__ void copy_all(const DecodedTiles& args, const Shared& shared) {
  const PairUnits<kTokens> units(args);
  const auto rank = static_cast<int>(cluster_rank());
  constexpr std::uint16_t kBoth = 3;
  constexpr int kShare = kInputBytes / kBlocksOfPair;
  RingPosition ring;
  bool is_first_round = true;
  for (int unit = units.first; unit < units.count; unit += units.step) {
    const PairTile tile = pair_tile<kTokens>(args, unit);
    const char* inputs = args.inputs + InputTile::offset(tile.token / kTokens, tile.group,
                                                         args.groups, 0, args.blocks);
    const char* weights = args.weights + weight_offset(args, tile.pair, rank, 0);
    for (int half = 0; half < 2 * args.blocks; ++half) {
      if (!is_first_round) barrier_wait(shared.empty + ring.at, ring.parity ^ 1u);
      Barrier* full = shared.full + ring.at;
      char* stage = shared.stages + ring.at * kStageBytes;
      const bool is_second = half % 2 == 1;
      barrier_expect(full, kStageBytes + (is_second ? kFactorBytes : 0));
      bulk_copy_to_ranks(stage + rank * kShare, inputs + rank * kShare, kShare, full, kBoth);
      bulk_copy(stage + kInputBytes, weights, kWeightBytes, full);
      inputs += kInputBytes;
      weights += kWeightBytes;
      if (is_second) {
        bulk_copy(shared.factors + ring.at * kTokens, inputs, kFactorBytes, full);
        inputs += kFactorBytes;
      }
      ring.next(kStages);
      if (ring.at == 0) is_first_round = false;
    }
  }
}

constexpr int kSums = kPairRows / 2;  // of a thread
using Sums = float[kSums];

/// A group's part of the totals. A thread reads and writes what it sums; results are stored by all.
class Totals {
 public:
  __device__ Totals(const Shared& shared, int group)
      : group_(group),
        group_totals_(shared.totals + group * kGroupTokens * kTotalPitch),
        mine_(group_totals_ +
              (static_cast<int>(threadIdx.x) % kGroupThreads / kWarp * 16 + lane_id() / 4) *
                  kTotalPitch +
              lane_id() % 4 * 2) {}

  /// Before the first write of a tile: the results of the tile before have left.
  __device__ void clear() const {
    wait_for_stores_to_read();
    sync();
  }
  __device__ void write(const Sums& sums) const {
#pragma unroll
    for (int i = 0; i < kSums / 2; ++i) *at(i) = {sums[2 * i], sums[2 * i + 1]};
  }
  /// sums += what is there.
  __device__ void add_to(Sums& sums) const {
#pragma unroll
    for (int i = 0; i < kSums / 2; ++i) {
      const float2 before = *at(i);
      sums[2 * i] = before.x + sums[2 * i];
      sums[2 * i + 1] = before.y + sums[2 * i + 1];
    }
  }
  /// What all threads of the group have written goes to memory.
  __device__ void store(const DecodedTiles& args, const PairTile& tile) const {
    async_proxy_fence();
    sync();
    const int nth = static_cast<int>(threadIdx.x) % kGroupThreads;
    const int token = tile.token + group_ * kGroupTokens + nth;
    if (!tile.exists || nth >= kGroupTokens || token >= args.tokens) return;
    const PairedProduct& product = args.products[tile.product];
    const int rows = min(kPairRows, product.rows - tile.row);
    bulk_store(product.out + std::int64_t{token} * product.rows + tile.row,
               group_totals_ + nth * kTotalPitch, static_cast<std::uint32_t>(rows) * 4);
    commit_stores();
  }

 private:
  __device__ void sync() const { named_sync(1 + group_, kGroupThreads); }
  /// Of the ith pair of sums: even ones are of the first token, odd ones of that eight further.
  __device__ float2* at(int i) const {
    return reinterpret_cast<float2*>(mine_ + i % 2 * 8 * kTotalPitch + i / 2 * 8);
  }

  const int group_;
  float* const group_totals_;
  float* const mine_;
};

/// The products of half a block of columns, under way.
__device__ inline void multiply_half(Sums& products, std::uint64_t inputs, std::uint64_t weights,
                                     bool add) {
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < kSteps / 2; ++i)
    wgmma_f16<kPairRows>(products, operand_behind(inputs, i * 32), operand_behind(weights, i * 32),
                         add || i > 0);
  wgmma_commit();
}

/// A group of products: 64 tokens of each tile.
__device__ void multiply_all(const DecodedTiles& args, const Shared& shared) {
  const PairUnits<kTokens> units(args);
  const int warp = uniform_warp_id() - kGroupWarps;
  const int group = warp / kGroupWarps;
  const int own = group * kGroupTokens + warp % kGroupWarps * 16 + lane_id() / 4;  // first token
  const std::uint64_t inputs = operand_behind(swizzled_operand(shared_address(shared.stages)),
                                              group * kGroupTokens * kHalfRow);
  const std::uint64_t weights = swizzled_operand(shared_address(shared.stages + kInputBytes));
  const Totals totals(shared, group);
  RingPosition ring;
  for (int unit = units.first; unit < units.count; unit += units.step) {
    const PairTile tile = pair_tile<kTokens>(args, unit);
    const float* scales =
        args.products[tile.product].scales + std::int64_t{tile.row / kPairRows} * args.blocks;
    float lane_scale = 0;  // of every 32nd block
    Sums sums = {};
    for (int block = 0; block < args.blocks; ++block) {
      if (block % kWarp == 0) lane_scale = scales[min(block + lane_id(), args.blocks - 1)];
      const float scale = __shfl_sync(kAllLanes, lane_scale, block % kWarp);
      Sums products;
      const int first = ring.at;
      barrier_wait(shared.full + ring.at, ring.parity);
      multiply_half(products, operand_behind(inputs, ring.at * kStageBytes),
                    operand_behind(weights, ring.at * kStageBytes), false);
      ring.next(kStages);
      barrier_wait(shared.full + ring.at, ring.parity);
      multiply_half(products, operand_behind(inputs, ring.at * kStageBytes),
                    operand_behind(weights, ring.at * kStageBytes), true);
      const float* factors = shared.factors + ring.at * kTokens + own;
      const float factor[2] = {scale * factors[0], scale * factors[8]};
      wgmma_wait<1>();
      warp_signal_ranks<kBlocksOfPair>(shared.empty + first);
      wgmma_wait<0>();
      wgmma_results(products);
      warp_signal_ranks<kBlocksOfPair>(shared.empty + ring.at);
      ring.next(kStages);
#pragma unroll
      for (int i = 0; i < kSums; ++i) sums[i] = fmaf(products[i], factor[i / 2 % 2], sums[i]);
      const bool is_last = block + 1 == args.blocks;
      if ((block + 1) % kSliceBlocks != 0 && !is_last) continue;
      if (block < kSliceBlocks)
        totals.clear();
      else
        totals.add_to(sums);
      totals.write(sums);
      if (!is_last)
#pragma unroll
        for (float& sum : sums) sum = 0;
    }
    totals.store(args, tile);
  }
  wait_for_stores();
}

__global__ void __launch_bounds__(kThreads, 1)
    decoded_kernel(const __grid_constant__ DecodedTiles args) {
  extern __shared__ char memory[];
  let_next_start();
  const Shared shared(memory);
  run_pair<kStages, kGroups * kGroupWarps, kCopyRegisters, kProductRegisters>(args, shared);
}

// ---- host ----

constexpr LaunchShape kShape{
    .block = kThreads, .shared = Shared::kBytes, .cluster_x = kBlocksOfPair};

std::int64_t pair_bytes(int cols) {
  return std::int64_t{kBlocksOfPair} * ceil_div(cols, kLinearBlock) * (2 * kWeightBytes);
}
std::int64_t token_tile_bytes(int cols, int groups) {
  return std::int64_t{groups} * ceil_div(cols, kLinearBlock) * InputTile::kBytes;
}

int pairs_at_once() {
  static const int count = resident_pairs(decoded_kernel, kShape);
  return count;
}

/// Parts of `whole` that are as equal as multiples of `step` can be, none of them above `most`.
int part_of(int whole, int most, int step) {
  const int parts = ceil_div(whole, most / step * step);
  return ceil_div(ceil_div(whole, parts), step) * step;
}

/// All tokens by the pairs that `tiles` has the weights of.
void multiply_tokens(DecodedTiles tiles, LinearTiles some, char* inputs, std::int64_t room,
                     cudaStream_t stream) {
  const std::int64_t tile_bytes = token_tile_bytes(some.cols, some.groups);
  const int most = static_cast<int>(std::min<std::int64_t>(room / tile_bytes, 1 << 16)) * kTokens;
  const int all = some.tokens, at_once = part_of(all, most, kTokens);
  tiles.inputs = inputs;
  for (int first = 0; first < all; first += at_once) {
    tiles.tokens = some.tokens = std::min(at_once, all - first);
    const int token_tiles = ceil_div(some.tokens, kTokens);
    launch(split_kernel,
           {.grid = dim3(static_cast<unsigned>(tiles.blocks), static_cast<unsigned>(token_tiles),
                         static_cast<unsigned>(some.groups)),
            .block = kSplitWarps * kWarp},
           stream, some, inputs);
    LaunchShape shape = kShape;
    shape.grid =
        static_cast<unsigned>(kBlocksOfPair * std::min(tiles.pairs * token_tiles, pairs_at_once()));
    launch(decoded_kernel, shape, stream, tiles);
    const std::int64_t width = std::int64_t{at_once} * some.groups * some.cols;
    some.x += width;
    if (some.up != nullptr) some.up += width;
    for (int i = 0; i < tiles.count; ++i)
      tiles.products[i].out += std::int64_t{at_once} * tiles.products[i].rows;
  }
}

}  // namespace

bool takes_decoded(const LinearTiles& args) {
  if (args.kind != kKind) return false;
  for (int i = 0; i < args.count; ++i)
    if (!fits_row_pairs(args.products[i].w, args.groups)) return false;
  return true;
}

bool prefers_decoded(const LinearTiles& args) {
  if (args.tokens < kDecodedTokens) return false;
  RowPairs tiles{.groups = args.groups};
  for (int i = 0; i < args.count; ++i) tiles.add(args.products[i].w, nullptr);
  return tiles.pairs * ceil_div(args.tokens, kTokens) >= kDecodedRounds * pairs_at_once();
}

std::int64_t decoded_scratch_bytes(int cols, int groups) {
  return 2 * std::max(pair_bytes(cols), token_tile_bytes(cols, groups));
}

// Half of the scratch is for weights at most. Where that does not hold them all, some pairs after
// the others take all tokens.
void multiply_decoded(const LinearTiles& args, const LinearScratch& scratch, cudaStream_t stream) {
  DecodedTiles tiles;
  WeightValues values;
  tiles.groups = args.groups;
  tiles.blocks = args.cols / kLinearBlock;
  for (int i = 0; i < args.count; ++i) {
    values.of[i] = static_cast<const std::uint8_t*>(args.products[i].w.values);
    tiles.add(args.products[i].w, args.products[i].out);
  }
  const int all = tiles.pairs;
  const auto most =
      static_cast<int>(std::min<std::int64_t>(scratch.bytes / 2 / pair_bytes(args.cols), all));
  const int at_once = part_of(all, most, 1);
  auto* weights = static_cast<char*>(scratch.memory);
  const std::int64_t weight_bytes = at_once * pair_bytes(args.cols);
  tiles.weights = weights;
  for (int first = 0; first < all; first += at_once) {
    tiles.first_pair = first;
    tiles.pairs = std::min(at_once, all - first);
    launch(decode_kernel,
           {.grid = dim3(static_cast<unsigned>(tiles.blocks),
                         static_cast<unsigned>(kBlocksOfPair * tiles.pairs)),
            .block = kDecodeThreads},
           stream, tiles, values, weights);
    multiply_tokens(tiles, args, weights + weight_bytes, scratch.bytes - weight_bytes, stream);
  }
}

}  // namespace quatrain::cuda

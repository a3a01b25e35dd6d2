// SPDX-License-Identifier: Apache-2.0
// multiply_fp8: tiles of 256 tokens by 128 weight rows on FP8 warpgroup products.
//
// Inputs are quantised once, by a kernel before. Blocks work in pairs on the same tokens and
// neighbouring rows: each brings half of the tokens' codes to both. One thread copies, four blocks
// of 128 columns ahead and across tiles; two warpgroups take 128 tokens each, 64 at a time, and
// scale and add the sums of 64 while the other group's products run.
//
// Limits: tensor cores; with few columns the FP32 results' way to memory.
#include <algorithm>

#include "backends/cuda/device/cluster.cuh"
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/exchange.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/row_pairs.cuh"
#include "backends/cuda/device/tensor_copy.cuh"
#include "backends/cuda/device/warp_arrival.cuh"
#include "backends/cuda/device/wgmma_fp8.cuh"
#include "backends/cuda/launch/launch.h"
#include "backends/cuda/launch/linear_fp8.h"
#include "backends/cuda/launch/quantise.h"
#include "backends/cuda/launch/tensor_map.h"

namespace quatrain::cuda {
namespace {

constexpr int kGroupThreads = 128;
constexpr int kThreads = 3 * kGroupThreads;
constexpr int kTokens = 256;         // of a tile
constexpr int kBoxRows = kPairRows;  // tokens or weight rows that one copy brings
constexpr int kBoxBytes = kBoxRows * kFp8Columns;
constexpr int kCodeBytes = (kTokens / kBoxRows + 1) * kBoxBytes;
constexpr int kScaleBytes = kTokens * 4;
constexpr int kStageBytes = kCodeBytes + kScaleBytes;
static_assert(kStageBytes % 1024 == 0);  // which the swizzle counts from
constexpr int kStages = 4;
constexpr int kProductWarps = 8;
// Registers per thread once the groups have shared them out: 128 · 40 + 256 · 232 ≤ 65536.
constexpr int kCopyRegisters = 40, kProductRegisters = 232;

struct Fp8Tiles : RowPairs {
  CUtensorMap x = {};  // [tokens, groups · cols]
  CUtensorMap w[kMaxProducts] = {};
  const float* x_scales = nullptr;  // [groups · blocks, scale_tokens]
  int scale_tokens = 0;             // tokens up to whole tiles
};

struct Shared {
  char* stages;    // [kStages]: codes of the tokens, weights, scales of the tokens
  Barrier* full;   // [kStages]
  Barrier* empty;  // [kStages]

  static constexpr std::size_t kBytes = 1024 + kStages * (kStageBytes + 2 * sizeof(Barrier));
  __device__ explicit Shared(char* memory)
      : stages(memory + (1024 - shared_address(memory) % 1024) % 1024),
        full(reinterpret_cast<Barrier*>(stages + kStages * kStageBytes)),
        empty(full + kStages) {}
};

/// One thread: half of the tokens' codes to both blocks, the rows' to this one.
__device__ void copy_all(const Fp8Tiles& args, const Shared& shared) {
  const PairUnits<kTokens> units(args);
  const auto rank = static_cast<int>(cluster_rank());
  constexpr std::uint16_t kBoth = 3;
  RingPosition ring;
  bool is_first_round = true;
  for (int unit = units.first; unit < units.count; unit += units.step) {
    const PairTile tile = pair_tile<kTokens>(args, unit);
    for (int block = 0; block < args.blocks; ++block) {
      if (!is_first_round) barrier_wait(shared.empty + ring.at, ring.parity ^ 1u);
      Barrier* full = shared.full + ring.at;
      char* stage = shared.stages + ring.at * kStageBytes;
      barrier_expect(full, kStageBytes);
      tensor_copy_to_ranks(stage + rank * kBoxBytes, args.x,
                           (tile.group * args.blocks + block) * kFp8Columns,
                           tile.token + rank * kBoxRows, full, kBoth);
      tensor_copy(stage + kTokens / kBoxRows * kBoxBytes, args.w[tile.product], block * kFp8Columns,
                  tile.row, full);
      bulk_copy(stage + kCodeBytes,
                args.x_scales +
                    (std::int64_t{tile.group} * args.blocks + block) * args.scale_tokens +
                    tile.token,
                kScaleBytes, full);
      ring.next(kStages);
      if (ring.at == 0) is_first_round = false;
    }
  }
}

constexpr int kParts = 2;  // of 64 tokens
constexpr int kSums = 64;  // of a thread and part
using Sums = float[kParts][kSums];

__device__ void store(const Fp8Tiles& args, const PairTile& tile, int token, const Sums& sums) {
  if (!tile.exists) return;
  const PairedProduct& product = args.products[tile.product];
  const int row = tile.row + lane_id() % 2 * 8 + lane_id() % 4 / 2 * 4;
#pragma unroll
  for (int part = 0; part < kParts; ++part)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int t = token + part * 64 + half * 8;
      float* to = product.out + std::int64_t{t} * product.rows + row;
#pragma unroll
      for (int n = 0; n < kSums / 4; n += 2) {
        const float* of = sums[part] + 4 * n + 2 * half;
        const float4 four = four_neighbours({of[0], of[1]}, {of[4], of[5]});
        if (t < args.tokens && row + 8 * n < product.rows)
          *reinterpret_cast<float4*>(to + 8 * n) = four;
      }
    }
}

/// A group of products: 128 tokens of each tile.
__device__ void multiply_all(const Fp8Tiles& args, const Shared& shared) {
  const PairUnits<kTokens> units(args);
  const int warp = uniform_warp_id() - 4;
  const int group = warp / 4;
  const int own = group * kBoxRows + warp % 4 * 16 + lane_id() / 4;  // the first token
  const std::uint64_t operands = swizzled_operand(shared_address(shared.stages));
  RingPosition ring;
  for (int unit = units.first; unit < units.count; unit += units.step) {
    const PairTile tile = pair_tile<kTokens>(args, unit);
    const float* scales =
        args.products[tile.product].scales + std::int64_t{tile.row / kBoxRows} * args.blocks;
    float lane_scale = 0;  // of every 32nd block
    Sums sums = {};
    for (int block = 0; block < args.blocks; ++block) {
      if (block % kWarp == 0) lane_scale = scales[min(block + lane_id(), args.blocks - 1)];
      const std::uint64_t stage = operand_behind(operands, ring.at * kStageBytes);
      const std::uint64_t a = operand_behind(stage, group * kBoxBytes);
      const std::uint64_t b = operand_behind(stage, kTokens / kBoxRows * kBoxBytes);
      const float* token_scales =
          reinterpret_cast<const float*>(shared.stages + ring.at * kStageBytes + kCodeBytes) + own;
      barrier_wait(shared.full + ring.at, ring.parity);
      const float scale = __shfl_sync(kAllLanes, lane_scale, block % kWarp);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        float products[kSums];
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < kFp8Columns / 32; ++i)
          wgmma_e4m3<kBoxRows>(products, operand_behind(a, part * (kBoxBytes / 2) + i * 32),
                               operand_behind(b, i * 32), i > 0);
        wgmma_commit();
        const float factor[2] = {token_scales[part * 64] * scale,
                                 token_scales[part * 64 + 8] * scale};
        wgmma_wait<0>();
        wgmma_results(products);
        if (part == kParts - 1) warp_signal_ranks<kBlocksOfPair>(shared.empty + ring.at);
#pragma unroll
        for (int i = 0; i < kSums; ++i)
          sums[part][i] = fmaf(products[i], factor[i / 2 % 2], sums[part][i]);
      }
      ring.next(kStages);
    }
    store(args, tile, tile.token + own, sums);
  }
}

__global__ void __launch_bounds__(kThreads, 1) fp8_kernel(const __grid_constant__ Fp8Tiles args) {
  extern __shared__ char memory[];
  let_next_start();
  const Shared shared(memory);
  run_pair<kStages, kProductWarps, kCopyRegisters, kProductRegisters>(args, shared);
}

/// Bytes of scratch per token: codes, and a scale per block.
std::int64_t token_bytes(int cols, int groups) {
  return std::int64_t{groups} * (cols + ceil_div(cols, kFp8Columns) * 4);
}

}  // namespace

std::int64_t fp8_scratch_bytes(int cols, int groups) { return kTokens * token_bytes(cols, groups); }

// As many tokens at a time as the scratch holds codes of.
void multiply_fp8(const LinearsArgs& args, const LinearScratch& scratch, cudaStream_t stream) {
  if (args.tokens == 0 || args.count == 0) return;
  constexpr LaunchShape kShape{
      .block = kThreads, .shared = Shared::kBytes, .cluster_x = kBlocksOfPair};
  static const int resident = resident_pairs(fp8_kernel, kShape);
  const int cols = args.products[0].w.cols, width = args.groups * cols;
  Fp8Tiles tiles;
  tiles.groups = args.groups;
  tiles.blocks = cols / kFp8Columns;
  for (int i = 0; i < args.count; ++i) {
    const Matrix& w = args.products[i].w;
    tiles.w[i] = byte_matrix_map(w.values, w.rows, cols, kBoxRows);
    tiles.add(w, args.products[i].out);
  }
  const auto most = static_cast<int>(
      std::min<std::int64_t>(scratch.bytes / token_bytes(cols, args.groups), 1 << 20));
  const int at_once = most / kTokens * kTokens;
  auto* codes = static_cast<std::uint8_t*>(scratch.memory);
  for (int first = 0; first < args.tokens; first += at_once) {
    tiles.tokens = std::min(at_once, args.tokens - first);
    tiles.scale_tokens = ceil_div(tiles.tokens, kTokens) * kTokens;
    const std::int64_t from = std::int64_t{first} * width;
    auto* scales = reinterpret_cast<float*>(codes + std::int64_t{tiles.scale_tokens} * width);
    fp8_quantise_rows({.x = args.x + from,
                       .up = args.up != nullptr ? args.up + from : nullptr,
                       .limit = args.limit,
                       .rows = tiles.tokens,
                       .cols = width,
                       .codes = codes,
                       .scales = scales,
                       .scale_row = 1,
                       .scale_block = tiles.scale_tokens},
                      stream);
    tiles.x = byte_matrix_map(codes, tiles.tokens, width, kBoxRows);
    tiles.x_scales = scales;
    LaunchShape shape = kShape;
    shape.grid = static_cast<unsigned>(
        kBlocksOfPair * std::min(tiles.pairs * ceil_div(tiles.tokens, kTokens), resident));
    launch(fp8_kernel, shape, stream, tiles);
    for (int i = 0; i < args.count; ++i)
      tiles.products[i].out += std::int64_t{at_once} * tiles.products[i].rows;
  }
}

}  // namespace quatrain::cuda

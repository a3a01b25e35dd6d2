// SPDX-License-Identifier: Apache-2.0
// linears for many tokens: tiles of 128 weight rows by 128 tokens on warpgroup products.
//
// A first kernel splits the inputs into 16-bit parts, laid out in memory as shared memory holds
// them: 128 tokens by 64 columns are one bulk copy. In the second, blocks walk over the tiles; two
// warpgroups take 64 rows each, weights decoded from row-major memory straight into operand A, and
// one warp keeps half blocks of inputs ahead, across tiles. While one group decodes weights
// and scales sums, the other's products run. Sums are those of linear_stream.cu in the same order,
// and have the same bits; those of the slices so far wait in shared memory.
//
// Limits: the instructions that decode weights and scale sums, which tensor cores slow down to half
// their rate, and the latency of the weights.
#include <algorithm>

#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/linear_blobs.cuh"
#include "backends/cuda/device/warp_arrival.cuh"
#include "backends/cuda/device/weight_decode.cuh"
#include "backends/cuda/device/wgmma_tile.cuh"
#include "backends/cuda/launch/launch.h"
#include "backends/cuda/launch/linear_kinds.h"
#include "backends/cuda/launch/linear_tiles.h"

namespace quatrain::cuda {
namespace {

constexpr int kGroupThreads = 128;
constexpr int kThreads = 3 * kGroupThreads;
constexpr int kTokens = 128;
// Registers per thread once the groups have shared them out: 128 · 40 + 256 · 232 ≤ 65536.
constexpr int kCopyRegisters = 40, kProductRegisters = 232;

template <LinearKind kKind>
struct Shared {
  using Blob = InputBlob<kTokens, kParts<kKind>>;
  static constexpr int kStages = 8 / kParts<kKind>;
  char* stages;    // [kStages] half blobs: [kParts][kTokens][128], swizzled; factors
  float* totals;   // [16][2 kGroupThreads][4]: of the slices so far
  Barrier* full;   // [kStages]
  Barrier* empty;  // [kStages]

  // Stages start at multiples of 1024, which the swizzle counts from.
  static constexpr int kStride = Blob::kHalfBytes + 1024;
  static constexpr int kTotalBytes = 16 * 2 * kGroupThreads * 16;
  static constexpr std::size_t kBytes =
      1024 + kTotalBytes + kStages * (static_cast<std::size_t>(kStride) + 2 * sizeof(Barrier));
  static_assert(Blob::kFactorBytes <= kStride - Blob::kHalfBytes);
  __device__ explicit Shared(char* memory) {
    const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(memory));
    stages = memory + (1024 - address % 1024) % 1024;
    totals = reinterpret_cast<float*>(stages + kStages * kStride);
    full = reinterpret_cast<Barrier*>(stages + kStages * kStride + kTotalBytes);
    empty = full + kStages;
  }
};

template <LinearKind kKind>
__global__ void __launch_bounds__(kSplitWarps* kWarp)
    split_kernel(const __grid_constant__ LinearTiles args, char* blobs) {
  let_next_start();
  wait_for_previous();
  split_all<kKind, kTokens>(args, static_cast<int>(blockIdx.z), blobs);
}

/// The tiles of a block, those of one tile of tokens before those of the next.
struct Tiles {
  int count;
  int step = static_cast<int>(gridDim.x);
  int first = static_cast<int>(blockIdx.x);

  __device__ explicit Tiles(const LinearTiles& args)
      : count(args.tiles * ceil_div(args.tokens, kTokens)) {}
};

__device__ TileStrip strip_of(const LinearTiles& args, int tile, int warp) {
  return strip_of_tile(args, tile, kLinearTileRows, warp * kStripRows);
}

/// One thread: half blobs to stages as they fall empty.
template <LinearKind kKind>
__device__ void copy_all(const char* blobs, const LinearTiles& args, int blocks,
                         const Shared<kKind>& shared) {
  using Blob = typename Shared<kKind>::Blob;
  constexpr int kHalfBytes = Blob::kHalfBytes;
  const Tiles tiles(args);
  RingPosition ring;
  bool is_first_round = true;
  for (int t = tiles.first; t < tiles.count; t += tiles.step) {
    const int group = strip_of(args, t % args.tiles, 0).group;
    for (int half = 0; half < 2 * blocks; ++half) {
      if (!is_first_round) barrier_wait(shared.empty + ring.at, ring.parity ^ 1u);
      const int bytes = half % 2 == 0 ? kHalfBytes : kHalfBytes + Blob::kFactorBytes;
      barrier_expect(shared.full + ring.at, static_cast<std::uint32_t>(bytes));
      bulk_copy(shared.stages + ring.at * Shared<kKind>::kStride,
                blobs + Blob::offset(t / args.tiles, group, args.groups, half / 2, blocks) +
                    half % 2 * kHalfBytes,
                static_cast<std::uint32_t>(bytes), shared.full + ring.at);
      ring.next(Shared<kKind>::kStages);
      if (ring.at == 0) is_first_round = false;
    }
  }
}

using Sums = TileSums<16>;

/// Sums of a slice and all before it. The last ones go to memory, scaled.
template <LinearKind kKind>
__device__ void add_slice(const LinearTiles& args, const TileStrip& strip, int slice, int token0,
                          const Shared<kKind>& shared, Sums& sums) {
  const bool is_last = slice + 1 >= args.slices;
  auto* totals = reinterpret_cast<float4*>(shared.totals) + (threadIdx.x - kGroupThreads);
  join_slices<16, 2 * kGroupThreads>(totals, slice > 0, is_last, sums);
  if (!is_last) return;
  const TiledProduct& product = args.products[strip.product];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = strip.row + lane_id() / 4 + 8 * half;
    if (row >= strip.end) continue;
    const float scale = row_scale(product.w, row);
#pragma unroll
    for (int n = 0; n < 16; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = token0 + 8 * n + lane_id() % 4 * 2 + i;
        if (token < args.tokens)
          product.out[std::int64_t{token} * product.w.rows + row] =
              sums[n][2 * half + i] * scale * product.w.global_scale;
      }
  }
}

/// The products of half a block of columns, under way.
template <LinearKind kKind>
__device__ inline void multiply_half(const std::uint32_t (&a)[kSteps / 2][2][4], int half,
                                     std::uint64_t stage, Sums& products) {
#pragma unroll
  for (int i = 0; i < kSteps / 2; ++i)
#pragma unroll
    for (int part = 0; part < kParts<kKind>; ++part)
      wgmma_tile<kKind>(products, a[half * 2 + i / 2][i % 2],
                        operand_behind(stage, part * Shared<kKind>::Blob::kPartBytes + i * 32),
                        half + i + part > 0);
  wgmma_commit();
}

/// A group of products: 64 rows of each tile, by 16 to a warp.
template <LinearKind kKind>
__device__ void multiply_all(const LinearTiles& args, int warp, int blocks,
                             const Shared<kKind>& shared) {
  const Tiles tiles(args);
  const std::uint64_t stages = swizzled_operand(shared_address(shared.stages));
  const auto reader_of = [&](const TileStrip& strip) {
    return StripReader<kKind>(args.products[strip.product].w, strip, 0);
  };
  // BF16 weights are operand A as they lie in memory: the next ones must not arrive in registers
  // that products still read, which the compiler does not see to.
  constexpr bool kLoadsEarly = kKind != LinearKind::kBf16;
  RingPosition ring;
  WeightBlock<kKind> w;
  if (tiles.first < tiles.count)
    reader_of(strip_of(args, tiles.first % args.tiles, warp)).load(0, w);
  for (int t = tiles.first; t < tiles.count; t += tiles.step) {
    const TileStrip strip = strip_of(args, t % args.tiles, warp);
    const StripReader<kKind> reader = reader_of(strip);
    const auto load_next = [&](int block) {
      if (block + 1 < blocks)
        reader.load(block + 1, w);
      else if (t + tiles.step < tiles.count)
        reader_of(strip_of(args, (t + tiles.step) % args.tiles, warp)).load(0, w);
    };
    Sums sums = {};
    for (int block = 0; block < blocks; ++block) {
      std::uint32_t a[kSteps / 2][2][4];
#pragma unroll
      for (int pair = 0; pair < kSteps / 2; ++pair) decode_pair<kKind>(w, pair, a[pair]);
      const float scale = __uint_as_float(w.scale[0]);
      Sums products;
      const RingPosition first = ring;
      barrier_wait(shared.full + ring.at, ring.parity);
      wgmma_fence();
      multiply_half<kKind>(a, 0, operand_behind(stages, ring.at * Shared<kKind>::kStride),
                           products);
      ring.next(Shared<kKind>::kStages);
      barrier_wait(shared.full + ring.at, ring.parity);
      multiply_half<kKind>(a, 1, operand_behind(stages, ring.at * Shared<kKind>::kStride),
                           products);
      if constexpr (kLoadsEarly) load_next(block);
      wgmma_wait<1>();
      warp_arrive(shared.empty + first.at);
      wgmma_wait<0>();
      keep_sums(products);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) keep_operand(a[step / 2][step % 2]);
      if constexpr (!kLoadsEarly) load_next(block);
      add_products<kKind>(
          products, scale,
          reinterpret_cast<const float*>(shared.stages + ring.at * Shared<kKind>::kStride +
                                         Shared<kKind>::Blob::kHalfBytes),
          sums);
      warp_arrive(shared.empty + ring.at);
      ring.next(Shared<kKind>::kStages);
      if ((block + 1) % kSliceBlocks == 0 || block + 1 == blocks) {
        add_slice(args, strip, block / kSliceBlocks, t / args.tiles * kTokens, shared, sums);
        clear_sums<16>(sums);
      }
    }
  }
}

template <LinearKind kKind>
__global__ void __launch_bounds__(kThreads, 1)
    tiles_kernel(const __grid_constant__ LinearTiles args, const char* blobs) {
  extern __shared__ char memory[];
  let_next_start();
  const Shared<kKind> shared(memory);
  const int warp = uniform_warp_id();
  if (threadIdx.x == 0)  // one thread copies, eight warps multiply
    init_ring(shared.full, 1, shared.empty, 8 * kWarpArrivals, Shared<kKind>::kStages);
  __syncthreads();
  wait_for_previous();
  const int blocks = ceil_div(args.cols, kLinearBlock);
  if (warp < 4) {
    lower_registers<kCopyRegisters>();
    if (threadIdx.x == 0) copy_all(blobs, args, blocks, shared);
  } else {
    raise_registers<kProductRegisters>();
    multiply_all<kKind>(args, warp - 4, blocks, shared);
  }
}

// As many tokens at a time as the scratch holds split inputs of.
template <LinearKind kKind>
void launch_kind(const LinearTiles& args, const LinearScratch& scratch, cudaStream_t stream) {
  static const bool allowed = (allow_shared(tiles_kernel<kKind>, Shared<kKind>::kBytes), true);
  (void)allowed;
  static const auto multiprocessors = static_cast<unsigned>(
      resident_clusters(tiles_kernel<kKind>, {.block = kThreads, .shared = Shared<kKind>::kBytes}));
  const int blocks = ceil_div(args.cols, kLinearBlock);
  const std::int64_t tile_bytes = std::int64_t{args.groups} * blocks * Shared<kKind>::Blob::kBytes;
  const int at_once = static_cast<int>(scratch.bytes / tile_bytes) * kTokens;
  auto* blobs = static_cast<char*>(scratch.memory);
  LinearTiles some = args;
  cut_into_tiles(some, kLinearTileRows);
  for (int first = 0; first < args.tokens; first += at_once) {
    some.tokens = std::min(at_once, args.tokens - first);
    const auto tiles = static_cast<unsigned>(ceil_div(some.tokens, kTokens));
    launch(split_kernel<kKind>,
           {.grid = dim3(static_cast<unsigned>(blocks), tiles, static_cast<unsigned>(args.groups)),
            .block = kSplitWarps * kWarp},
           stream, some, blobs);
    launch(tiles_kernel<kKind>,
           {.grid = std::min(static_cast<unsigned>(some.tiles) * tiles, multiprocessors),
            .block = kThreads,
            .shared = Shared<kKind>::kBytes},
           stream, some, blobs);
    some.x += std::int64_t{at_once} * args.groups * args.cols;
    if (some.up != nullptr) some.up += std::int64_t{at_once} * args.groups * args.cols;
    for (int i = 0; i < args.count; ++i)
      some.products[i].out += std::int64_t{at_once} * args.products[i].w.rows;
  }
}

}  // namespace

std::int64_t tile_scratch_bytes(int cols, int groups) {
  return std::int64_t{groups} * ceil_div(cols, kLinearBlock) * InputBlob<kTokens, 2>::kBytes;
}

void multiply_tiles(const LinearTiles& args, const LinearScratch& scratch, cudaStream_t stream) {
  with_kind(args.kind, [&]<LinearKind kKind>() { launch_kind<kKind>(args, scratch, stream); });
}

}  // namespace quatrain::cuda

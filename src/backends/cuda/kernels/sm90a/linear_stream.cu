// SPDX-License-Identifier: Apache-2.0
// stream_tiles, linears for few tokens: weights stream from memory through registers into tensor
// cores.
//
// A warp takes 16 weight rows by the columns of its block; a block of 8 warps one or more slices of
// 1024 columns, and a cluster all of them, so that every weight byte is read once and even a small
// matrix occupies the chip. Each warp keeps the next blocks of its weights in flight in registers,
// across row tiles, and starts on them before the kernel in front has ended. Inputs are split once
// per block into shared memory. Slices meet through the cluster's shared memory, in order.
//
// Limits: bytes in flight (128 KB per SM), then issue slots: about 1 instruction per FP8 weight and
// token tile.
#include <algorithm>
#include <array>
#include <atomic>

#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/cluster.cuh"
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/linear_strip.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/scalar.cuh"
#include "backends/cuda/device/weight_decode.cuh"
#include "backends/cuda/launch/launch.h"
#include "backends/cuda/launch/linear_tiles.h"

namespace quatrain::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
static_assert(kTileRows == 16 * kWarps);
constexpr int kPartialStride = kTileRows + 4;  // lanes that hold different tokens: other banks

/// Blocks of weights that a warp has in flight, 64 bytes of each row at least.
template <LinearKind kKind>
constexpr int kAhead = kKind == LinearKind::kBf16 ? 2 : 4;

/// Blocks that are multiplied side by side: a product waits for the one before it on the same sums,
/// and several token tiles fill that time too.
template <LinearKind kKind, int kTokenTiles>
constexpr int kBlocksInTurn = kTokenTiles >= 4                         ? 1
                              : kTokenTiles == 2 || kAhead<kKind> == 2 ? 2
                                                                       : 4;

constexpr int kBlockBytes = 4 * kLinearBlock;  // of a token's inputs, FP32 or two parts

/// Dynamic shared memory of a block.
template <int kTokenTiles>
struct Shared {
  static constexpr int kTokens = 8 * kTokenTiles;
  // Of each block of columns: FP32 as it comes, then the two parts in its place. A token's row is
  // 64 bytes more than a multiple of 128, so that lanes of different tokens meet different banks.
  char* inputs;     // [kTokens][stride]
  float* factors;   // [blocks][kTokens]
  float* partials;  // [2][slices per block][kTokens][kPartialStride]
  int stride;       // bytes

  static constexpr std::size_t bytes(int slices_per_block) {
    const auto blocks = static_cast<std::size_t>(slices_per_block) * kSliceBlocks;
    return kTokens * (blocks * kBlockBytes + 64) + blocks * kTokens * 4 +
           2 * static_cast<std::size_t>(slices_per_block) * kTokens * kPartialStride * 4;
  }
  __device__ Shared(char* memory, int slices_per_block) {
    const int blocks = slices_per_block * kSliceBlocks;
    stride = blocks * kBlockBytes + 64;
    inputs = memory;
    factors = reinterpret_cast<float*>(inputs + kTokens * stride);
    partials = factors + blocks * kTokens;
  }
};

/// Starts the copies of a group's inputs, columns from first_block on, to shared memory.
template <int kTokenTiles>
__device__ void fetch_inputs(const LinearTiles& args, int group, int first_block, int token0,
                             int tokens, const Shared<kTokenTiles>& shared) {
  const int columns = min(args.slices_per_block * kSliceBlocks * kLinearBlock,
                          args.cols - first_block * kLinearBlock);
  const int quads = columns / 4;  // columns are whole 16-byte words, and so are inputs
  for (int token = 0; token < tokens; ++token) {
    const float* from = args.x + (std::int64_t{token0 + token} * args.groups + group) * args.cols +
                        first_block * kLinearBlock;
    char* to = shared.inputs + token * shared.stride;
    for (int i = static_cast<int>(threadIdx.x); i < quads; i += kThreads)
      copy16_async(to + 16 * i, from + 4 * i);
  }
}

/// Splits inputs in place, a warp per token and block of columns.
template <LinearKind kKind, int kTokenTiles>
__device__ void split_staged(const LinearTiles& args, int group, int first_block, int token0,
                             int tokens, const Shared<kTokenTiles>& shared) {
  constexpr int kTokens = 8 * kTokenTiles;
  const int lane = lane_id();
  const int blocks = min(args.slices_per_block * kSliceBlocks,
                         (args.cols + kLinearBlock - 1) / kLinearBlock - first_block);
#pragma unroll 2
  for (int i = warp_id(); i < blocks * tokens; i += kWarps) {
    const int token = i % tokens, block = i / tokens;
    const int column = (first_block + block) * kLinearBlock + 4 * lane;
    char* place = shared.inputs + token * shared.stride + block * kBlockBytes;
    float4 x = {};
    if (column < args.cols) {
      x = *reinterpret_cast<const float4*>(place + 16 * lane);
      if (args.up != nullptr) {
        const float4 up = *reinterpret_cast<const float4*>(
            args.up + (std::int64_t{token0 + token} * args.groups + group) * args.cols + column);
        x = {swiglu_value(x.x, up.x, args.limit), swiglu_value(x.y, up.y, args.limit),
             swiglu_value(x.z, up.z, args.limit), swiglu_value(x.w, up.w, args.limit)};
      }
    }
    const float v[4] = {x.x, x.y, x.z, x.w};
    float amax = 0;
    if constexpr (kKind == LinearKind::kFp8)
      amax = warp_max(fmaxf(fmaxf(fabsf(v[0]), fabsf(v[1])), fmaxf(fabsf(v[2]), fabsf(v[3]))));
    std::uint16_t part[2][4];
    const float factor = split_inputs<kKind>(v, amax, part[0], part[1]);
    __syncwarp();  // all lanes have their inputs before parts take the place
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      auto* to = reinterpret_cast<std::uint16_t*>(place + p * (kBlockBytes / 2));
      if constexpr (kIsFp4<kKind>) {
#pragma unroll
        for (int j = 0; j < 4; ++j) to[place_of_column<kKind>(4 * lane + j)] = part[p][j];
      } else {
        *reinterpret_cast<ushort4*>(to + place_of_column<kKind>(4 * lane)) = {
            part[p][0], part[p][1], part[p][2], part[p][3]};
      }
    }
    if (lane == 0) shared.factors[block * kTokens + token] = factor;
  }
}

template <int kTokenTiles>
using Sums = float[kTokenTiles][4];

/// sums += the products of kBlocks consecutive blocks, each scaled. The blocks take turns, because
/// a product waits for the one before it on the same sums.
template <LinearKind kKind, int kTokenTiles, int kBlocks>
__device__ void multiply_blocks(const WeightBlock<kKind>* w, const Shared<kTokenTiles>& shared,
                                int block, int tokens, Sums<kTokenTiles>& sums) {
  constexpr int kTokens = 8 * kTokenTiles;
  const int lane = lane_id();
  float products[kBlocks][kTokenTiles][4] = {};
  const char* inputs[kTokenTiles];
#pragma unroll
  for (int n = 0; n < kTokenTiles; ++n)
    inputs[n] = shared.inputs + min(8 * n + lane / 4, tokens - 1) * shared.stride +
                block * kBlockBytes + lane % 4 * 16;
#pragma unroll
  for (int pair = 0; pair < kSteps / 2; ++pair)
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      std::uint32_t a[2][4];
      decode_pair<kKind>(w[b], pair, a);
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n) {
        const char* from = inputs[n] + b * kBlockBytes + pair * 64;
        const uint4 high = *reinterpret_cast<const uint4*>(from);
        const uint4 low = *reinterpret_cast<const uint4*>(from + kBlockBytes / 2);
        mma_of<kKind>(products[b][n], a[0], high.x, high.y);
        mma_of<kKind>(products[b][n], a[0], low.x, low.y);
        mma_of<kKind>(products[b][n], a[1], high.z, high.w);
        mma_of<kKind>(products[b][n], a[1], low.z, low.w);
      }
    }
#pragma unroll
  for (int b = 0; b < kBlocks; ++b)
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
      if constexpr (kKind == LinearKind::kFp8) {
        const float2 factor = *reinterpret_cast<const float2*>(
            shared.factors + (block + b) * kTokens + 8 * n + lane % 4 * 2);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float scale =
              __uint_as_float(w[b].scale[i / 2]) * (i % 2 == 0 ? factor.x : factor.y);
          sums[n][i] = fmaf(products[b][n][i], scale, sums[n][i]);
        }
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[n][i] += products[b][n][i];
      }
    }
}

/// out = Σ_slice partials, in order, times the scales that are left; shared out over the cluster.
template <int kTokenTiles>
__device__ void combine_slices(const LinearTiles& args, int tile, int token0,
                               const Shared<kTokenTiles>& shared, const float* partials) {
  constexpr int kPartial = 8 * kTokenTiles * kPartialStride;
  constexpr int kSlicesAtOnce = 4;  // reads from other blocks that are in flight together
  const Strip strip =
      strip_of(args, tile, warp_id());  // of this warp; its tile's first row is wanted
  const int first_row = strip.row - warp_id() * 16;
  const TiledProduct& product = args.products[strip.product];
  const int tokens = min(8 * kTokenTiles, args.tokens - token0);
  const int step = static_cast<int>(cluster_size()) * kThreads;
  for (int i = static_cast<int>(cluster_rank()) * kThreads + static_cast<int>(threadIdx.x);
       i < tokens * kTileRows; i += step) {
    const int token = i / kTileRows;
    const int row = first_row + i % kTileRows;
    if (row >= strip.end) continue;
    const float* at = partials + token * kPartialStride + i % kTileRows;
    float sum = 0;
    for (int slice = 0; slice < args.slices; slice += kSlicesAtOnce) {
      float parts[kSlicesAtOnce];
#pragma unroll
      for (int j = 0; j < kSlicesAtOnce; ++j) {
        const int s = min(slice + j, args.slices - 1);
        parts[j] = load_from_rank(at + s % args.slices_per_block * kPartial,
                                  static_cast<unsigned>(s / args.slices_per_block));
      }
#pragma unroll
      for (int j = 0; j < kSlicesAtOnce; ++j)
        if (slice + j < args.slices) sum = slice + j == 0 ? parts[j] : sum + parts[j];
    }
    product.out[std::int64_t{token0 + token} * product.w.rows + row] =
        sum * row_scale(product.w, row) * product.w.global_scale;
  }
}

template <int kTokenTiles>
__device__ void store_partial(const Sums<kTokenTiles>& sums, float* partial) {
  const int row = warp_id() * 16 + lane_id() / 4;
#pragma unroll
  for (int n = 0; n < kTokenTiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      partial[(8 * n + lane_id() % 4 * 2 + i % 2) * kPartialStride + row + i / 2 * 8] = sums[n][i];
}

template <LinearKind kKind, int kTokenTiles>
__global__ void __launch_bounds__(kThreads, kTokenTiles < 4 ? 2 : 1)
    stream_kernel(const __grid_constant__ LinearTiles args) {
  extern __shared__ __align__(128) char memory[];
  constexpr int kPartial = 8 * kTokenTiles * kPartialStride;
  constexpr int kDeep = kAhead<kKind>;
  constexpr int kTurns = kBlocksInTurn<kKind, kTokenTiles>;
  let_next_start();
  const Shared<kTokenTiles> shared(memory, args.slices_per_block);
  const int clusters = static_cast<int>(cluster_count());
  const int first_tile = static_cast<int>(cluster_index());
  const int blocks = args.slices_per_block * kSliceBlocks;
  const int first_block = static_cast<int>(cluster_rank()) * blocks;
  const int token0 = static_cast<int>(blockIdx.y) * 8 * kTokenTiles;
  const int tokens = min(8 * kTokenTiles, args.tokens - token0);

  StripReader<kKind> reader(args, first_tile, warp_id(), first_block);
  WeightBlock<kKind> ahead[kDeep];
#pragma unroll
  for (int d = 0; d < kDeep; ++d) reader.load(d, ahead[d]);
  wait_for_previous();

  int staged_group = -1, parity = 0;
  for (int tile = first_tile; tile < args.tiles; tile += clusters) {
    const int group = strip_of(args, tile, warp_id()).group;
    if (group != staged_group) {
      __syncthreads();  // all have read the inputs of the group before
      fetch_inputs(args, group, first_block, token0, tokens, shared);
      wait_for_copies();
      __syncthreads();  // a warp splits what others copied
      split_staged<kKind>(args, group, first_block, token0, tokens, shared);
      staged_group = group;
      __syncthreads();
    }
    const bool valid = reader.valid();
    float* partials = shared.partials + parity * args.slices_per_block * kPartial;
    for (int slice = 0; slice < args.slices_per_block; ++slice) {
      Sums<kTokenTiles> sums = {};
#pragma unroll 1
      for (int b = 0; b < kSliceBlocks; b += kDeep) {
        int wanted = slice * kSliceBlocks + b + kDeep;
        if (wanted == blocks) {  // the next tile's weights, under the end of this one's
          reader = StripReader<kKind>(args, min(tile + clusters, args.tiles - 1), warp_id(),
                                      first_block);
          wanted = 0;
        }
#pragma unroll
        for (int d = 0; d < kDeep; d += kTurns) {
          const int block = slice * kSliceBlocks + b + d;
          // Blocks beyond the matrix hold zeros, but nobody staged inputs for them.
          if (valid && (first_block + block + kTurns - 1) * kLinearBlock < args.cols) {
            multiply_blocks<kKind, kTokenTiles, kTurns>(ahead + d, shared, block, tokens, sums);
          } else if (valid) {
#pragma unroll
            for (int i = 0; i < kTurns; ++i)
              if ((first_block + block + i) * kLinearBlock < args.cols)
                multiply_blocks<kKind, kTokenTiles, 1>(ahead + d + i, shared, block + i, tokens,
                                                       sums);
          }
#pragma unroll
          for (int i = 0; i < kTurns; ++i)
            if (wanted > 0 || tile + clusters < args.tiles)
              reader.load(wanted + d + i, ahead[d + i]);
        }
      }
      store_partial<kTokenTiles>(sums, partials + slice * kPartial);
    }
    cluster_sync();
    combine_slices<kTokenTiles>(args, tile, token0, shared, partials);
    parity ^= 1;
  }
  cluster_sync();  // the others have read this block's shared memory
}

// ---- host ----

constexpr int kMaxClusterBlocks = 8;  // what every chip schedules
constexpr std::size_t kMaxShared = 227 * 1024;
constexpr int kMaxSlicesPerBlock = 5;
static_assert(Shared<1>::bytes(kMaxSlicesPerBlock) <= kMaxShared);

int ceil_div(int a, int b) { return (a + b - 1) / b; }

template <LinearKind kKind, int kTokenTiles>
void launch_stream(const LinearTiles& args, cudaStream_t stream) {
  const auto kernel = stream_kernel<kKind, kTokenTiles>;
  const int blocks = ceil_div(args.slices, args.slices_per_block);
  LaunchShape shape{.grid = static_cast<unsigned>(blocks),
                    .block = kThreads,
                    .shared = Shared<kTokenTiles>::bytes(args.slices_per_block),
                    .cluster_x = static_cast<unsigned>(blocks)};
  // A property of the chip and the shape of the cluster, asked for once.
  static std::array<std::atomic<int>, kMaxClusterBlocks * kMaxSlicesPerBlock> known;
  std::atomic<int>& resident = known[static_cast<std::size_t>((blocks - 1) * kMaxSlicesPerBlock +
                                                              args.slices_per_block - 1)];
  if (resident == 0) {
    allow_shared(kernel, kMaxShared);
    resident = resident_clusters(kernel, shape);
  }
  const int token_tiles = ceil_div(args.tokens, 8 * kTokenTiles);
  const int clusters = std::min(args.tiles, std::max(1, resident / token_tiles));
  shape.grid = dim3(static_cast<unsigned>(clusters * blocks), static_cast<unsigned>(token_tiles));
  launch(kernel, shape, stream, args);
}

template <LinearKind kKind>
void launch_kind(const LinearTiles& args, cudaStream_t stream) {
  if (args.tokens > 16 && Shared<4>::bytes(args.slices_per_block) <= kMaxShared)
    launch_stream<kKind, 4>(args, stream);
  else if (args.tokens > 8 && Shared<2>::bytes(args.slices_per_block) <= kMaxShared)
    launch_stream<kKind, 2>(args, stream);
  else
    launch_stream<kKind, 1>(args, stream);
}

}  // namespace

bool stream_takes(int cols) {
  return cols <= kMaxClusterBlocks * kMaxSlicesPerBlock * kSliceBlocks * kLinearBlock;
}

void stream_tiles(LinearKind kind, const LinearTiles& args, cudaStream_t stream) {
  LinearTiles all = args;
  all.slices_per_block = ceil_div(args.slices, kMaxClusterBlocks);
  switch (kind) {
    case LinearKind::kBf16:
      return launch_kind<LinearKind::kBf16>(all, stream);
    case LinearKind::kFp8:
      return launch_kind<LinearKind::kFp8>(all, stream);
    case LinearKind::kNvfp4:
      return launch_kind<LinearKind::kNvfp4>(all, stream);
    case LinearKind::kMxfp4:
      return launch_kind<LinearKind::kMxfp4>(all, stream);
  }
}

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// linears for many tokens: tiles of 128 weight rows by 128 tokens on warpgroup products.
//
// A first kernel splits the inputs into two parts, laid out in memory as shared memory holds them:
// 128 tokens by 128 columns are one bulk copy. In the second, two warpgroups take 64 rows each,
// weights decoded from row-major memory straight into operand A, and one warp keeps three blocks of
// inputs ahead. While one group decodes weights and scales sums, the other's products run. Sums are
// those of linear_stream.cu in the same order, and have the same bits.
//
// Limits: tensor cores, at half their rate because inputs have two parts.
#include <algorithm>

#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/linear_strip.cuh"
#include "backends/cuda/device/scalar.cuh"
#include "backends/cuda/device/weight_decode.cuh"
#include "backends/cuda/device/wgmma_tile.cuh"
#include "backends/cuda/launch/launch.h"
#include "backends/cuda/launch/linear_tiles.h"

namespace quatrain::cuda {
namespace {

constexpr int kGroupThreads = 128;
constexpr int kThreads = 3 * kGroupThreads;
constexpr int kTokens = 128;
constexpr int kStages = 3;
constexpr int kHalfBytes = kTokens * 128;              // 64 columns of one part of all tokens
constexpr int kPartBytes = 2 * kHalfBytes;             // a block of columns
constexpr int kStageBytes = 2 * kPartBytes;            // both parts
constexpr int kBlobBytes = kStageBytes + kTokens * 4;  // with the factors of the tokens
// Registers per thread once the groups have shared them out: 128 · 40 + 256 · 232 ≤ 65536.
constexpr int kCopyRegisters = 40, kProductRegisters = 232;

/// The split inputs of one block of columns of a tile of tokens.
__device__ inline std::int64_t blob_offset(int token_tile, int group, int groups, int block,
                                           int blocks) {
  return ((std::int64_t{token_tile} * groups + group) * blocks + block) * kBlobBytes;
}

struct Shared {
  char* stages;    // [kStages] blobs: [2 parts][2 halves][kTokens][128], swizzled; factors
  Barrier* full;   // [kStages]
  Barrier* empty;  // [kStages]

  // Stages start at multiples of 1024, which the swizzle counts from.
  static constexpr int kStride = (kBlobBytes + 1023) / 1024 * 1024;
  static constexpr std::size_t kBytes =
      1024 + kStages * (static_cast<std::size_t>(kStride) + 2 * sizeof(Barrier));
  __device__ explicit Shared(char* memory) {
    const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(memory));
    stages = memory + (1024 - address % 1024) % 1024;
    full = reinterpret_cast<Barrier*>(stages + kStages * kStride);
    empty = full + kStages;
  }
};

/// Where element i of the inputs' order of a block (place_of_column) belongs in a token's part.
__device__ inline int swizzled_offset(int place, int token) {
  const int step = (place >> 5) * 2 + ((place >> 2) & 1);
  const int lane = (place >> 3) & 3, element = place & 3;
  const int chunk = (step % 4 * 2 + (element >> 1)) ^ (token % 8);  // of 16 bytes
  return step / 4 * kHalfBytes + token * 128 + chunk * 16 + lane * 4 + (element & 1) * 2;
}

/// Splits four columns of a token into a stage.
template <LinearKind kKind>
__device__ void split_into(const float4& x, int token, char* stage, float* factors) {
  const int lane = lane_id();
  const float v[4] = {x.x, x.y, x.z, x.w};
  float amax = 0;
  if constexpr (kKind == LinearKind::kFp8)
    amax = warp_max(fmaxf(fmaxf(fabsf(v[0]), fabsf(v[1])), fmaxf(fabsf(v[2]), fabsf(v[3]))));
  std::uint16_t part[2][4];
  const float factor = split_inputs<kKind>(v, amax, part[0], part[1]);
#pragma unroll
  for (int p = 0; p < 2; ++p) {
    char* to = stage + p * kPartBytes;
    if constexpr (kIsFp4<kKind>) {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        *reinterpret_cast<std::uint16_t*>(
            to + swizzled_offset(place_of_column<kKind>(4 * lane + j), token)) = part[p][j];
    } else {  // a lane's four columns are its four elements
      const int place = place_of_column<kKind>(4 * lane);
      *reinterpret_cast<ushort2*>(to + swizzled_offset(place, token)) = {part[p][0], part[p][1]};
      *reinterpret_cast<ushort2*>(to + swizzled_offset(place + 2, token)) = {part[p][2],
                                                                             part[p][3]};
    }
  }
  if (lane == 0) factors[token] = factor;
}

/// Four columns of a token's inputs; zeros outside the matrix.
__device__ inline float4 load_inputs(const LinearTiles& args, int group, int token, int column) {
  if (token >= args.tokens || column >= args.cols) return {0, 0, 0, 0};
  const std::int64_t at = (std::int64_t{token} * args.groups + group) * args.cols + column;
  float4 x = *reinterpret_cast<const float4*>(args.x + at);
  if (args.up != nullptr) {
    const float4 up = *reinterpret_cast<const float4*>(args.up + at);
    x = {swiglu_value(x.x, up.x, args.limit), swiglu_value(x.y, up.y, args.limit),
         swiglu_value(x.z, up.z, args.limit), swiglu_value(x.w, up.w, args.limit)};
  }
  return x;
}

constexpr int kSplitWarps = 8;

/// A warp per token and block of columns; x is the block, y the tile and the warp of 16 tokens'
/// turn.
template <LinearKind kKind>
__global__ void __launch_bounds__(kSplitWarps* kWarp)
    split_kernel(const __grid_constant__ LinearTiles args, char* blobs) {
  let_next_start();
  wait_for_previous();
  const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
  const int token_tile = static_cast<int>(blockIdx.y), group = static_cast<int>(blockIdx.z);
  char* blob = blobs + blob_offset(token_tile, group, args.groups, block, blocks);
  auto* factors = reinterpret_cast<float*>(blob + kStageBytes);
  const int column = block * kLinearBlock + 4 * lane_id();
  constexpr int kAtOnce = 4;
  for (int first = warp_id() * kAtOnce; first < kTokens; first += kSplitWarps * kAtOnce) {
    float4 x[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      x[i] = load_inputs(args, group, token_tile * kTokens + first + i, column);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) split_into<kKind>(x[i], first + i, blob, factors);
  }
}

/// One thread: blobs to stages as they fall empty.
__device__ void copy_all(const char* blobs, const LinearTiles& args, int group, int blocks,
                         const Shared& shared) {
  const int token_tile = static_cast<int>(blockIdx.y);
  for (int block = 0; block < blocks; ++block) {
    const int stage = block % kStages;
    if (block >= kStages) barrier_wait(shared.empty + stage, (block / kStages - 1) % 2);
    barrier_expect(shared.full + stage, kBlobBytes);
    bulk_copy(shared.stages + stage * Shared::kStride,
              blobs + blob_offset(token_tile, group, args.groups, block, blocks), kBlobBytes,
              shared.full + stage);
  }
}

template <LinearKind kKind>
__device__ inline void wgmma_of(float (&d)[16][4], const std::uint32_t (&a)[4], std::uint64_t b,
                                bool add) {
  if constexpr (kKind == LinearKind::kFp8)
    wgmma_f16(d, a, b, add);
  else
    wgmma_bf16(d, a, b, add);
}

/// sums of the slice go to memory: added to those of the slices before, scaled after the last.
__device__ void add_slice(const LinearTiles& args, const Strip& strip, int slice, int token0,
                          const float (&sums)[16][4]) {
  const TiledProduct& product = args.products[strip.product];
  const bool is_last = slice + 1 == args.slices;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = strip.row + lane_id() / 4 + 8 * half;
    if (row >= strip.end) continue;
    const float last_scale = row_scale(product.w, row);
#pragma unroll
    for (int n = 0; n < 16; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = token0 + 8 * n + lane_id() % 4 * 2 + i;
        if (token >= args.tokens) continue;
        float* out = product.out + std::int64_t{token} * product.w.rows + row;
        float sum = sums[n][2 * half + i];
        if (slice > 0) sum = *out + sum;
        *out = is_last ? sum * last_scale * product.w.global_scale : sum;
      }
  }
}

/// A group of products: 64 rows, by 16 to a warp.
template <LinearKind kKind>
__device__ void multiply_all(const LinearTiles& args, int warp, int token0, int blocks,
                             const Shared& shared) {
  const int tile = static_cast<int>(blockIdx.x);
  const Strip strip = strip_of(args, tile, warp);
  const StripReader<kKind> reader(args, tile, warp, 0);
  const auto stages = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared.stages));
  WeightBlock<kKind> w;
  reader.load(0, w);
  float sums[16][4] = {};
  for (int block = 0; block < blocks; ++block) {
    const int stage = block % kStages;
    std::uint32_t a[kSteps / 2][2][4];
#pragma unroll
    for (int pair = 0; pair < kSteps / 2; ++pair) decode_pair<kKind>(w, pair, a[pair]);
    const float scale[2] = {__uint_as_float(w.scale[0]), __uint_as_float(w.scale[1])};
    barrier_wait(shared.full + stage, block / kStages % 2);
    float products[16][4];
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int part = 0; part < 2; ++part)
        wgmma_of<kKind>(products, a[step / 2][step % 2],
                        swizzled_operand(stages + stage * Shared::kStride + part * kPartBytes +
                                         step / 4 * kHalfBytes + step % 4 * 32),
                        step + part > 0);
    wgmma_commit();
    // BF16 weights are operand A as they lie in memory: the next ones must not arrive in registers
    // that products still read, which the compiler does not see to.
    constexpr bool kLoadsEarly = kKind != LinearKind::kBf16;
    if (kLoadsEarly && block + 1 < blocks) reader.load(block + 1, w);
    wgmma_wait<0>();
    keep_sums(products);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) keep_operand(a[step / 2][step % 2]);
    if (!kLoadsEarly && block + 1 < blocks) reader.load(block + 1, w);
    const auto* factors =
        reinterpret_cast<const float*>(shared.stages + stage * Shared::kStride + kStageBytes);
#pragma unroll
    for (int n = 0; n < 16; ++n) {
      if constexpr (kKind == LinearKind::kFp8) {
        const float2 factor = *reinterpret_cast<const float2*>(factors + 8 * n + lane_id() % 4 * 2);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          sums[n][i] =
              fmaf(products[n][i], scale[i / 2] * (i % 2 == 0 ? factor.x : factor.y), sums[n][i]);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[n][i] += products[n][i];
      }
    }
    __syncwarp();
    if (lane_id() == 0) barrier_arrive(shared.empty + stage);
    if ((block + 1) % kSliceBlocks == 0 || block + 1 == blocks) {
      add_slice(args, strip, block / kSliceBlocks, token0, sums);
#pragma unroll
      for (int n = 0; n < 16; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[n][i] = 0;
    }
  }
}

template <LinearKind kKind>
__global__ void __launch_bounds__(kThreads, 1)
    tiles_kernel(const __grid_constant__ LinearTiles args, const char* blobs) {
  extern __shared__ char memory[];
  let_next_start();
  const Shared shared(memory);
  const int warp = warp_id();
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      barrier_init(shared.full + s, 1);   // the thread that copies
      barrier_init(shared.empty + s, 8);  // warps that multiply
    }
  }
  __syncthreads();
  wait_for_previous();
  const int token0 = static_cast<int>(blockIdx.y) * kTokens;
  const int blocks = (args.cols + kLinearBlock - 1) / kLinearBlock;
  if (warp < 4) {
    lower_registers<kCopyRegisters>();
    if (threadIdx.x == 0)
      copy_all(blobs, args, strip_of(args, static_cast<int>(blockIdx.x), 0).group, blocks, shared);
  } else {
    raise_registers<kProductRegisters>();
    multiply_all<kKind>(args, warp - 4, token0, blocks, shared);
  }
}

int ceil_div(int a, int b) { return (a + b - 1) / b; }

// As many tokens at a time as the scratch holds split inputs of.
template <LinearKind kKind>
void launch_kind(const LinearTiles& args, const LinearScratch& scratch, cudaStream_t stream) {
  static const bool allowed = (allow_shared(tiles_kernel<kKind>, Shared::kBytes), true);
  (void)allowed;
  const int blocks = ceil_div(args.cols, kLinearBlock);
  const std::int64_t tile_bytes = std::int64_t{args.groups} * blocks * kBlobBytes;
  const int at_once = static_cast<int>(scratch.bytes / tile_bytes) * kTokens;
  auto* blobs = static_cast<char*>(scratch.memory);
  LinearTiles some = args;
  for (int first = 0; first < args.tokens; first += at_once) {
    some.tokens = std::min(at_once, args.tokens - first);
    const auto tiles = static_cast<unsigned>(ceil_div(some.tokens, kTokens));
    launch(split_kernel<kKind>,
           {.grid = dim3(static_cast<unsigned>(blocks), tiles, static_cast<unsigned>(args.groups)),
            .block = kSplitWarps * kWarp},
           stream, some, blobs);
    launch(tiles_kernel<kKind>,
           {.grid = dim3(static_cast<unsigned>(args.tiles), tiles),
            .block = kThreads,
            .shared = Shared::kBytes},
           stream, some, blobs);
    some.x += std::int64_t{at_once} * args.groups * args.cols;
    if (some.up != nullptr) some.up += std::int64_t{at_once} * args.groups * args.cols;
    for (int i = 0; i < args.count; ++i)
      some.products[i].out += std::int64_t{at_once} * args.products[i].w.rows;
  }
}

}  // namespace

std::int64_t tile_scratch_bytes(int cols, int groups) {
  return std::int64_t{groups} * ceil_div(cols, kLinearBlock) * kBlobBytes;
}

void multiply_tiles(LinearKind kind, const LinearTiles& args, const LinearScratch& scratch,
                    cudaStream_t stream) {
  switch (kind) {
    case LinearKind::kBf16:
      return launch_kind<LinearKind::kBf16>(args, scratch, stream);
    case LinearKind::kFp8:
      return launch_kind<LinearKind::kFp8>(args, scratch, stream);
    case LinearKind::kNvfp4:
      return launch_kind<LinearKind::kNvfp4>(args, scratch, stream);
    case LinearKind::kMxfp4:
      return launch_kind<LinearKind::kMxfp4>(args, scratch, stream);
  }
}

}  // namespace quatrain::cuda

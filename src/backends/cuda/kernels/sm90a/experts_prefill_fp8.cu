// SPDX-License-Identifier: Apache-2.0
// Routed experts with FP8 inputs for many tokens: one projection per launch.
//
// As experts_prefill.cu: a tile is 256 packed rows of an expert times up to 112 of its tokens, two
// warpgroups of 128 rows decode weights into registers, and a third one feeds them. Weights become
// E4M3 codes with their block's scale in the exponent, so that 128 columns, the stretch of an
// activation scale, are four instructions; their sums, which the tensor cores keep with fewer bits
// than FP32 has, are then added up in FP32, times the token's scale. A warpgroup does that for 64
// rows at a time, having decoded the next ones meanwhile; the other warpgroup's products run while
// it adds.
//
// Limits: instructions that decode and add, which hardly run beside products (neighbour_bench). So
// experts of more tokens have experts_prefill_fp8_wide.cu.
#include "backends/cuda/cuda_check.h"
#include "backends/cuda/device/fp8_fragments.cuh"
#include "backends/cuda/device/prefill_feed.cuh"
#include "backends/cuda/device/prefill_fp8_results.cuh"
#include "backends/cuda/device/wgmma_fp8.cuh"

namespace quatrain::cuda {
namespace {

using namespace prefill;

constexpr int kScalesAt = kBarriersAt + 2 * 8 * (kWeightStages + kTokenStages + kTableStages);
constexpr int kPeaksAt = kScalesAt + kTokenStages * kWidestFp8Pass * 4;
constexpr int kFp8TablesAt = kPeaksAt + int{sizeof(HiddenPeaks)};
constexpr int kFp8SharedBytes = kFp8TablesAt + kFp8TableBytes + 1024;
static_assert(kScalesAt % 8 == 0 && kPeaksAt % 8 == 0 && kFp8TablesAt % 8 == 0);
static_assert(kFp8SharedBytes <= 232448);
static_assert(kFp8Columns == kFp8ActivationBlock);

constexpr int kWidestWithScales = 104;  // whose scales stay in registers beside the sums
using Fp8Widths = WidthList<112, 104, 96, 88, 80, 72, 64, 56, 48, 40, 32, 16>;

constexpr int kSteps = kFp8Columns / 32;           // instructions of 128 columns
using Operand = std::uint32_t[kSteps][4];          // 16 rows of a warp by 128 columns
constexpr int kHalves = kChunkCols / kFp8Columns;  // of a chunk
constexpr int kTurns = kHalves * kBlocks;          // operands of a chunk

template <bool kFirst>
struct Multiplier {
  const Fp8PrefillArgs& args;
  const Projection& projection;
  const Shared& shared;
  RingPosition weights;
  RingPosition tokens;
  RingPosition table;
  const int warp = uniform_warp_id() % kMultiplyingWarps;
  const std::uint64_t operands = swizzled_operand(shared_address(shared.base + kTokensAt));
  // Read from the first lane: with an address that is the same in all of them a load adds it by
  // itself.
  const std::uint32_t tables =
      __shfl_sync(kAllLanes, shared_address(shared.base + kFp8TablesAt), 0);

  // Where the slabs of a block of rows start among those of a chunk.
  __device__ const std::uint8_t* packed_rows(int block, int& first_slab) const {
    const int rows = warp % 4 * kBlocks + block;  // 16 of them, of the tile's 128
    first_slab = rows % 2 * 4;
    return shared.base + kWeightsAt + weights.at * kWeightStageBytes + warp / 4 * kTileBytes +
           rows / 2 * kChunkBytes;
  }
  __device__ __forceinline__ void decode(int half, int block, Operand& a) const {
    int first_slab;
    const std::uint8_t* packed = packed_rows(block, first_slab);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Slab slab = load_slab(packed, first_slab + half * 2 + i, lane_id());
      decode_fp8_slab(slab, tables, a[2 * i], a[2 * i + 1]);
    }
  }

  // Starts sums = a times the tokens of the stage.
  template <int kWidth>
  __device__ __forceinline__ void start(float (&sums)[kWidth / 2], const Operand& a) const {
    const std::uint64_t b = operand_behind(operands, tokens.at * kTokenStageBytes);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      wgmma_e4m3<kWidth>(sums, a[step], operand_behind(b, step * 32), step > 0);
    wgmma_commit();
  }

  // The scales of the tokens of the stage.
  template <int kWidth>
  __device__ __forceinline__ void load_scales(float2 (&scales)[kWidth / 8]) const {
    const auto* from = reinterpret_cast<const float*>(shared.base + kScalesAt) +
                       tokens.at * kWidestFp8Pass + lane_id() % 4 * 2;
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n) scales[n] = *reinterpret_cast<const float2*>(from + n * 8);
  }

  __device__ float2 row_factors(int block) const {
    int first_slab;
    const std::uint8_t* packed = packed_rows(block, first_slab);
    const uint2 scales = load_slab(packed, first_slab, lane_id()).scales;
    return {fp8_row_factor(scales.x), fp8_row_factor(scales.y)};
  }

  template <int kWidth>
  __device__ __forceinline__ void multiply_tile(const PassTile& tile, int first_row_tile) {
    float d[kBlocks][kWidth / 2], sums[kWidth / 2];
#pragma unroll
    for (int i = 0; i < kBlocks * kWidth / 2; ++i) d[i / (kWidth / 2)][i % (kWidth / 2)] = 0;
    float2 scales[kWidth / 8];
    Operand a[2];
    barrier_wait(shared.weights_full + weights.at, weights.parity);
    float2 factors[kBlocks];
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) factors[block] = row_factors(block);
    decode(0, 0, a[0]);
    for (int chunk = 0; chunk < projection.chunks; ++chunk) {
#pragma unroll
      for (int i = 0; i < kTurns; ++i) {
        const int block = i % kBlocks;
        if (block == 0) {
          barrier_wait(shared.tokens_full + tokens.at, tokens.parity);
          fence_operands();
        }
        start<kWidth>(sums, a[i % 2]);
        if (i + 1 < kTurns) {
          decode((i + 1) / kBlocks, (i + 1) % kBlocks, a[(i + 1) % 2]);
        } else {
          warp_arrive(shared.weights_empty + weights.at);
          weights.next(kWeightStages);
          if (chunk + 1 < projection.chunks) {
            barrier_wait(shared.weights_full + weights.at, weights.parity);
            decode(0, 0, a[0]);
          }
        }
        // Both blocks have the same tokens; kept for the second one where there are registers.
        constexpr bool kKept = kWidth <= kWidestWithScales;
        if (kKept && block == 0) load_scales<kWidth>(scales);
        wgmma_wait<0>();
        wgmma_results(sums);
        if (!kKept) load_scales<kWidth>(scales);
#pragma unroll
        for (int n = 0; n < kWidth / 8; ++n)
          add_scaled_eight(d[block] + 4 * n, sums + 4 * n, scales[n]);
        if (block == kBlocks - 1) {
          warp_arrive(shared.tokens_empty + tokens.at);
          tokens.next(kTokenStages);
        }
      }
    }
    store<kWidth>(tile.expert, (first_row_tile + warp / 4) * kTileRows + warp % 4 * kBlocks * 16,
                  factors, d);
  }

  template <int kWidth>
  __device__ __forceinline__ void store(int expert, int row, const float2 (&factors)[kBlocks],
                                        float (&d)[kBlocks][kWidth / 2]) {
    barrier_wait(shared.table_full + table.at, table.parity);
    auto& peaks = *reinterpret_cast<HiddenPeaks*>(shared.base + kPeaksAt);
    const Fp8Results results{args, shared.table(table.at),  peaks, expert,
                             row,  {factors[0], factors[1]}};
    if constexpr (kFirst) {
      results.template store_hidden<kWidth>(d);
    } else if (row / kTileRows < projection.row_tiles) {
      results.template store_outputs16<kWidth>(d);
    }
    warp_arrive(shared.table_empty + table.at);
    table.next(kTableStages);
  }

  template <int kWidth>
  __device__ __forceinline__ void multiply_width(TileWalk& walk) {
    for (; walk.more(); walk.next()) {
      const PassTile tile = walk.tile();
      if (width_of(tile) != kWidth) return;
      multiply_tile<kWidth>(tile, walk.row_tile());
    }
  }
  template <int... kWidths>
  __device__ __forceinline__ void multiply_all(WidthList<kWidths...>) {
    TileWalk walk(args.common, projection);
    (multiply_width<kWidths>(walk), ...);
  }
};

__device__ void make_ready(const Shared& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    constexpr int kReaders = kMultiplyingWarps * kWarpArrivals;
    init_ring(shared.weights_full, 1, shared.weights_empty, kReaders, kWeightStages);
    init_ring(shared.tokens_full, kGatherThreads + kGatherThreads / kWarp * kWarpArrivals,
              shared.tokens_empty, kReaders, kTokenStages);
    init_ring(shared.table_full, kGatherThreads, shared.table_empty, kReaders, kTableStages);
    barrier_init_fence();
  }
  if (thread < kFp8WindowBinades)
    reinterpret_cast<uint2*>(shared.base + kFp8TablesAt)[thread] = fp8_table(thread);
  if (thread < kWidestFp8Pass)
    reinterpret_cast<HiddenPeaks*>(shared.base + kPeaksAt)->bits[thread] = 0;
  __syncthreads();
}

template <bool kFirst>
__global__ void __launch_bounds__(kThreads, 1)
    experts_prefill_fp8_kernel(const __grid_constant__ Fp8PrefillArgs args) {
  extern __shared__ std::uint8_t unaligned[];
  const Shared shared = shared_at(unaligned + (1024 - shared_address(unaligned) % 1024) % 1024);
  make_ready(shared);
  const Projection projection = projection_of(args.common);
  if (threadIdx.x >= kMultiplyingGroups * kWarpgroup) {
    lower_registers<40>();
    if (threadIdx.x < kMultiplyingGroups * kWarpgroup + kGatherThreads)
      fetch_fp8_tokens(args.common, args.inputs, projection, shared,
                       reinterpret_cast<float*>(shared.base + kScalesAt));
    else
      fetch_weights(args.common, projection, shared);
  } else {
    raise_registers<232>();
    Multiplier<kFirst> multiplier{args, projection, shared, {}, {}, {}};
    multiplier.multiply_all(Fp8Widths());
  }
}

}  // namespace

void experts_prefill_fp8(const Fp8PrefillArgs& args, cudaStream_t stream) {
  const auto kernel =
      args.common.first ? experts_prefill_fp8_kernel<true> : experts_prefill_fp8_kernel<false>;
  QT_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, kFp8SharedBytes));
  kernel<<<static_cast<unsigned>(args.common.blocks), kThreads, kFp8SharedBytes, stream>>>(args);
  QT_CUDA(cudaGetLastError());
}

}  // namespace quatrain::cuda

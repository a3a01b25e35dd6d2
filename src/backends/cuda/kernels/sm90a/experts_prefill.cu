// SPDX-License-Identifier: Apache-2.0
// Routed NVFP4 experts for many tokens: one projection per launch, bound by the tensor cores.
//
// A tile is 256 packed rows of an expert times up to 128 of its tokens, as wide as the expert's
// count asks for. Two warpgroups take 128 rows each and decode weights into registers, the left
// operand, an atom of 16 columns at a time; up to three atoms' products are under way meanwhile. A
// third warpgroup feeds them. Blocks stride over the tiles, row tiles of one expert beside each
// other, so that its tokens are read from the second-level cache.
#include <type_traits>

#include "backends/cuda/cuda_check.h"
#include "backends/cuda/device/nvfp4_fragments.cuh"
#include "backends/cuda/device/prefill_feed.cuh"
#include "backends/cuda/device/prefill_results.cuh"
#include "backends/cuda/device/wgmma.cuh"

namespace quatrain::cuda {
namespace {

using namespace prefill;

template <int kParts, bool kFirst>
struct Multiplier {
  const PrefillArgs& args;
  const Projection& projection;
  const Shared& shared;
  RingPosition weights;
  RingPosition tokens;
  RingPosition table;
  const int warp = uniform_warp_id() % kMultiplyingWarps;
  const std::uint64_t operands = swizzled_operand(shared_address(shared.base + kTokensAt));

  __device__ void release(Barrier* barrier) const {
    if (lane_id() == 0) barrier_arrive(barrier);
  }
  // Starts d += one atom of this warpgroup's rows times atom `atom` of slab `slab` of the stage.
  template <int kWidth>
  __device__ __forceinline__ void start_atom(float (&d)[kBlocks][kWidth / 2],
                                             const std::uint32_t (&a)[kBlocks][4], int slab,
                                             int atom) const {
    RingPosition at = tokens;
    wgmma_fence();
#pragma unroll
    for (int part = 0; part < kParts; ++part, at.next(kTokenStages)) {
      const std::uint64_t b =
          operand_behind(operands, at.at * kTokenStageBytes + slab * kWidth * 128 + atom * 32);
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) wgmma_bf16<kWidth>(d[block], a[block], b);
    }
    wgmma_commit();
  }
  __device__ void await_tokens() const {
    RingPosition at = tokens;
#pragma unroll
    for (int part = 0; part < kParts; ++part, at.next(kTokenStages))
      barrier_wait(shared.tokens_full + at.at, at.parity);
    fence_operands();
  }
  __device__ void release_tokens(RingPosition& at) const {
#pragma unroll
    for (int part = 0; part < kParts; ++part, at.next(kTokenStages))
      release(shared.tokens_empty + at.at);
  }

  // Every atom of a slab has registers of its own: one is decoded while products read the others.
  template <int kWidth>
  __device__ __forceinline__ void multiply_tile(const PassTile& tile, int first_row_tile) {
    constexpr int kSlabs = slabs_per_stage(kWidth);
    float d[kBlocks][kWidth / 2];
#pragma unroll
    for (int i = 0; i < kBlocks * kWidth / 2; ++i) d[i / (kWidth / 2)][i % (kWidth / 2)] = 0;
    RingPosition read = tokens;  // the oldest stage that products may still read
    for (int chunk = 0; chunk < projection.chunks; ++chunk, weights.next(kWeightStages)) {
      barrier_wait(shared.weights_full + weights.at, weights.parity);
      const std::uint8_t* packed =
          shared.base + kWeightsAt + weights.at * kWeightStageBytes + warp / 4 * kTileBytes;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        Slab slab[kBlocks];
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          const int rows = warp % 4 * kBlocks + block;  // 16 of them, of the tile's 128
          slab[block] = load_slab(packed + rows / 2 * kChunkBytes, rows % 2 * 4 + i, lane_id());
        }
        std::uint32_t a[4][kBlocks][4];
#pragma unroll
        for (int atom = 0; atom < 4; ++atom) {
#pragma unroll
          for (int block = 0; block < kBlocks; ++block)
            decode_slab_atom(slab[block], atom, a[atom][block]);
          if (i == 3 && atom == 3) {
            __syncwarp();
            release(shared.weights_empty + weights.at);
          }
          if (i % kSlabs == 0 && atom == 0) await_tokens();
          start_atom<kWidth>(d, a[atom], i % kSlabs, atom);
          wgmma_wait<2>();
          if (i % kSlabs == 0 && atom == 1 && (i > 0 || chunk > 0)) release_tokens(read);
        }
        if (i % kSlabs == kSlabs - 1) {
#pragma unroll
          for (int part = 0; part < kParts; ++part) tokens.next(kTokenStages);
        }
      }
    }
    wgmma_wait<0>();
    release_tokens(read);
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) wgmma_results(d[block]);
    const int row_tile = first_row_tile + warp / 4;
    barrier_wait(shared.table_full + table.at, table.parity);
    if (row_tile < projection.row_tiles)
      store<kWidth>({args, shared.table(table.at), tile.expert,
                     row_tile * kTileRows + warp % 4 * kBlocks * 16},
                    d);
    __syncwarp();  // all lanes have read the table
    release(shared.table_empty + table.at);
    table.next(kTableStages);
  }

  template <int kWidth>
  __device__ __forceinline__ void store(const WarpResults<kParts>& results,
                                        const float (&d)[kBlocks][kWidth / 2]) const {
    if constexpr (kFirst) {
      if (args.hidden16 != nullptr)
        results.template store_hidden16<kWidth>(d);
      else
        results.template store_hidden<kWidth>(d);
    } else if (kParts == 1 && args.outputs16 != nullptr) {
      results.template store_outputs16<kWidth>(d);
    } else {
      results.template store_outputs<kWidth>(d);
    }
  }

  template <int kWidth>
  __device__ __forceinline__ void multiply_width(TileWalk& walk) {
    for (; walk.more(); walk.next()) {
      const PassTile tile = walk.tile();
      if (width_of(tile) != kWidth) return;
      multiply_tile<kWidth>(tile, walk.row_tile());
    }
  }
  // One loop per width rather than a choice in one loop: what is computed ahead of one of them does
  // not take registers from the others.
  template <int... kWidths>
  __device__ __forceinline__ void multiply_all(WidthList<kWidths...>) {
    TileWalk walk(args, projection);
    (multiply_width<kWidths>(walk), ...);
  }
};

// Registers per thread once the groups have shared them out: 128 · 72 + 256 · 216 ≤ 65536.
constexpr int kFeedRegisters = 72, kProductRegisters = 216;

template <int kParts, bool kFirst>
__global__ void __launch_bounds__(kThreads, 1)
    experts_prefill_kernel(const __grid_constant__ PrefillArgs args) {
  extern __shared__ std::uint8_t unaligned[];
  const Shared shared = shared_at(unaligned + (1024 - shared_address(unaligned) % 1024) % 1024);
  if (threadIdx.x == 0) {
    init_ring(shared.weights_full, 1, shared.weights_empty, kMultiplyingWarps, kWeightStages);
    init_ring(shared.tokens_full, kGatherThreads, shared.tokens_empty, kMultiplyingWarps,
              kTokenStages);
    init_ring(shared.table_full, kGatherThreads, shared.table_empty, kMultiplyingWarps,
              kTableStages);
    barrier_init_fence();
  }
  __syncthreads();  // barriers are ready
  const Projection projection = projection_of(args);
  if (threadIdx.x >= kMultiplyingGroups * kWarpgroup) {
    lower_registers<kFeedRegisters>();
    if (threadIdx.x < kMultiplyingGroups * kWarpgroup + kGatherThreads)
      fetch_tokens<kParts>(args, projection, shared);
    else
      fetch_weights(args, projection, shared);
  } else {
    raise_registers<kProductRegisters>();
    Multiplier<kParts, kFirst> multiplier{args, projection, shared, {}, {}, {}};
    multiplier.multiply_all(Widths());
  }
}

}  // namespace

void experts_prefill(const PrefillArgs& args, cudaStream_t stream) {
  const auto kernel_for = [&](auto parts) {
    return args.first ? experts_prefill_kernel<parts(), true>
                      : experts_prefill_kernel<parts(), false>;
  };
  const auto kernel = args.routed.parts == 2 ? kernel_for(std::integral_constant<int, 2>())
                                             : kernel_for(std::integral_constant<int, 1>());
  QT_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  kernel<<<static_cast<unsigned>(args.blocks), kThreads, kSharedBytes, stream>>>(args);
  QT_CUDA(cudaGetLastError());
}

}  // namespace quatrain::cuda

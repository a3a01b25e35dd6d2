// SPDX-License-Identifier: Apache-2.0
// Routed experts with FP8 inputs for so many tokens that experts have more than one product's: as
// experts_prefill_fp8.cu, but each operand that is decoded meets twice as many tokens.
//
// A tile is 128 packed rows of an expert times up to 208 of its tokens, in two halves. Each of two
// warpgroups decodes 64 of the rows and multiplies first one half, then the other; so there are as
// many sums as with 128 rows and half of the tokens. Two blocks of a cluster have the 256 rows
// whose hidden values share a scale.
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/fp8_fragments.cuh"
#include "backends/cuda/device/wide_feed.cuh"
#include "backends/cuda/device/wide_results.cuh"
#include "backends/cuda/launch/launch.h"

namespace quatrain::cuda {
namespace {

using namespace prefill::wide;
using prefill::kMultiplyingGroups;
using prefill::kMultiplyingWarps;
using prefill::kThreads;
using prefill::kWarpgroup;
using prefill::projection_of;
using prefill::TileWalk;
using prefill::WidthList;

using Halves = WidthList<104, 96, 88, 80, 72, 64, 56, 48, 40, 32, 24, 16>;

constexpr int kSteps = kFp8Columns / 32;   // instructions of 128 columns
using Operand = std::uint32_t[kSteps][4];  // 16 rows of a warp by 128 columns
constexpr int kEarlyScales = 5;  // eights of tokens; for more of them there are no registers
constexpr int kTurns = kChunkCols / kFp8Columns;  // operands of a chunk

template <bool kFirst>
struct Multiplier {
  const Fp8PrefillArgs& args;
  const prefill::Projection& projection;
  Shared& shared;
  RingPosition weights;
  RingPosition tokens;
  RingPosition table;
  int tiles = 0;
  const int warp = uniform_warp_id() % kMultiplyingWarps;
  const std::uint64_t operands = swizzled_operand(shared_address(shared.tokens));
  // Read from the first lane: with an address that is the same in all of them a load adds it by
  // itself.
  const std::uint32_t tables = __shfl_sync(kAllLanes, shared_address(shared.fp8_tables), 0);

  // A lane's places in stages, in bytes.
  const std::uint32_t codes_of_lane = kept(lane_id() * 16);
  const std::uint32_t places_of_lane = kept(lane_id() / 4 * 8);
  const std::uint32_t scales_of_lane = kept(lane_id() % 4 * 8);

  // x, which the compiler would compute anew wherever it is used, to have sums in its register.
  static __device__ std::uint32_t kept(int x) {
    asm volatile("" : "+r"(x));
    return static_cast<std::uint32_t>(x);
  }

  // A slab of the warp's 16 rows, which are a half of a packed chunk's.
  __device__ __forceinline__ Slab load(int slab) const {
    const std::uint8_t* chunk = shared.weights[weights.at] + warp / 2 * kChunkBytes;
    const int at = warp % 2 * 4 + slab;
    const std::uint8_t* scales = chunk + kChunkCodeBytes + at * kSlabScaleBytes;
    return {*reinterpret_cast<const uint4*>(chunk + at * kSlabCodeBytes + codes_of_lane),
            *reinterpret_cast<const uint2*>(scales + places_of_lane)};
  }

  // Starts sums = a times a half of the tokens of the stage.
  template <int kHalf>
  __device__ __forceinline__ void start(float (&sums)[kHalf / 2], const Operand& a,
                                        int half) const {
    const std::uint64_t b =
        operand_behind(operands, tokens.at * Shared::kTokenBytes + half * kHalf * kFp8Columns);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      wgmma_e4m3<kHalf>(sums, a[step], operand_behind(b, step * 32), step > 0);
    wgmma_commit();
  }

  // The scales of the nth eight tokens of the stage.
  __device__ __forceinline__ float2 scales_of(int n) const {
    const auto* scales = reinterpret_cast<const std::uint8_t*>(shared.scales[tokens.at]);
    return *reinterpret_cast<const float2*>(scales + n * 32 + scales_of_lane);
  }
  // d += sums times the scales of eights from `first` on, of which `early` has some.
  template <int kHalf>
  __device__ __forceinline__ void add(float (&d)[kHalf / 2], const float (&sums)[kHalf / 2],
                                      int first, const float2 (&early)[kEarlyScales]) const {
#pragma unroll
    for (int n = 0; n < kHalf / 8; ++n)
      add_scaled_eight(d + 4 * n, sums + 4 * n, n < kEarlyScales ? early[n] : scales_of(first + n));
  }

  template <int kHalf>
  __device__ __forceinline__ void multiply_tile(const PassTile& tile, int row_tile) {
    float d[kHalves][kHalf / 2], sums[kHalf / 2];
#pragma unroll
    for (int i = 0; i < kHalves * kHalf / 2; ++i) d[i / (kHalf / 2)][i % (kHalf / 2)] = 0;
    Operand a[2];
    barrier_wait(shared.weights_full + weights.at, weights.parity);
    Slab slab = load(0);
    const float2 factors = {fp8_row_factor(slab.scales.x), fp8_row_factor(slab.scales.y)};
    decode_fp8_slab(slab, tables, a[0][0], a[0][1]);
    decode_fp8_slab(load(1), tables, a[0][2], a[0][3]);
    slab = load(2);
    for (int chunk = 0; chunk < projection.chunks; ++chunk) {
      const bool is_last_chunk = chunk + 1 == projection.chunks;
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn) {
        barrier_wait(shared.tokens_full + tokens.at, tokens.parity);
        fence_operands();
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
          start<kHalf>(sums, a[turn % 2], half);
          // The slabs of this chunk lead those of the products by an operand.
          const int decoded = (turn + 1) % kTurns * kHalves + half;
          if (turn + 1 < kTurns || !is_last_chunk) {
            Operand& next = a[(turn + 1) % 2];
            decode_fp8_slab(slab, tables, next[2 * half], next[2 * half + 1]);
          }
          if (decoded == kTurns * kHalves - 1) {
            warp_arrive(shared.weights_empty + weights.at);
            weights.next(kWeightStages);
            if (!is_last_chunk) barrier_wait(shared.weights_full + weights.at, weights.parity);
          }
          float2 early[kEarlyScales];
#pragma unroll
          for (int n = 0; n < kEarlyScales && n < kHalf / 8; ++n)
            early[n] = scales_of(half * (kHalf / 8) + n);
          wgmma_wait<0>();
          wgmma_results(sums);
          add<kHalf>(d[half], sums, half * (kHalf / 8), early);
          if (turn + 1 + half < kTurns || !is_last_chunk)
            slab = load((decoded + 1) % (kTurns * kHalves));
        }
        warp_arrive(shared.tokens_empty + tokens.at);
        tokens.next(kTokenStages);
      }
    }
    store<kHalf>(tile.expert, row_tile * kTileRows + warp * 16, factors, d);
  }

  template <int kHalf>
  __device__ __forceinline__ void store(int expert, int row, float2 factors,
                                        float (&d)[kHalves][kHalf / 2]) {
    barrier_wait(shared.table_full + table.at, table.parity);
    const Results results{args, shared.table[table.at], shared, tiles, expert, row, factors};
    if constexpr (kFirst)
      results.template store_hidden<kHalf>(d);
    else if (row / kTileRows < projection.row_tiles)
      results.template store_outputs16<kHalf>(d);
    ++tiles;
    warp_arrive(shared.table_empty + table.at);
    table.next(kTableStages);
  }

  template <int kHalf>
  __device__ __forceinline__ void multiply_width(TileWalk& walk) {
    for (; walk.more(); walk.next()) {
      const PassTile tile = walk.tile();
      if (half_of(tile) != kHalf) return;
      multiply_tile<kHalf>(tile, walk.row_tile() + static_cast<int>(cluster_rank()));
    }
  }
  template <int... kEach>
  __device__ __forceinline__ void multiply_all(WidthList<kEach...>) {
    TileWalk walk(args.common, projection, cluster_index(), cluster_count());
    (multiply_width<kEach>(walk), ...);
  }
};

__device__ void make_ready(Shared& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    constexpr int kReaders = kMultiplyingWarps * kWarpArrivals;
    init_ring(shared.weights_full, 1, shared.weights_empty, kReaders, kWeightStages);
    init_ring(shared.tokens_full, kGatherWarps * kWarp + kWarpArrivals, shared.tokens_empty,
              kReaders, kTokenStages);
    init_ring(shared.table_full, kWarpArrivals, shared.table_empty,
              kReaders + kGatherWarps * kWarpArrivals, kTableStages);
    barrier_init(&shared.peaks_full, 1);
    barrier_init_fence();
  }
  if (thread < kFp8WindowBinades) shared.fp8_tables[thread] = fp8_table(thread);
  if (thread < kWidestWidePass) shared.peaks.mine[thread] = 0;
}

template <bool kFirst>
__global__ void __launch_bounds__(kThreads, 1)
    experts_prefill_fp8_wide_kernel(const __grid_constant__ Fp8PrefillArgs args) {
  extern __shared__ std::uint8_t unaligned[];
  Shared& shared =
      *reinterpret_cast<Shared*>(unaligned + (1024 - shared_address(unaligned) % 1024) % 1024);
  make_ready(shared);
  cluster_sync();
  wait_for_previous();
  if (threadIdx.x >= kMultiplyingGroups * kWarpgroup) {
    lower_registers<40>();
    if (uniform_warp_id() % 4 < kGatherWarps)
      gather_tokens(args, projection_of(args.common), shared);
    else
      Supplier(args, projection_of(args.common), shared).run();
  } else {
    raise_registers<232>();
    const prefill::Projection projection = projection_of(args.common);
    Multiplier<kFirst> multiplier{args, projection, shared, {}, {}, {}};
    multiplier.multiply_all(Halves());
  }
}

}  // namespace

void experts_prefill_fp8_wide(const Fp8PrefillArgs& args, cudaStream_t stream) {
  constexpr std::size_t kBytes = sizeof(Shared) + 1024;
  const auto kernel = args.common.first ? experts_prefill_fp8_wide_kernel<true>
                                        : experts_prefill_fp8_wide_kernel<false>;
  allow_shared(kernel, kBytes);
  launch(kernel,
         {.grid = static_cast<unsigned>(args.common.blocks / 2 * 2),
          .block = kThreads,
          .shared = kBytes,
          .cluster_x = 2},
         stream, args);
}

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// Routed NVFP4 experts for many tokens: one projection per launch, bound by the tensor cores.
//
// A tile is 256 packed rows of an expert times up to 128 of its tokens, as wide as the expert's
// count asks for. Four warpgroups take 64 rows each and decode weights into registers, the left
// operand; while one decodes, the products of the others keep the tensor cores busy. A fifth
// warpgroup feeds them: one warp with bulk copies of packed weights, three with the tokens' rows,
// gathered as they are copied. Blocks stride over the tiles, row tiles of one expert beside each
// other, so that its tokens are read from the second-level cache.
#include <algorithm>

#include "backends/cuda/cuda_check.h"
#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/bf16_parts.cuh"
#include "backends/cuda/device/nvfp4_fragments.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/scalar.cuh"
#include "backends/cuda/device/wgmma.cuh"
#include "backends/cuda/launch/experts.h"

namespace quatrain::cuda {
namespace {

constexpr int kWarpgroup = 128;
constexpr int kMultiplyingGroups = 4;
constexpr int kThreads = (kMultiplyingGroups + 1) * kWarpgroup;  // the last one feeds
constexpr int kMultiplyingWarps = 4 * kMultiplyingGroups;
constexpr int kRowTiles = 2;  // packed row tiles that a block takes together
constexpr int kGatherThreads = 96;
constexpr int kGatherBarrier = 1;  // named barrier of the gathering threads

constexpr int kWeightStages = 3;
constexpr int kTokenStages = 6;
constexpr int kTokenStageBytes = kWidestPass * kSlabCols * 2;
constexpr int kTokensAt = 0;  // 1024-byte aligned, for the swizzle
constexpr int kWeightsAt = kTokensAt + kTokenStages * kTokenStageBytes;
constexpr int kWeightStageBytes = kRowTiles * kTileBytes;
constexpr int kRowsAt = kWeightsAt + kWeightStages * kWeightStageBytes;
constexpr int kBarriersAt = kRowsAt + kWidestPass * 4;
constexpr int kSharedBytes = kBarriersAt + 2 * 8 * (kWeightStages + kTokenStages) + 1024;

// A stage holds as many slabs of 64 columns as fit, up to a chunk's four.
__device__ constexpr int slabs_per_stage(int width) {
  return width <= 32 ? 4 : width <= 64 ? 2 : 1;
}

// Of the products of a tile.
__device__ int width_of(int count) {
  return count <= 32 ? 32 : count <= 64 ? padded_to(count, 16) : padded_to(count, 32);
}

struct Projection {
  const std::uint8_t* weights;
  int row_tiles;
  int chunks;
  std::int64_t expert_bytes;
};

__device__ Projection projection_of(const PrefillArgs& args) {
  const PackedShape shape = args.first ? first_projection(args.w.hidden, args.w.inner)
                                       : second_projection(args.w.hidden, args.w.inner);
  return {args.first ? args.w.first : args.w.second, shape.row_tiles(), shape.col_chunks(),
          shape.bytes()};
}

struct Shared {
  std::uint8_t* base;
  Barrier* weights_full;
  Barrier* weights_empty;
  Barrier* tokens_full;
  Barrier* tokens_empty;
};

__device__ Shared shared_at(std::uint8_t* base) {
  auto* barriers = reinterpret_cast<Barrier*>(base + kBarriersAt);
  return {base, barriers, barriers + kWeightStages, barriers + 2 * kWeightStages,
          barriers + 2 * kWeightStages + kTokenStages};
}

// Calls body(tile, first row tile) for this block's tiles.
template <class Body>
__device__ void for_each_tile(const PrefillArgs& args, const Projection& p, Body body) {
  const int per_expert = (p.row_tiles + kRowTiles - 1) / kRowTiles;
  const int all = *args.tile_count * per_expert;
  for (int i = static_cast<int>(blockIdx.x); i < all; i += static_cast<int>(gridDim.x))
    body(args.tiles[i / per_expert], i % per_expert * kRowTiles);
}

// ---- feeding ----

__device__ void fetch_weights(const PrefillArgs& args, const Projection& p, const Shared& shared) {
  if (lane_id() != 0) return;
  RingPosition at;
  for_each_tile(args, p, [&](const PassTile& tile, int row_tile) {
    // A tile past the last one repeats it; nobody stores its results.
    const std::uint8_t* from[kRowTiles];
    for (int r = 0; r < kRowTiles; ++r)
      from[r] = p.weights + tile.expert * p.expert_bytes +
                std::int64_t{min(row_tile + r, p.row_tiles - 1)} * p.chunks * kTileBytes;
    for (int c = 0; c < p.chunks; ++c, at.next(kWeightStages)) {
      barrier_wait(shared.weights_empty + at.at, at.parity ^ 1u);
      barrier_expect(shared.weights_full + at.at, kWeightStageBytes);
      for (int r = 0; r < kRowTiles; ++r)
        bulk_copy(shared.base + kWeightsAt + at.at * kWeightStageBytes + r * kTileBytes,
                  from[r] + c * kTileBytes, kTileBytes, shared.weights_full + at.at);
    }
  });
}

// The stages whose copies this thread has issued and not yet reported, oldest first.
class PendingStages {
 public:
  __device__ explicit PendingStages(const Shared& shared) : shared_(shared) {}
  __device__ void push() {
    commit_copies();
    if (++pending_ > kPending) {
      wait_copies<kPending>();
      report();
    }
  }
  __device__ void flush() {
    wait_copies<0>();
    while (pending_ > 0) report();
  }

 private:
  // All but the one being filled: it takes that much under way to keep the tensor cores fed.
  static constexpr int kPending = kTokenStages - 1;
  __device__ void report() {
    async_proxy_fence();
    barrier_arrive(shared_.tokens_full + oldest_.at);
    oldest_.next(kTokenStages);
    --pending_;
  }
  const Shared& shared_;
  RingPosition oldest_;
  int pending_ = 0;
};

// Piece `piece` of 64 columns of every 12th row from `first` on; four rows' offsets at a time.
__device__ void gather_slab(const uint4* from, const unsigned* rows, int width, int first,
                            int piece, std::uint32_t to) {
  constexpr int kStep = kGatherThreads / 8, kBatch = 4;
  for (int begin = first; begin < width; begin += kBatch * kStep) {
    unsigned offsets[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) offsets[i] = rows[min(begin + i * kStep, width - 1)];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int n = begin + i * kStep;
      if (n < width) copy16(to + n * 128 + ((piece ^ (n & 7)) << 4), from + offsets[i]);
    }
  }
}

__device__ void fetch_tokens(const PrefillArgs& args, const Projection& p, const Shared& shared) {
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
  const int piece = thread % 8;
  const int parts = args.routed.parts;
  const int padded = p.chunks * kChunkCols;
  auto* rows = reinterpret_cast<unsigned*>(shared.base + kRowsAt);
  RingPosition at;
  PendingStages pending(shared);
  for_each_tile(args, p, [&](const PassTile& tile, int) {
    const int width = width_of(tile.count);
    const int slabs = slabs_per_stage(width);
    named_sync(kGatherBarrier, kGatherThreads);  // all have read the last tile's rows
    // Columns past the count repeat the last token; nobody looks at their sums. Rows are kept as
    // offsets in pieces of 16 bytes.
    for (int n = thread; n < width; n += kGatherThreads)
      rows[n] = args.sorted[tile.first + min(n, tile.count - 1)] / args.inputs.slots_per_row *
                (parts * padded / 8);
    named_sync(kGatherBarrier, kGatherThreads);
    for (int slab = 0; slab < 4 * p.chunks; slab += slabs)
      for (int part = 0; part < parts; ++part, at.next(kTokenStages)) {
        if (!barrier_test(shared.tokens_empty + at.at, at.parity ^ 1u)) {
          pending.flush();  // the multipliers may be waiting for them
          barrier_wait(shared.tokens_empty + at.at, at.parity ^ 1u);
        }
        std::uint32_t to = shared_address(shared.base + kTokensAt + at.at * kTokenStageBytes);
        const auto* from =
            reinterpret_cast<const uint4*>(args.inputs.values + part * padded + slab * kSlabCols) +
            piece;
        for (int s = 0; s < slabs; ++s, to += width * 128, from += kSlabCols / 8)
          gather_slab(from, rows, width, thread / 8, piece, to);
        pending.push();
      }
  });
  pending.flush();
}

// ---- multiplying ----

template <int kParts>
struct Multiplier {
  const PrefillArgs& args;
  const Projection& projection;
  const Shared& shared;
  RingPosition weights;
  RingPosition tokens;

  __device__ int warp() const { return warp_id() % kMultiplyingWarps; }

  __device__ void release(Barrier* barrier) const {
    if (lane_id() == 0) barrier_arrive(barrier);
  }
  // d += one slab of this warpgroup's rows times slab `slab` of the stage; done when it returns.
  template <int kWidth>
  __device__ void multiply_slab(float (&d)[kWidth / 2], const std::uint32_t (&a)[4][4],
                                int slab) const {
    RingPosition at = tokens;
    wgmma_fence();
#pragma unroll
    for (int part = 0; part < kParts; ++part, at.next(kTokenStages)) {
      const std::uint64_t b = swizzled_operand(
          shared_address(shared.base + kTokensAt + at.at * kTokenStageBytes) + slab * kWidth * 128);
#pragma unroll
      for (int atom = 0; atom < 4; ++atom)
        wgmma_bf16<kWidth>(d, a[atom], b + static_cast<std::uint64_t>(atom * 2));
    }
    wgmma_commit();
    wgmma_wait<0>();
  }

  template <int kWidth>
  __device__ void multiply_tile(const PassTile& tile, int first_row_tile) {
    constexpr int kSlabs = slabs_per_stage(kWidth);
    float d[kWidth / 2];
#pragma unroll
    for (int i = 0; i < kWidth / 2; ++i) d[i] = 0;
    for (int chunk = 0; chunk < projection.chunks; ++chunk, weights.next(kWeightStages)) {
      barrier_wait(shared.weights_full + weights.at, weights.parity);
      const std::uint8_t* packed =
          shared.base + kWeightsAt + weights.at * kWeightStageBytes + warp() / 4 * kChunkBytes;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Slab slab = load_slab(packed, warp() % 4 * 4 + i, lane_id());
        std::uint32_t a[4][4];
#pragma unroll
        for (int atom = 0; atom < 4; ++atom) decode_slab_atom(slab, atom, a[atom]);
        if (i == 3) {
          __syncwarp();
          release(shared.weights_empty + weights.at);
        }
        if (i % kSlabs == 0) {
          RingPosition at = tokens;
#pragma unroll
          for (int part = 0; part < kParts; ++part, at.next(kTokenStages))
            barrier_wait(shared.tokens_full + at.at, at.parity);
        }
        multiply_slab<kWidth>(d, a, i % kSlabs);
        if (i % kSlabs == kSlabs - 1) {
#pragma unroll
          for (int part = 0; part < kParts; ++part, tokens.next(kTokenStages))
            release(shared.tokens_empty + tokens.at);
        }
      }
    }
    wgmma_results(d);
    const int row_tile = first_row_tile + warp() / 8;
    if (row_tile >= projection.row_tiles) return;
    if (args.first)
      store_hidden<kWidth>(tile, row_tile, d);
    else
      store_outputs<kWidth>(tile, row_tile, d);
  }

  // Calls body(slot, factor of its inputs, index of the sum of row g) for this lane's tokens.
  template <int kWidth, class Body>
  __device__ void for_each_token(const PassTile& tile, Body body) const {
    const float* scales = args.inputs.row_scales;
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = n * 8 + lane_id() % 4 * 2 + i;
        if (token >= tile.count) continue;
        const int slot = args.sorted[tile.first + token];
        body(slot,
             kPackedUnit * (scales != nullptr ? scales[slot / args.inputs.slots_per_row] : 1.0f),
             n * 4 + i);
      }
  }

  template <int kWidth>
  __device__ void store_hidden(const PassTile& tile, int row_tile,
                               const float (&d)[kWidth / 2]) const {
    const float gate_scale = args.w.gate_scales[tile.expert];
    const float up_scale = args.w.up_scales[tile.expert];
    const int col = row_tile * (kTileRows / 2) + warp() % 8 * 8 + lane_id() / 4;
    const int padded = padded_to(args.w.inner, kChunkCols);
    for_each_token<kWidth>(tile, [&](int slot, float unit, int at) {
      // All scales are in before the clamp, each global scale in its own half.
      float h = swiglu_value(d[at] * (gate_scale * unit), d[at + 2] * (up_scale * unit),
                             args.routed.limit);
      if (args.routed.weight_first) h *= args.routed.weights[slot];
      if (args.hidden16 != nullptr)
        store_parts(args.hidden16 + std::int64_t{slot} * kParts * padded + col, kParts, padded, h);
      else if (col < args.w.inner)
        args.hidden[std::int64_t{slot} * args.w.inner + col] = h;
    });
  }

  template <int kWidth>
  __device__ void store_outputs(const PassTile& tile, int row_tile,
                                const float (&d)[kWidth / 2]) const {
    const float down_scale = args.w.down_scales[tile.expert];
    const int row = row_tile * kTileRows + warp() % 8 * 16 + lane_id() / 4;
    for_each_token<kWidth>(tile, [&](int slot, float unit, int at) {
      float* to = args.outputs + std::int64_t{slot} * args.w.hidden + row;
      if (row < args.w.hidden) to[0] = d[at] * (down_scale * unit);
      if (row + 8 < args.w.hidden) to[8] = d[at + 2] * (down_scale * unit);
    });
  }

  __device__ void multiply(const PassTile& tile, int row_tile) {
    switch (width_of(tile.count)) {
      case 32:
        return multiply_tile<32>(tile, row_tile);
      case 48:
        return multiply_tile<48>(tile, row_tile);
      case 64:
        return multiply_tile<64>(tile, row_tile);
      case 96:
        return multiply_tile<96>(tile, row_tile);
      default:
        return multiply_tile<128>(tile, row_tile);
    }
  }
};

template <int kParts>
__global__ void __launch_bounds__(kThreads, 1)
    experts_prefill_kernel(const __grid_constant__ PrefillArgs args) {
  extern __shared__ std::uint8_t unaligned[];
  const Shared shared = shared_at(unaligned + (1024 - shared_address(unaligned) % 1024) % 1024);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kWeightStages; ++s) {
      barrier_init(shared.weights_full + s, 1);
      barrier_init(shared.weights_empty + s, kMultiplyingWarps);
    }
    for (int s = 0; s < kTokenStages; ++s) {
      barrier_init(shared.tokens_full + s, kGatherThreads);
      barrier_init(shared.tokens_empty + s, kMultiplyingWarps);
    }
    barrier_init_fence();
  }
  __syncthreads();  // barriers are ready
  const Projection projection = projection_of(args);
  if (threadIdx.x >= kMultiplyingGroups * kWarpgroup) {
    lower_registers<32>();
    if (threadIdx.x < kMultiplyingGroups * kWarpgroup + kGatherThreads)
      fetch_tokens(args, projection, shared);
    else
      fetch_weights(args, projection, shared);
  } else {
    raise_registers<112>();
    Multiplier<kParts> multiplier{args, projection, shared, {}, {}};
    for_each_tile(args, projection,
                  [&](const PassTile& tile, int row_tile) { multiplier.multiply(tile, row_tile); });
  }
}

}  // namespace

void experts_prefill(const PrefillArgs& args, cudaStream_t stream) {
  const auto kernel =
      args.routed.parts == 2 ? experts_prefill_kernel<2> : experts_prefill_kernel<1>;
  QT_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  kernel<<<static_cast<unsigned>(args.blocks), kThreads, kSharedBytes, stream>>>(args);
  QT_CUDA(cudaGetLastError());
}

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// Routed NVFP4 experts for many tokens: one projection per launch, bound by the tensor cores.
//
// A tile is 256 packed rows of an expert times up to 128 of its tokens, as wide as the expert's
// count asks for. Four warpgroups take 64 rows each and decode weights into registers, the left
// operand; while one decodes, the products of the others keep the tensor cores busy. A fifth
// warpgroup feeds them: one warp with bulk copies of packed weights, three with the tokens' rows,
// gathered as they are copied. Blocks stride over the tiles, row tiles of one expert beside each
// other, so that its tokens are read from the second-level cache.
#include <type_traits>

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
constexpr int kMultiplyingGroups = 2;
constexpr int kThreads = (kMultiplyingGroups + 1) * kWarpgroup;  // the last one feeds
constexpr int kMultiplyingWarps = 4 * kMultiplyingGroups;
constexpr int kRowTiles = kMultiplyingGroups;  // packed row tiles that a block takes together
constexpr int kBlocks = 2;                     // of 64 rows, which a warpgroup takes together
constexpr int kGatherThreads = 96;
constexpr int kGatherStep = kGatherThreads / 8;  // tokens of which they copy a piece at once
constexpr int kGatherSteps = 12;                 // at most, and one for a multiple of four
constexpr int kWarpRows = kWarp / 8;

constexpr int kWeightStages = 3;
constexpr int kTokenStages = 6;
constexpr int kTableStages = 2;
constexpr int kTokenStageBytes = kWidestPass * kSlabCols * 2;

// What the sums of a tile's columns need when they are stored.
struct TokenTable {
  // Of token first + step * kGatherStep, its row's offset in pieces of 16 bytes.
  alignas(16) unsigned offsets[kGatherStep][kGatherSteps];
  int slots[kWidestPass];      // -1 past the count
  float units[kWidestPass];    // multiply a token's sums
  float weights[kWidestPass];  // multiply its hidden values
};

constexpr int kTokensAt = 0;  // 1024-byte aligned, for the swizzle
constexpr int kWeightsAt = kTokensAt + kTokenStages * kTokenStageBytes;
constexpr int kWeightStageBytes = kRowTiles * kTileBytes;
constexpr int kTablesAt = kWeightsAt + kWeightStages * kWeightStageBytes;
constexpr int kBarriersAt = kTablesAt + kTableStages * int{sizeof(TokenTable)};
constexpr int kSharedBytes =
    kBarriersAt + 2 * 8 * (kWeightStages + kTokenStages + kTableStages) + 1024;

// Slabs of 64 columns that a stage holds.
__device__ constexpr int slabs_per_stage(int width) { return width <= 64 ? 2 : 1; }

// The widths that products have, each with code of its own, in the order of the list of tiles.
template <int... kWidths>
struct WidthList {};
using Widths = WidthList<128, 120, 112, 104, 96, 88, 80, 72, 64, 56, 48, 40, 32, 16>;
__device__ int width_of(const PassTile& tile) {
  return tile.width <= 32 ? padded_to(tile.width, 16) : tile.width;
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
  Barrier* table_full;
  Barrier* table_empty;
  __device__ TokenTable& table(int stage) const {
    return reinterpret_cast<TokenTable*>(base + kTablesAt)[stage];
  }
};

__device__ Shared shared_at(std::uint8_t* base) {
  auto* barriers = reinterpret_cast<Barrier*>(base + kBarriersAt);
  Barrier* tokens = barriers + 2 * kWeightStages;
  Barrier* tables = tokens + 2 * kTokenStages;
  return {base,
          barriers,
          barriers + kWeightStages,
          tokens,
          tokens + kTokenStages,
          tables,
          tables + kTableStages};
}

// This block's tiles: it strides over them, row tiles of one expert beside each other.
class TileWalk {
 public:
  __device__ TileWalk(const PrefillArgs& args, const Projection& p)
      : tiles_(args.tiles),
        per_expert_((p.row_tiles + kRowTiles - 1) / kRowTiles),
        count_(*args.tile_count * per_expert_),
        at_(static_cast<int>(blockIdx.x)) {}
  __device__ bool more() const { return at_ < count_; }
  __device__ void next() { at_ += static_cast<int>(gridDim.x); }
  __device__ PassTile tile() const { return tiles_[at_ / per_expert_]; }
  __device__ int row_tile() const { return at_ % per_expert_ * kRowTiles; }

 private:
  const PassTile* tiles_;
  int per_expert_;
  int count_;
  int at_;
};

// ---- feeding ----

__device__ void fetch_weights(const PrefillArgs& args, const Projection& p, const Shared& shared) {
  if (lane_id() != 0) return;
  RingPosition at;
  for (TileWalk walk(args, p); walk.more(); walk.next()) {
    const int expert = walk.tile().expert, row_tile = walk.row_tile();
    // A tile past the last one repeats it; nobody stores its results.
    const std::uint8_t* from[kRowTiles];
    for (int r = 0; r < kRowTiles; ++r)
      from[r] = p.weights + expert * p.expert_bytes +
                std::int64_t{min(row_tile + r, p.row_tiles - 1)} * p.chunks * kTileBytes;
    for (int c = 0; c < p.chunks; ++c, at.next(kWeightStages)) {
      barrier_wait(shared.weights_empty + at.at, at.parity ^ 1u);
      barrier_expect(shared.weights_full + at.at, kWeightStageBytes);
      for (int r = 0; r < kRowTiles; ++r)
        bulk_copy(shared.base + kWeightsAt + at.at * kWeightStageBytes + r * kTileBytes,
                  from[r] + c * kTileBytes, kTileBytes, shared.weights_full + at.at);
    }
  }
}

// A warp of the gather fills in the tokens that it copies itself: every 12th and the three after.
__device__ void fill_table(const PrefillArgs& args, const PassTile& tile, int row_pieces,
                           TokenTable& table) {
  const int own = warp_id() % 4 * kWarpRows;
  for (int i = lane_id(); i < kWarpRows * kGatherSteps; i += kWarp) {
    const int first = own + i % kWarpRows, step = i / kWarpRows;
    const int n = first + step * kGatherStep;
    // Columns past the count repeat the last token; nobody looks at their sums.
    const int slot = args.sorted[tile.first + min(n, tile.count - 1)];
    const int row = slot / args.inputs.slots_per_row;
    const float* scales = args.inputs.row_scales;
    table.offsets[first][step] = static_cast<unsigned>(row) * static_cast<unsigned>(row_pieces);
    if (n >= kWidestPass) continue;
    table.slots[n] = n < tile.count ? slot : -1;
    table.units[n] = kPackedUnit * (scales != nullptr ? scales[row] : 1.0f);
    table.weights[n] = args.routed.weight_first ? args.routed.weights[slot] : 1.0f;
  }
  __syncwarp();
}

// One piece of 64 columns of `count` tokens, `to` being the first one's place. Every 12th token is
// a thread's, which moves its piece by 64 bytes in the swizzle at every step.
__device__ void gather_slab(const uint4* from, const unsigned (&offsets)[kGatherSteps], int count,
                            std::uint32_t to) {
  constexpr int kBatch = 4;
#pragma unroll
  for (int begin = 0; begin < kGatherSteps; begin += kBatch) {
    if (begin >= count) break;
    const uint4 four = *reinterpret_cast<const uint4*>(offsets + begin);
    const unsigned of[kBatch] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
      if (begin + i < count)
        copy16((to ^ (i % 2 * 64)) + (begin + i) * kGatherStep * 128, from + of[i]);
  }
}

__device__ void fetch_tokens(const PrefillArgs& args, const Projection& p, const Shared& shared) {
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
  const int piece = thread % 8, first = thread / 8;
  const int place = first * 128 + ((piece ^ first % 8) << 4);
  const int parts = args.routed.parts;
  const int padded = p.chunks * kChunkCols;
  RingPosition at, table_at;
  for (TileWalk walk(args, p); walk.more(); walk.next()) {
    const PassTile tile = walk.tile();
    barrier_wait(shared.table_empty + table_at.at, table_at.parity ^ 1u);
    TokenTable& table = shared.table(table_at.at);
    fill_table(args, tile, parts * padded / 8, table);
    barrier_arrive(shared.table_full + table_at.at);
    table_at.next(kTableStages);
    const int width = width_of(tile);
    const int slabs = slabs_per_stage(width);
    const int count = (width - first + kGatherStep - 1) / kGatherStep;
    for (int slab = 0; slab < 4 * p.chunks; slab += slabs)
      for (int part = 0; part < parts; ++part, at.next(kTokenStages)) {
        barrier_wait(shared.tokens_empty + at.at, at.parity ^ 1u);
        std::uint32_t to =
            shared_address(shared.base + kTokensAt + at.at * kTokenStageBytes) + place;
        const auto* from =
            reinterpret_cast<const uint4*>(args.inputs.values + part * padded + slab * kSlabCols) +
            piece;
        for (int s = 0; s < slabs; ++s, to += width * 128, from += kSlabCols / 8)
          gather_slab(from, table.offsets[first], count, to);
        arrive_when_copied(shared.tokens_full + at.at);
      }
  }
  wait_for_copies();  // none may outlive the block
}

// ---- multiplying ----

// The transpose of an 8 x 8 matrix of 16-bit values, of which a lane has two neighbours in a row.
__device__ inline std::uint32_t transposed(std::uint32_t pair) {
  std::uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
  return result;
}

// Lane i of every four gets words[i] of all of them, in order.
__device__ inline uint4 quad_transposed(const std::uint32_t (&words)[4]) {
  const bool odd = lane_id() % 2 != 0, high = lane_id() % 4 >= 2;
  const std::uint32_t a = __shfl_xor_sync(kAllLanes, odd ? words[0] : words[1], 1);
  const std::uint32_t b = __shfl_xor_sync(kAllLanes, odd ? words[2] : words[3], 1);
  const uint2 low_pair = odd ? uint2{a, words[1]} : uint2{words[0], a};
  const uint2 high_pair = odd ? uint2{b, words[3]} : uint2{words[2], b};
  const std::uint32_t x = __shfl_xor_sync(kAllLanes, high ? low_pair.x : high_pair.x, 2);
  const std::uint32_t y = __shfl_xor_sync(kAllLanes, high ? low_pair.y : high_pair.y, 2);
  return high ? uint4{x, y, high_pair.x, high_pair.y} : uint4{low_pair.x, low_pair.y, x, y};
}

template <int kParts, bool kFirst>
struct Multiplier {
  const PrefillArgs& args;
  const Projection& projection;
  const Shared& shared;
  RingPosition weights;
  RingPosition tokens;
  RingPosition table;

  __device__ int warp() const { return warp_id() % kMultiplyingWarps; }

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
          swizzled_operand(shared_address(shared.base + kTokensAt + at.at * kTokenStageBytes) +
                           slab * kWidth * 128 + atom * 32);
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
          shared.base + kWeightsAt + weights.at * kWeightStageBytes + warp() / 4 * kTileBytes;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        Slab slab[kBlocks];
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          const int rows = warp() % 4 * kBlocks + block;  // 16 of them, of the tile's 128
          slab[block] = load_slab(packed + rows / 4 * kChunkBytes, rows % 4 * 4 + i, lane_id());
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
    const int row_tile = first_row_tile + warp() / 4;
    barrier_wait(shared.table_full + table.at, table.parity);
    if (row_tile < projection.row_tiles) {
      const int row = row_tile * kTileRows + warp() % 4 * kBlocks * 16;
      if constexpr (!kFirst && kParts == 1) {
        if (args.outputs16 != nullptr)
          store_outputs16<kWidth>(tile.expert, row, d);
        else
          store_outputs<kWidth>(tile.expert, row, d);
      } else if constexpr (!kFirst)
        store_outputs<kWidth>(tile.expert, row, d);
      else if (args.hidden16 != nullptr)
        store_hidden16<kWidth>(tile.expert, row, d);
      else
        store_hidden<kWidth>(tile.expert, row, d);
    }
    release(shared.table_empty + table.at);
    table.next(kTableStages);
  }

  // A lane has rows g and g + 8 of both blocks of 16 rows from `row` on, and two tokens of each
  // eight: h of row g's hidden column.
  struct Hidden {
    float gate_scale, up_scale, limit;
    __device__ float operator()(float gate, float up, float unit, float weight) const {
      // All scales are in before the clamp, each global scale in its own half.
      return swiglu_value<quick_sigmoid>(gate * (gate_scale * unit), up * (up_scale * unit),
                                         limit) *
             weight;
    }
  };
  __device__ Hidden hidden_of(int expert) const {
    return {args.w.gate_scales[expert], args.w.up_scales[expert], args.routed.limit};
  }
  template <class T>
  static __device__ T pair_of(const float (&values)[kWidestPass], int n) {
    return *reinterpret_cast<const T*>(values + n * 8 + lane_id() % 4 * 2);
  }

  template <int kWidth>
  __device__ __forceinline__ void store_hidden16(int expert, int row,
                                                 const float (&d)[kBlocks][kWidth / 2]) const {
    const Hidden hidden = hidden_of(expert);
    const TokenTable& tokens_of = shared.table(table.at);
    const int padded = padded_to(args.w.inner, kChunkCols);
    // After the exchange a lane has one token of the eight and four columns of one block.
    const int lane = lane_id();
    std::uint16_t* to = args.hidden16 + row / 2 + lane % 2 * 8 + lane % 4 / 2 * 4;
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n) {
      const auto units = pair_of<float2>(tokens_of.units, n);
      const auto weights = pair_of<float2>(tokens_of.weights, n);
      const int slot = tokens_of.slots[n * 8 + lane / 4];
      float2 h[kBlocks];
#pragma unroll
      for (int block = 0; block < kBlocks; ++block)
        h[block] = {hidden(d[block][4 * n], d[block][4 * n + 2], units.x, weights.x),
                    hidden(d[block][4 * n + 1], d[block][4 * n + 3], units.y, weights.y)};
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        std::uint32_t columns[kBlocks];
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          const std::uint32_t pair = bf16_pair(h[block].x, h[block].y);
          columns[block] = transposed(pair);
          h[block] = {h[block].x - low_float(pair), h[block].y - high_float(pair)};
        }
        const bool odd = lane % 2 != 0;
        const std::uint32_t other = __shfl_xor_sync(kAllLanes, odd ? columns[0] : columns[1], 1);
        const uint2 four = odd ? uint2{other, columns[1]} : uint2{columns[0], other};
        if (slot >= 0)
          *reinterpret_cast<uint2*>(to + (std::int64_t{slot} * kParts + part) * padded) = four;
      }
    }
  }

  template <int kWidth>
  __device__ __forceinline__ void store_hidden(int expert, int row,
                                               const float (&d)[kBlocks][kWidth / 2]) const {
    const Hidden hidden = hidden_of(expert);
    const TokenTable& tokens_of = shared.table(table.at);
    const int col = row / 2 + lane_id() / 4;
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = n * 8 + lane_id() % 4 * 2 + i;
        const int slot = tokens_of.slots[token];
#pragma unroll
        for (int block = 0; block < kBlocks; ++block)
          if (slot >= 0 && col + block * 8 < args.w.inner)
            args.hidden[std::int64_t{slot} * args.w.inner + col + block * 8] =
                hidden(d[block][4 * n + i], d[block][4 * n + i + 2], tokens_of.units[token],
                       tokens_of.weights[token]);
      }
  }

  // After the exchange a lane has eight rows of one token of the eight.
  template <int kWidth>
  __device__ __forceinline__ void store_outputs16(int expert, int row,
                                                  const float (&d)[kBlocks][kWidth / 2]) const {
    const float down_scale = args.w.down_scales[expert];
    const TokenTable& tokens_of = shared.table(table.at);
    const int lane = lane_id();
    const int own = row + lane % 4 * 8;
    std::uint16_t* outputs = args.outputs16 + own;
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n) {
      const auto units = pair_of<float2>(tokens_of.units, n);
      const int slot = tokens_of.slots[n * 8 + lane / 4];
      std::uint32_t rows[2 * kBlocks];
#pragma unroll
      for (int i = 0; i < 2 * kBlocks; ++i)
        rows[i] = transposed(bf16_pair(d[i / 2][4 * n + i % 2 * 2] * (down_scale * units.x),
                                       d[i / 2][4 * n + i % 2 * 2 + 1] * (down_scale * units.y)));
      const uint4 eight = quad_transposed(rows);
      if (slot >= 0 && own < args.w.hidden)
        *reinterpret_cast<uint4*>(outputs + std::int64_t{slot} * args.w.hidden) = eight;
    }
  }

  template <int kWidth>
  __device__ __forceinline__ void store_outputs(int expert, int row,
                                                const float (&d)[kBlocks][kWidth / 2]) const {
    const float down_scale = args.w.down_scales[expert];
    const TokenTable& tokens_of = shared.table(table.at);
    float* outputs = args.outputs + row + lane_id() / 4;
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = n * 8 + lane_id() % 4 * 2 + i;
        const int slot = tokens_of.slots[token];
        const float scale = down_scale * tokens_of.units[token];
        float* to = outputs + std::int64_t{slot} * args.w.hidden;
#pragma unroll
        for (int block = 0; block < kBlocks; ++block)
          if (slot >= 0 && row + block * 16 < args.w.hidden) {
            to[block * 16] = d[block][4 * n + i] * scale;
            to[block * 16 + 8] = d[block][4 * n + i + 2] * scale;
          }
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

template <int kParts, bool kFirst>
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
    for (int s = 0; s < kTableStages; ++s) {
      barrier_init(shared.table_full + s, kGatherThreads);
      barrier_init(shared.table_empty + s, kMultiplyingWarps);
    }
    barrier_init_fence();
  }
  __syncthreads();  // barriers are ready
  const Projection projection = projection_of(args);
  if (threadIdx.x >= kMultiplyingGroups * kWarpgroup) {
    lower_registers<56>();
    if (threadIdx.x < kMultiplyingGroups * kWarpgroup + kGatherThreads)
      fetch_tokens(args, projection, shared);
    else
      fetch_weights(args, projection, shared);
  } else {
    raise_registers<224>();
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

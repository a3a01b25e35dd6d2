// SPDX-License-Identifier: Apache-2.0
// Routed NVFP4 experts for a few tokens: both projections, SwiGLU and the weighted sum in one
// launch whose only aim is that the memory never waits.
//
// One block per multiprocessor. A row tile, 128 packed rows of an expert times up to kTokens of its
// tokens, is a sum over column chunks; two chunks are a piece. Each block takes an equal run of the
// list of all pieces, so row tiles are cut at piece boundaries wherever the run ends: the block
// with the first pieces of a tile adds the others' pieces, one by one in order. So a sum has the
// same order whoever computed its parts, and a token's result does not depend on the rest of the
// batch.
//
// One warp keeps a ring of chunks filled with bulk copies; it runs ahead over tiles, experts and
// into the second projection, whose weights do not depend on the first. Another warp adds the
// tokens' inputs to each buffer, as soon as the grid has made them. Sixteen warps multiply: warp w
// takes rows 16 (w mod 8) of a tile, and one of the two chunks of each piece.
#include <algorithm>

#include "backends/cuda/cuda_check.h"
#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/bf16_parts.cuh"
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/expert_tiles.cuh"
#include "backends/cuda/device/grid_sync.cuh"
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/nvfp4_fragments.cuh"
#include "backends/cuda/device/scalar.cuh"
#include "backends/cuda/device/wgmma.cuh"
#include "backends/cuda/launch/experts_decode_layout.h"

namespace quatrain::cuda {
namespace {

constexpr int kMultipliers = 16;  // warps
constexpr int kRowWarps = 8;      // of them along the rows
constexpr int kMultiplierThreads = kMultipliers * kWarp;
constexpr int kThreads = kMultiplierThreads + 4 * kWarp;  // a warpgroup feeds, half of it idle

// Named barriers; 0 is the whole block.
constexpr int kMultipliersMeet = 1;
constexpr int kHalvesMeet = 2;

__device__ ExpertsProblem problem_of(const DecodeArgs& args, int parts) {
  return {args.routed.tokens, args.routed.k, args.w.experts, args.w.hidden, args.w.inner, parts};
}

// One projection's part of the list of pieces.
struct Pass {
  const std::uint8_t* weights;
  InputRows inputs;
  int padded_cols;
  int row_tiles;
  int chunks;
  int pieces;  // per row tile
  std::int64_t expert_bytes;
};

__device__ Pass make_pass(const std::uint8_t* weights, const PackedShape& shape,
                          const InputRows& inputs) {
  const int chunks = shape.col_chunks();
  return {weights,           inputs, chunks * kChunkCols,
          shape.row_tiles(), chunks, (chunks + kPieceChunks - 1) / kPieceChunks,
          shape.bytes()};
}

// A position in the list of pieces.
struct Walk {
  int tile, row_tile, piece;
  __device__ Walk(const Pass& pass, int index)
      : tile(index / (pass.pieces * pass.row_tiles)),
        row_tile(index / pass.pieces % pass.row_tiles),
        piece(index % pass.pieces) {}
  __device__ void next(const Pass& pass) {
    if (++piece < pass.pieces) return;
    piece = 0;
    if (++row_tile < pass.row_tiles) return;
    row_tile = 0;
    ++tile;
  }
};

__device__ int first_piece(const Pass& pass, int tiles, int block) {
  const std::int64_t all = std::int64_t{tiles} * pass.row_tiles * pass.pieces;
  return static_cast<int>(all * block / gridDim.x);
}

// Of one piece: by part of the inputs and parity of a pair of atoms, so that successive products do
// not wait for each other.
template <int kTokens, int kParts>
struct Sums {
  float at[2 * kParts][kTokens / 8][4] = {};
};

template <int kTokens, int kParts>
class Decoder {
 public:
  static constexpr int kGroups = kTokens / 8;
  static constexpr int kTokenStride = decode_token_stride(kParts);
  static constexpr int kStageBytes = decode_stage_bytes(kTokens, kParts);

  __device__ Decoder(const DecodeArgs& args, int stages, std::uint8_t* shared)
      : args_(args),
        stages_(stages),
        layout_(decode_layout(problem_of(args, kParts), kTokens, stages)) {
    ring_ = shared;
    halves_ = reinterpret_cast<float4*>(shared + layout_.halves);
    full_ = reinterpret_cast<Barrier*>(shared + layout_.barriers);
    empty_ = full_ + stages;
    tables_ = {reinterpret_cast<TokenTile*>(shared + layout_.tiles),
               reinterpret_cast<std::uint16_t*>(shared + layout_.sorted),
               reinterpret_cast<std::uint16_t*>(shared + layout_.ranks),
               reinterpret_cast<int*>(shared + layout_.offsets)};
    tile_count_ = reinterpret_cast<int*>(shared + layout_.tile_count);
    barrier_ = reinterpret_cast<GridBarrier*>(args.scratch.sync);
    flags_ = args.scratch.sync + kGridBarrierWords;
  }

  __device__ void run() {
    const int warp = warp_id();
    rounds_before_ = rounds_so_far(barrier_);
    if (warp == 0) {
      const int tiles = list_token_tiles<kTokens>(args_.routed, args_.w.experts, tables_);
      if (lane_id() == 0) *tile_count_ = tiles;
    } else {
      if (warp == 1) init_barriers();
      convert_source((warp - 1) * gridDim.x + blockIdx.x, (kThreads / kWarp - 1) * gridDim.x);
    }
    async_proxy_fence();
    __syncthreads();  // the list is made, the barriers are ready, this block's inputs are written
    arrive();
    tiles_ = *tile_count_;

    const Pass first =
        make_pass(args_.w.first, first_projection(args_.w.hidden, args_.w.inner), args_.inputs);
    const Pass second =
        make_pass(args_.w.second, second_projection(args_.w.hidden, args_.w.inner), args_.middle);
    if (warp < kMultipliers) {
      raise_registers<112>();
      if (args_.first) multiply_pass(first, true);
      if (args_.second) multiply_pass(second, false);
      if (args_.second) combine();
    } else {
      lower_registers<32>();
      if (warp == kMultipliers) {
        if (args_.first) fetch_weights(first);
        if (args_.second) fetch_weights(second);
      } else if (warp == kMultipliers + 1) {
        std::uint32_t round = 0;
        if (args_.first) fetch_inputs(first, ++round);
        if (args_.second) fetch_inputs(second, ++round);
      }
    }
  }

 private:
  // Ends a round of the grid barrier for this block; the first thread has waited for the one
  // before.
  __device__ void arrive() {
    if (threadIdx.x != 0) return;
    wait_for_round(barrier_, rounds_before_, arrivals_++);
    arrive_at(barrier_, gridDim.x);
  }

  __device__ void init_barriers() {
    if (lane_id() != 0) return;
    for (int s = 0; s < stages_; ++s) {
      barrier_init(full_ + s, 1);
      barrier_init(empty_ + s, kRowWarps);
    }
    barrier_init_fence();
  }

  // Where column `col` of a row's first part lies: a chunk's parts follow each other, so that one
  // copy brings them.
  __device__ static int part_offset(int col) {
    return col / kChunkCols * (kParts * kChunkCols) + col % kChunkCols;
  }

  // The rows of the source as BF16 parts, padded with zeros; `warp` of `warps` of the grid.
  __device__ void convert_source(int warp, int warps) {
    const int cols = args_.first ? args_.w.hidden : args_.w.inner;
    const int padded = padded_to(cols, kChunkCols);
    std::uint16_t* to = (args_.first ? args_.inputs : args_.middle).values;
    const std::int64_t quads = std::int64_t{args_.source_rows} * (padded / 4);
    for (std::int64_t i = std::int64_t{warp} * kWarp + lane_id(); i < quads;
         i += std::int64_t{warps} * kWarp) {
      const std::int64_t row = i / (padded / 4);
      const int col = static_cast<int>(i % (padded / 4)) * 4;
      float4 x = {};
      if (col < cols) x = *reinterpret_cast<const float4*>(args_.source + row * cols + col);
      store_parts(to + row * kParts * padded + part_offset(col), kParts, kChunkCols, x);
    }
  }

  // ---- the ring ----

  // Calls body(tile, first, last) for every tile of tokens that this block's run meets: the chunks
  // of an expert, row tile after row tile, follow each other in memory, and these are their
  // numbers.
  template <class Body>
  __device__ void for_each_run(const Pass& pass, Body body) {
    const int per_tile = pass.row_tiles * pass.chunks;
    const auto first_chunk = [&](int index) {
      const Walk walk(pass, index);
      return walk.tile * per_tile + walk.row_tile * pass.chunks + walk.piece * kPieceChunks;
    };
    const int end = first_chunk(first_piece(pass, tiles_, blockIdx.x + 1));
    for (int at = first_chunk(first_piece(pass, tiles_, blockIdx.x)); at < end;) {
      const int tile = at / per_tile;
      const int last = min(end, (tile + 1) * per_tile);
      body(tables_.tiles[tile], at - tile * per_tile, last - tile * per_tile);
      at = last;
    }
  }

  __device__ void fetch_weights(const Pass& pass) {
    if (lane_id() != 0) return;
    const std::uint64_t policy = evict_first_policy();
    for_each_run(pass, [&](const TokenTile& tile, int first, int last) {
      const std::uint8_t* from =
          pass.weights + tile.expert * pass.expert_bytes + std::int64_t{first} * kTileBytes;
      const std::uint32_t bytes = kTileBytes + tile.count * kParts * kChunkCols * 2;
      for (int c = first; c < last; ++c, from += kTileBytes) {
        barrier_wait(empty_ + position_.at, position_.parity ^ 1u);
        barrier_expect(full_ + position_.at, bytes);
        bulk_copy(ring_ + position_.at * kStageBytes, from, kTileBytes, full_ + position_.at,
                  policy);
        position_.next(stages_);
      }
    });
  }

  // Lane i brings token i. `round`: of the grid barrier, after which the inputs exist.
  __device__ void fetch_inputs(const Pass& pass, std::uint32_t round) {
    if (lane_id() == 0) wait_for_round(barrier_, rounds_before_, round);
    __syncwarp();
    async_proxy_fence();
    constexpr int kBytes = kParts * kChunkCols * 2;
    std::uint8_t* to = ring_ + kTileBytes + lane_id() * kTokenStride;
    for_each_run(pass, [&](const TokenTile& tile, int first, int last) {
      const bool brings = lane_id() < tile.count;
      const int slot = tables_.sorted[tile.first + (brings ? lane_id() : 0)];
      const std::int64_t row = slot / pass.inputs.slots_per_row;
      const std::uint16_t* inputs = pass.inputs.values + row * kParts * pass.padded_cols;
      for (int i = first, c = first % pass.chunks; i < last; ++i) {
        barrier_wait(empty_ + position_.at, position_.parity ^ 1u);
        if (brings)
          bulk_copy(to + position_.at * kStageBytes, inputs + c * (kBytes / 2), kBytes,
                    full_ + position_.at);
        if (++c == pass.chunks) c = 0;
        position_.next(stages_);
      }
    });
  }

  // ---- products ----

  __device__ int row_warp() const { return warp_id() % kRowWarps; }
  __device__ int half() const { return warp_id() / kRowWarps; }

  // The inputs of 8 tokens, group n, in columns [32 pair, 32 pair + 32) of a chunk.
  __device__ void load_inputs(std::uint32_t (&b)[kParts][4], const std::uint8_t* stage, int n,
                              int pair) const {
    const std::uint8_t* at = stage + kTileBytes + (n * 8 + lane_id() % 8) * kTokenStride +
                             pair * 64 + lane_id() / 8 * 16;
#pragma unroll
    for (int p = 0; p < kParts; ++p)
      ldmatrix_x4(b[p], reinterpret_cast<const __nv_bfloat16*>(at + p * kChunkCols * 2));
  }

  // sums += this warp's 16 rows of the chunk at `at`.
  __device__ void multiply_chunk(RingPosition at, int groups, Sums<kTokens, kParts>& sums) {
    const std::uint8_t* stage = ring_ + at.at * kStageBytes;
    barrier_wait(full_ + at.at, at.parity);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Slab slab =
          load_slab(stage + row_warp() / 4 * kChunkBytes, row_warp() % 4 * 4 + i, lane_id());
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        std::uint32_t a[2][4];
        decode_slab_atom(slab, pair * 2, a[0]);
        decode_slab_atom(slab, pair * 2 + 1, a[1]);
#pragma unroll
        for (int n = 0; n < kGroups; ++n) {
          if (n > 0 && n >= groups) break;
          std::uint32_t b[kParts][4];
          load_inputs(b, stage, n, i * 2 + pair);
          multiply_pair(a, b, n, pair, sums);
        }
      }
    }
    __syncwarp();
    if (lane_id() == 0) barrier_arrive(empty_ + at.at);
  }

  __device__ static void multiply_pair(const std::uint32_t (&a)[2][4],
                                       const std::uint32_t (&b)[kParts][4], int n, int parity,
                                       Sums<kTokens, kParts>& sums) {
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      mma_bf16(sums.at[2 * p + parity][n], a[0], b[p][0], b[p][1]);
      mma_bf16(sums.at[2 * p + parity][n], a[1], b[p][2], b[p][3]);
    }
  }

  using Totals = float[kGroups][4];

  __device__ void multiply_pass(const Pass& pass, bool is_first) {
    const int begin = first_piece(pass, tiles_, blockIdx.x);
    const int end = first_piece(pass, tiles_, blockIdx.x + 1);
    Walk walk(pass, begin);
    bool owned = walk.piece == 0;
    // A buffer must belong to the same half of the warps in every round of the ring, or one half
    // could take a round for the one before. The number of buffers is even, so alternate chunks do
    // while every piece has two.
    const bool takes_turns = pass.chunks % kPieceChunks == 0;
    Totals totals = {};
    for (int index = begin; index < end; ++index) {
      const TokenTile tile = tables_.tiles[walk.tile];
      const int groups = (tile.count + 7) / 8;
      Sums<kTokens, kParts> sums;
      const int chunks = min(kPieceChunks, pass.chunks - walk.piece * kPieceChunks);
      for (int c = 0; c < chunks; ++c, position_.next(stages_))
        if (half() == (takes_turns ? c : 0)) multiply_chunk(position_, groups, sums);
#pragma unroll
      for (int n = 0; n < kGroups; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sums.at[0][n][i] += sums.at[1][n][i];
          if constexpr (kParts == 2) sums.at[0][n][i] += sums.at[2][n][i] + sums.at[3][n][i];
        }
      if (owned)
        add(sums.at[0], totals);
      else
        store_piece(sums.at[0], tile.count, walk.piece);

      const bool ends = walk.piece == pass.pieces - 1;
      if (!owned && (ends || index == end - 1)) publish_pieces();
      if (owned && !ends && index == end - 1) add_other_pieces(pass, end, walk, totals);
      if (owned && (ends || index == end - 1)) {
        finish_tile(is_first, pass, tile, walk.row_tile, totals);
#pragma unroll
        for (int n = 0; n < kGroups; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) totals[n][i] = 0;
      }
      owned = owned || ends;
      walk.next(pass);
    }
    // What was written may be read by other blocks' copies, or below by other blocks.
    async_proxy_fence();
    named_sync(kMultipliersMeet, kMultiplierThreads);
    if (args_.second) arrive();
  }

  __device__ static void add(const Totals& from, Totals& to) {
#pragma unroll
    for (int n = 0; n < kGroups; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) to[n][i] += from[n][i];
  }

  // ---- tiles that several blocks share ----

  __device__ float4* piece_sums(int block, int piece) const {
    const std::int64_t at = std::int64_t{block} * layout_.max_pieces + piece;
    return reinterpret_cast<float4*>(args_.scratch.partial_sums) +
           (at * kMultipliers + warp_id()) * kGroups * kWarp + lane_id();
  }
  // Whether this lane holds a token of group n.
  __device__ static bool holds_token(int n, int count) { return n * 8 + lane_id() % 4 * 2 < count; }

  __device__ void store_piece(const Totals& sums, int count, int piece) const {
    float4* to = piece_sums(blockIdx.x, piece);
#pragma unroll
    for (int n = 0; n < kGroups; ++n)
      if (holds_token(n, count))
        __stcg(to + n * kWarp, make_float4(sums[n][0], sums[n][1], sums[n][2], sums[n][3]));
  }

  __device__ void publish_pieces() const {
    named_sync(kMultipliersMeet, kMultiplierThreads);  // all warps have stored theirs
    if (threadIdx.x == 0) {
      __threadfence();
      store_release(flags_ + blockIdx.x, 1u);
    }
  }

  // totals += the pieces after `walk.piece`, which the next blocks computed; `index` is the first.
  __device__ void add_other_pieces(const Pass& pass, int index, const Walk& walk,
                                   Totals& totals) const {
    const int count = tables_.tiles[walk.tile].count;
    const int tile_end = index + pass.pieces - 1 - walk.piece;
    int piece = walk.piece + 1;
    for (int block = blockIdx.x + 1; index < tile_end; ++block) {
      const int end = min(tile_end, first_piece(pass, tiles_, block + 1));
      if (end <= index) continue;  // fewer pieces than blocks
      while (load_acquire(flags_ + block) == 0) {
      }
      for (; index < end; ++index, ++piece) {
        const float4* from = piece_sums(block, piece);
#pragma unroll
        for (int n = 0; n < kGroups; ++n) {
          if (!holds_token(n, count)) continue;
          const float4 sum = __ldcg(from + n * kWarp);
          totals[n][0] += sum.x, totals[n][1] += sum.y;
          totals[n][2] += sum.z, totals[n][3] += sum.w;
        }
      }
      named_sync(kMultipliersMeet, kMultiplierThreads);  // all have seen the flag
      if (threadIdx.x == 0) flags_[block] = 0;
    }
  }

  // ---- results ----

  // Adds the sums of the two halves of the warps and hands the sums over.
  __device__ void finish_tile(bool is_first, const Pass& pass, const TokenTile& tile, int row_tile,
                              Totals& totals) {
    float4* at = halves_ + row_warp() * kGroups * kWarp + lane_id();
    if (half() == 1)
#pragma unroll
      for (int n = 0; n < kGroups; ++n)
        at[n * kWarp] = make_float4(totals[n][0], totals[n][1], totals[n][2], totals[n][3]);
    named_sync(kHalvesMeet, kMultiplierThreads);  // right halves are written
    if (half() == 0)
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
        const float4 other = at[n * kWarp];
        totals[n][0] += other.x, totals[n][1] += other.y;
        totals[n][2] += other.z, totals[n][3] += other.w;
      }
    named_sync(kHalvesMeet, kMultiplierThreads);  // and read
    if (half() == 1) return;
#pragma unroll
    for (int n = 0; n < kGroups; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = n * 8 + lane_id() % 4 * 2 + i;
        if (token >= tile.count) continue;
        const int slot = tables_.sorted[tile.first + token];
        const float* scales = pass.inputs.row_scales;
        const float unit =
            kPackedUnit * (scales != nullptr ? scales[slot / pass.inputs.slots_per_row] : 1.0f);
        if (is_first)
          store_hidden(tile.expert, row_tile, slot, unit, totals[n][i], totals[n][2 + i]);
        else
          store_output(tile.expert, row_tile, slot, unit, totals[n][i], totals[n][2 + i]);
      }
  }

  __device__ void store_hidden(int expert, int row_tile, int slot, float unit, float gate,
                               float up) {
    // All scales are in before the clamp, each global scale in its own half.
    float h = swiglu_value(gate * (args_.w.gate_scales[expert] * unit),
                           up * (args_.w.up_scales[expert] * unit), args_.routed.limit);
    if (args_.routed.weight_first) h *= args_.routed.weights[slot];
    const int col = row_tile * (kTileRows / 2) + row_warp() * 8 + lane_id() / 4;
    if (!args_.second) {
      if (col < args_.w.inner) args_.hidden[std::int64_t{slot} * args_.w.inner + col] = h;
      return;
    }
    const int padded = padded_to(args_.w.inner, kChunkCols);
    store_parts(args_.middle.values + std::int64_t{slot} * kParts * padded + part_offset(col),
                kParts, kChunkCols, h);
  }

  __device__ void store_output(int expert, int row_tile, int slot, float unit, float low,
                               float high) {
    const float scale = args_.w.down_scales[expert] * unit;
    const int row = row_tile * kTileRows + row_warp() * 16 + lane_id() / 4;
    float* at = args_.outputs + std::int64_t{slot} * args_.w.hidden + row;
    if (row < args_.w.hidden) __stcg(at, low * scale);
    if (row + 8 < args_.w.hidden) __stcg(at + 8, high * scale);
  }

  // out[t] += Σ_i weights[t, i] outputs[t * k + i], in order of i, shared out over the grid.
  __device__ void combine() {
    if (threadIdx.x == 0) wait_for_round(barrier_, rounds_before_, arrivals_);
    named_sync(kMultipliersMeet, kMultiplierThreads);
    const RoutedTokens& routed = args_.routed;
    const int hidden = args_.w.hidden;
    const int all = routed.tokens * hidden;
    for (int i = (warp_id() * gridDim.x + blockIdx.x) * kWarp + lane_id(); i < all;
         i += gridDim.x * kMultiplierThreads) {
      const int t = i / hidden;
      if (routed.batch_slots[t] < 0) continue;
      float sum = args_.out[i];
      for (int j = 0; j < routed.k; ++j) {
        const int slot = t * routed.k + j;
        const float weight = routed.weight_first ? 1.0f : routed.weights[slot];
        sum += weight * __ldcg(args_.outputs + std::int64_t{slot} * hidden + (i - t * hidden));
      }
      args_.out[i] = sum;
    }
  }

  const DecodeArgs& args_;
  const int stages_;
  const DecodeLayout layout_;
  std::uint8_t* ring_;
  float4* halves_;  // [8 warps][groups][32 lanes]
  Barrier* full_;
  Barrier* empty_;
  TileTables tables_;
  int* tile_count_;
  GridBarrier* barrier_;
  std::uint32_t* flags_;  // [blocks] pieces of the block's first tile are published
  std::uint32_t rounds_before_ = 0;
  std::uint32_t arrivals_ = 0;  // of the first thread
  int tiles_ = 0;
  RingPosition position_;  // of this warp's role in the ring
};

template <int kTokens, int kParts>
__global__ void __launch_bounds__(kThreads, 1)
    experts_decode_kernel(const __grid_constant__ DecodeArgs args, int stages) {
  extern __shared__ __align__(128) std::uint8_t shared[];
  let_next_start();
  wait_for_previous();
  Decoder<kTokens, kParts>(args, stages, shared).run();
}

using Kernel = void (*)(DecodeArgs, int);

Kernel kernel_for(const DecodeConfig& config) {
  const bool two = config.parts == 2;
  if (config.tile_tokens == 8)
    return two ? experts_decode_kernel<8, 2> : experts_decode_kernel<8, 1>;
  return two ? experts_decode_kernel<16, 2> : experts_decode_kernel<16, 1>;
}

}  // namespace

void experts_decode(const DecodeArgs& args, const DecodeConfig& config, cudaStream_t stream) {
  const Kernel kernel = kernel_for(config);
  QT_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, config.shared_bytes));
  // Cooperative: blocks wait for each other, so all must be resident. Serialised by the program, so
  // that the launch overlaps the end of the kernel before.
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeCooperative;
  attributes[0].val.cooperative = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t launch = {};
  launch.gridDim = dim3(static_cast<unsigned>(config.blocks));
  launch.blockDim = dim3(kThreads);
  launch.dynamicSmemBytes = static_cast<std::size_t>(config.shared_bytes);
  launch.stream = stream;
  launch.attrs = attributes;
  launch.numAttrs = 2;
  QT_CUDA(cudaLaunchKernelEx(&launch, kernel, args, config.stages));
}

}  // namespace quatrain::cuda

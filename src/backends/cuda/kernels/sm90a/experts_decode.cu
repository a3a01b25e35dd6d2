// SPDX-License-Identifier: Apache-2.0
// Routed NVFP4 experts for a few tokens: both projections, SwiGLU and the weighted sum in one
// launch whose only aim is that the memory never waits.
//
// One block per multiprocessor. Sixteen of its warps multiply, each what comes through a ring of
// its own that no other warp waits for; one warp fills the rings, a lane each, and runs ahead over
// groups of rows, experts and into the second projection, whose weights do not depend on the first.
// A unit of 32 rows by 256 columns gives sums that do not depend on who computes them; two warps
// add the units of a group in order of columns and hand on the results. So a token's result does
// not depend on the rest of the batch either.
//
// One more warp makes the list of tiles and watches over inputs: first those that the grid, or for
// few tokens the block for itself, converts to BF16; then the hidden values of a tile, which are
// complete when all its groups, counted in memory, are.
#include <algorithm>

#include "backends/cuda/cuda_check.h"
#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/decode_results.cuh"
#include "backends/cuda/device/decode_unit.cuh"
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/expert_tiles.cuh"
#include "backends/cuda/device/expert_walk.cuh"
#include "backends/cuda/device/grid_sync.cuh"
#include "backends/cuda/device/wgmma.cuh"
#include "backends/cuda/launch/experts_decode_layout.h"

namespace quatrain::cuda {
namespace {

constexpr int kThreads = kDecodeWarps * kWarp;
constexpr int kWatcher = kStreamWarps + kAdders;  // warps
constexpr int kFetcher = kWatcher + 1;
static_assert(kFetcher + 1 == kDecodeWarps);

// Named barriers; 0 is __syncthreads().
constexpr int kOutputsAreWritten = 1;  // of adders and the watcher
constexpr int kGridIsDone = 2;         // which stream warps wait for and the watcher says
constexpr int kOutputThreads = (kAdders + 1) * kWarp;
constexpr int kGridThreads = (1 + kStreamWarps) * kWarp;

// A warp arrives at a barrier by one lane, after __syncwarp(). racecheck does not see that this
// orders what the other lanes did, so in a build for it every lane arrives, and waits, for itself.
#ifdef QUATRAIN_RACECHECK
constexpr int kArrivals = kWarp;
#else
constexpr int kArrivals = 1;
#endif

// What the warps of a block share.
struct BlockState {
  Pass passes[2];
  int tiles;
  std::uint32_t inputs_ready;  // 1: of the first pass; 2 + t: hidden values of tiles up to t
  std::uint32_t groups_ended[kAdders];  // of the first pass when there are two, by adder
  int keys[2][kStreamWarps];            // of the units in the rings
};
static_assert(sizeof(BlockState) <= kDecodeStateBytes);

template <int kTokens, int kParts, bool kFp8>
class Decoder {
 public:
  static constexpr int kGroups = kTokens / 8;  // of tokens
  static constexpr int kSumRounds = decode_sum_rounds(kTokens);

  __device__ Decoder(const DecodeArgs& args, std::uint8_t* shared) : args_(args) {
    const ExpertsProblem problem = {args.routed.tokens, args.routed.k, args.w.experts,
                                    args.w.hidden,      args.w.inner,  kParts};
    const DecodeLayout at = decode_layout(problem, kTokens);
    if (args.first && args.source_rows == problem.tokens &&
        decode_own_input_bytes(problem, kTokens) > 0)
      own_inputs_ = reinterpret_cast<std::uint16_t*>(shared + at.own_inputs);
    rings_ = shared;
    sums_ = reinterpret_cast<float4*>(shared + at.sums);
    handed_over_ = reinterpret_cast<Barrier*>(shared + at.barriers);
    added_ = handed_over_ + kSumRounds * kStreamWarps;
    fetched_ = added_ + kSumRounds;
    freed_ = fetched_ + 2 * kStreamWarps;
    tables_ = {reinterpret_cast<TokenTile*>(shared + at.tiles),
               reinterpret_cast<std::uint16_t*>(shared + at.sorted),
               reinterpret_cast<std::int16_t*>(shared + at.ids),
               reinterpret_cast<std::uint16_t*>(shared + at.ranks),
               reinterpret_cast<int*>(shared + at.offsets)};
    state_ = reinterpret_cast<BlockState*>(shared + at.state);
    barrier_ = reinterpret_cast<GridBarrier*>(args.sync);
    groups_done_ = args.sync + kGridBarrierWords;
    pass_count_ = args.first && args.second ? 2 : 1;
  }

  __device__ void run() {
    if (args_.routed.tokens * args_.routed.k > kWarp) {
      load_ids(args_.routed, tables_, threadIdx.x, kThreads);
      __syncthreads();
    }
    if (warp_ == kWatcher) {
      rounds_before_ = rounds_so_far(barrier_);
      prepare();
    } else if (warp_ < kWatcher) {
      convert_source();
    }
    __syncthreads();  // the list is made, the barriers are ready, this block's inputs are written
    if (warp_ < kStreamWarps) {
      raise_registers<104>();  // what the others give up
      stream();
      if (!args_.second) return;
      named_sync(kGridIsDone, kGridThreads);
      combine_outputs(args_, (warp_ * gridDim.x + blockIdx.x) * kWarp + lane_,
                      gridDim.x * (kStreamWarps * kWarp));
      return;
    }
    lower_registers<64>();
    if (warp_ == kFetcher) return fetch_units();
    if (warp_ < kWatcher)
      add_up(warp_ - kStreamWarps);
    else if (lane_ == 0)
      watch_inputs();
    __syncwarp();
    if (!args_.second) return;
    named_sync(kOutputsAreWritten, kOutputThreads);
    if (warp_ != kWatcher) return;
    finish_grid();
    // The watcher has seen the grid's outputs, which is all that the stream warps wait for; it has
    // nothing to wait for itself.
    named_arrive(kGridIsDone, kGridThreads);
  }

 private:
  // ---- before the stream ----

  __device__ void prepare() {
    if (args_.routed.tokens * args_.routed.k <= kWarp)
      load_ids(args_.routed, tables_, lane_, kWarp);
    __syncwarp();
    const int tiles = list_token_tiles<kTokens>(args_.routed, args_.w.experts, tables_);
    if (lane_ != 0) return;
    state_->tiles = tiles;
    state_->inputs_ready = own_inputs_ != nullptr ? 1 : 0;
    for (std::uint32_t& groups : state_->groups_ended) groups = 0;
    Pass* pass = state_->passes;
    const int hidden = args_.w.hidden, inner = args_.w.inner;
    if (args_.first) *pass++ = make_pass(args_.w.first, first_projection(hidden, inner), tiles);
    if (args_.second) *pass = make_pass(args_.w.second, second_projection(hidden, inner), tiles);
    for (int i = 0; i < kSumRounds * kStreamWarps; ++i) barrier_init(handed_over_ + i, kArrivals);
    for (int i = 0; i < kSumRounds; ++i) barrier_init(added_ + i, kAdders * kArrivals);
    for (int i = 0; i < 2 * kStreamWarps; ++i) {
      barrier_init(fetched_ + i, 1);
      barrier_init(freed_ + i, kArrivals);
    }
    barrier_init_fence();
  }

  // This block's share of the inputs as BF16 parts, or all of them for itself.
  __device__ void convert_source() const {
    const SourceRows rows = {args_.source, args_.source_rows,
                             args_.first ? args_.w.hidden : args_.w.inner};
    if (own_inputs_ != nullptr) {
      convert_inputs<kParts>(rows, own_inputs_, threadIdx.x, kWatcher * kWarp);
    } else {
      const InputRows& inputs = args_.first ? args_.inputs : args_.middle;
      convert_inputs<kParts>(rows, inputs.values, (warp_ * gridDim.x + blockIdx.x) * kWarp + lane_,
                             gridDim.x * (kWatcher * kWarp));
    }
  }

  // One thread: publishes inputs as they come to be, and tells other blocks of hidden values.
  __device__ void watch_inputs() {
    if (own_inputs_ == nullptr) {
      meet_grid();
      store_release_shared(&state_->inputs_ready, 1);
    }
    if (pass_count_ == 1) return;
    const Pass& first = state_->passes[0];
    const Pass& second = state_->passes[1];
    Walk told_at = walk();
    int to_tell = max(first.count, 0), told = 0;
    int tile = second.first_tile;
    const int last_tile = second.count > 0 ? second.last_tile : tile - 1;
    const auto groups = static_cast<std::uint32_t>(first.groups);
    while (told < to_tell || tile <= last_tile) {
      // Counts this block's groups of hidden values whose slabs are both written.
      const int ended = min(load_acquire_shared(&state_->groups_ended[0]),
                            load_acquire_shared(&state_->groups_ended[1]));
      if (told < ended) __threadfence();
      for (; told < ended; ++told) {
        atomicAdd(groups_done_ + told_at.tile(), 1u);
        told_at.advance(told_at.chunks());
      }
      // Acquiring empties the first-level cache of inputs, so only when there is something.
      if (tile <= last_tile && load_relaxed(groups_done_ + tile) >= groups) {
        load_acquire(groups_done_ + tile);
        store_release_shared(&state_->inputs_ready, static_cast<std::uint32_t>(2 + tile));
        ++tile;
      } else {
        __nanosleep(200);
      }
    }
  }

  // One thread of the watching warp.
  __device__ void meet_grid() {
    arrive_at(barrier_);
    wait_for_round(barrier_, rounds_before_, ++rounds_);
  }

  // The warp has done what it did.
  __device__ void arrive(Barrier* barrier) const {
    __syncwarp();
    if (kArrivals > 1 || lane_ == 0) barrier_arrive(barrier);
  }

  // ---- the stream ----

  __device__ Walk walk() const { return Walk(state_->passes, pass_count_); }

  // What a warp has to know of a unit: which inputs, and from which chunk of their columns on.
  static constexpr int kNoUnit = -1;
  __device__ static int unit_key(const Walk& at) {
    return (at.tile() * 2 + at.pass_number()) << 8 | at.chunk();
  }

  // A warp of which each lane fills the ring of one stream warp.
  __device__ void fetch_units() const {
    const std::uint64_t policy = evict_first_policy();
    const int warp = min(lane_, kStreamWarps - 1);
    bool is_left = lane_ < kStreamWarps;
    Walk at = walk();
    at.advance(warp);
    bool meets_tile = true;
    const std::uint8_t* expert = nullptr;
    for (std::uint32_t round = 0; __any_sync(kAllLanes, is_left);) {
      const std::uint32_t buffer = round % 2;
      const std::uint32_t place = buffer * kStreamWarps + warp;
      const bool is_free = is_left && barrier_test(freed_ + place, (round / 2 & 1u) ^ 1u);
      if (is_free) {
        ++round;
        is_left = !at.ended();
        state_->keys[buffer][warp] = is_left ? unit_key(at) : kNoUnit;
        if (is_left) {
          if (meets_tile)
            expert = at.pass().weights + tables_.tiles[at.tile()].expert * at.pass().expert_bytes;
          fetch(expert + at.chunk_offset(), at.half(), rings_ + (warp * 2 + buffer) * kUnitBytes,
                fetched_ + place, policy);
          meets_tile = at.advance(kStreamWarps);
        } else {
          barrier_arrive(fetched_ + place);
        }
      }
      if (!__any_sync(kAllLanes, is_free)) __nanosleep(40);
    }
  }

  // Copies a unit: two slabs' 2048 bytes of codes, then their 256 bytes of scales.
  __device__ static void fetch(const std::uint8_t* chunk, int half, std::uint8_t* to,
                               Barrier* barrier, std::uint64_t policy) {
    constexpr int kScaleBytes = kUnitBytes - kUnitCodeBytes;
    barrier_expect(barrier, kUnitBytes);
    bulk_copy(to, chunk + half * kUnitCodeBytes, kUnitCodeBytes, barrier, policy);
    bulk_copy(to + kUnitCodeBytes, chunk + kChunkCodeBytes + half * kScaleBytes, kScaleBytes,
              barrier, policy);
  }

  using Sums = float[2][kGroups][4];  // by slab

  __device__ void stream() {
    int met = -1;  // tile and pass whose inputs are at hand
    const std::uint8_t* rows[kGroups] = {};
    int groups = 0;
    for (std::uint32_t round = 0;; ++round) {
      const std::uint32_t buffer = round % 2;
      const std::uint32_t place = buffer * kStreamWarps + warp_;
      barrier_wait_idle(fetched_ + place, round / 2 & 1u);
      const int key = state_->keys[buffer][warp_];
      if (key == kNoUnit) return;
      if (key >> 8 != met) {
        met = key >> 8;
        groups = find_inputs(met / 2, met % 2, rows);
      }
      const int inputs_at = (key & 0xFF) * (kParts * kChunkCols * 2);
      const std::uint32_t unit = shared_address(rings_) + (warp_ * 2 + buffer) * kUnitBytes;
      Sums sums = {};
#pragma unroll 1
      for (int half = 0; half < 2; ++half) {
        if (kGroups == 1 || groups == 1)
          multiply_half<1, kParts, kFp8>(unit, half, rows, inputs_at + half * 256, sums);
        else
          multiply_half<kGroups, kParts, kFp8>(unit, half, rows, inputs_at + half * 256, sums);
      }
      arrive(freed_ + place);  // the buffer has been read
      hand_over(round, groups, sums);
    }
  }

  __device__ int units() const {
    int all = 0;
    for (int i = 0; i < pass_count_; ++i)
      all += max(state_->passes[i].count, 0) * state_->passes[i].chunks;
    return all;
  }

  // Waits for the inputs of a tile and finds this lane's rows: lane 4n + t has columns of token n.
  // Lanes past the last token read the first one's, for sums that nobody takes. Returns how many
  // groups of 8 tokens there are.
  __device__ int find_inputs(int tile_number, int pass_number,
                             const std::uint8_t* (&rows)[kGroups]) const {
    const bool is_hidden = pass_number == 1;
    const std::uint32_t needed = is_hidden ? 2 + tile_number : 1;
    while (load_acquire_shared(&state_->inputs_ready) < needed) __nanosleep(20);
    const InputRows& inputs = args_.first && !is_hidden ? args_.inputs : args_.middle;
    const TokenTile tile = tables_.tiles[tile_number];
    const auto* base = reinterpret_cast<const std::uint8_t*>(
        own_inputs_ != nullptr && !is_hidden ? own_inputs_ : inputs.values);
    const int row_bytes = state_->passes[pass_number].chunks * (kParts * kChunkCols * 2);
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
      const int token = n * 8 + lane_ / 4;
      const int slot = tables_.sorted[tile.first + (token < tile.count ? token : 0)];
      rows[n] = base + std::int64_t{slot / inputs.slots_per_row} * row_bytes + lane_ % 4 * 16;
    }
    return (tile.count + 7) / 8;
  }

  // Those of 8 tokens follow each other.
  __device__ float4* sums_at(std::uint32_t round, int warp, int slab) const {
    const int unit = round % kSumRounds * kStreamWarps + warp;
    return sums_ + (unit * kAdders + slab) * kGroups * kWarp + lane_;
  }

  __device__ void hand_over(std::uint32_t round, int groups, const Sums& sums) const {
    barrier_wait_idle(added_ + round % kSumRounds, (round / kSumRounds & 1u) ^ 1u);
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
      if (n > 0 && n >= groups) break;
#pragma unroll
      for (int slab = 0; slab < 2; ++slab)
        sums_at(round, warp_, slab)[n * kWarp] =
            make_float4(sums[slab][n][0], sums[slab][n][1], sums[slab][n][2], sums[slab][n][3]);
    }
    arrive(handed_over_ + round % kSumRounds * kStreamWarps + warp_);
  }

  // ---- results ----

  using Totals = float[kGroups][4];

  // Adds the units of every group, in order of columns, for one of its slabs.
  __device__ void add_up(int slab) const {
    const DecodeResults<kParts> results(args_, tables_.sorted);
    Walk at = walk();
    Totals totals = {};
    GlobalScales scales = {};
    std::uint32_t ended = 0;
    int left = units();
    for (std::uint32_t round = 0; left > 0; ++round, left -= kStreamWarps) {
      const int handed = min(left, kStreamWarps);
      for (int i = 0; i < handed;) {
        const TokenTile tile = tables_.tiles[at.tile()];
        if (at.chunk() == 0) scales = results.scales_of(is_first(at), tile.expert);
        // No further than the group: later units may wait for its results.
        const int n = min(handed - i, at.chunks() - at.chunk());
        Barrier* units = handed_over_ + round % kSumRounds * kStreamWarps + i;
        const std::uint32_t parity = round / kSumRounds & 1u;
        if constexpr (kArrivals == 1)
          barrier_wait_idle(units + min(lane_, n - 1), parity);  // one each
        else
          for (int j = 0; j < n; ++j) barrier_wait_idle(units + j, parity);
        __syncwarp();
        add_units(sums_at(round, i, slab), n, (tile.count + 7) / 8, totals);
        i += n;
        if (at.chunk() + n == at.chunks()) {
          results.finish(is_first(at), at.group() * 2 + slab, tile, scales, totals);
          if (is_first(at) && args_.second) {
            __syncwarp();
            ++ended;
            if (lane_ == 0) store_release_shared(&state_->groups_ended[slab], ended);
          }
#pragma unroll
          for (int g = 0; g < kGroups; ++g)
#pragma unroll
            for (int v = 0; v < 4; ++v) totals[g][v] = 0;
        }
        at.advance(n);
      }
      arrive(added_ + round % kSumRounds);
    }
  }
  __device__ bool is_first(const Walk& at) const { return args_.first && at.pass_number() == 0; }

  __device__ static void add_units(const float4* from, int units, int groups, Totals& totals) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      if (g > 0 && g >= groups) break;
#pragma unroll 4
      for (int i = 0; i < units; ++i) {
        const float4 sum = from[(i * kAdders * kGroups + g) * kWarp];
        totals[g][0] += sum.x, totals[g][1] += sum.y;
        totals[g][2] += sum.z, totals[g][3] += sum.w;
      }
    }
  }

  // One warp: returns when all outputs of the grid are written.
  __device__ void finish_grid() {
    if (lane_ == 0) meet_grid();
    __syncwarp();
    if (blockIdx.x == 0 && pass_count_ == 2)  // as the next launch needs them
      for (int tile = lane_; tile < state_->tiles; tile += kWarp) groups_done_[tile] = 0;
  }

  const DecodeArgs& args_;
  const int warp_ = warp_id();
  const int lane_ = lane_id();
  std::uint16_t* own_inputs_ = nullptr;  // of this block alone
  std::uint8_t* rings_;                  // [stream warps, 2] units
  float4* sums_;
  Barrier* handed_over_;  // [kSumRounds, stream warps] a unit's sums are
  Barrier* added_;        // [kSumRounds] all sums of a round are
  Barrier* fetched_;      // [2, stream warps] a unit is in its ring
  Barrier* freed_;        // and has been multiplied
  TileTables tables_;
  BlockState* state_;
  GridBarrier* barrier_;
  std::uint32_t* groups_done_;  // [tiles] times adders; zero between launches
  int pass_count_;
  std::uint32_t rounds_before_ = 0, rounds_ = 0;  // of the watching warp
};

template <int kTokens, int kParts, bool kFp8>
__global__ void __launch_bounds__(kThreads, 1)
    experts_decode_kernel(const __grid_constant__ DecodeArgs args) {
  extern __shared__ __align__(128) std::uint8_t shared[];
  let_next_start();
  wait_for_previous();
  Decoder<kTokens, kParts, kFp8>(args, shared).run();
}

using Kernel = void (*)(DecodeArgs);

template <int kTokens>
Kernel kernel_for(int parts, bool fp8) {
  if (fp8) return experts_decode_kernel<kTokens, 1, true>;
  return parts == 2 ? experts_decode_kernel<kTokens, 2, false>
                    : experts_decode_kernel<kTokens, 1, false>;
}

}  // namespace

void experts_decode(const DecodeArgs& args, const DecodeConfig& config, cudaStream_t stream) {
  const Kernel kernel = config.tile_tokens == 8 ? kernel_for<8>(config.parts, args.w.fp8)
                                                : kernel_for<16>(config.parts, args.w.fp8);
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
  QT_CUDA(cudaLaunchKernelEx(&launch, kernel, args));
}

}  // namespace quatrain::cuda

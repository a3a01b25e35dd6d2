// SPDX-License-Identifier: Apache-2.0
// Routed NVFP4 experts for a few tokens: both projections, SwiGLU and the weighted sum in one
// launch whose only aim is that the memory never waits.
//
// One block per multiprocessor. Sixteen of its warps multiply, each what comes through a ring of
// its own that no other warp waits for; one warp fills the rings, a lane each, and runs ahead over
// groups of rows, experts and into the second projection, whose weights do not depend on the first.
// A unit of 32 rows by 256 columns gives sums that do not depend on who computes them; two warps,
// a group of rows each in turns, add the units in order of columns and hand on the results. So a
// token's result does not depend on the rest of the batch either.
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
#include "backends/cuda/device/warp_arrival.cuh"
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

// What the warps of a block share.
struct BlockState {
  Pass passes[2];
  int tiles;
  std::uint32_t inputs_ready;  // 1: of the first pass; 2 + t: hidden values of tiles up to t
  std::uint32_t groups_ended[kAdders];  // of the first pass when there are two, by adder
  std::uint32_t keys[2][kStreamWarps];  // of the units in the rings, as tagged_key()
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
    init_barriers();
    wait_for_previous();
    if (args_.routed.tokens * args_.routed.k > kWarp) {
      load_ids(args_.routed, tables_, threadIdx.x, kThreads);
      __syncthreads();
    }
    if (warp_ == kWatcher) {
      prepare();
    } else if (warp_ < kWatcher) {
      convert_source();
    }
    __syncthreads();  // the list is made, the barriers are ready, this block's inputs are written
    if (warp_ < kStreamWarps) {
      raise_registers<104>();  // what the others give up
      stream();
      if (!args_.second) return;
      combine_outputs(args_, (warp_ * gridDim.x + blockIdx.x) * kWarp + lane_,
                      gridDim.x * (kStreamWarps * kWarp),
                      [] { named_sync(kGridIsDone, kGridThreads); });
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
    if (lane_ < pass_count_) {
      const int hidden = args_.w.hidden, inner = args_.w.inner;
      const bool is_first = args_.first && lane_ == 0;
      state_->passes[lane_] =
          make_pass(is_first ? args_.w.first : args_.w.second,
                    is_first ? first_projection(hidden, inner) : second_projection(hidden, inner),
                    tiles, args_.blocks, args_.groups[is_first ? 0 : 1]);
    }
    if (lane_ == 0) state_->tiles = tiles;
  }

  // And what else does not depend on other kernels.
  __device__ void init_barriers() const {
    constexpr int kBarriers = kSumRounds * (kStreamWarps + 1) + 4 * kStreamWarps;
    static_assert(kBarriers <= kThreads && 2 * kStreamWarps <= kThreads);
    // The lanes of a warp take turns at barriers, so these are spread over the warps.
    const int i = lane_ * kDecodeWarps + warp_;
    if (i < kBarriers) {
      Barrier* barrier = handed_over_ + i;
      const bool counts_bytes = fetched_ <= barrier && barrier < freed_;
      const bool waits_for_adders = added_ <= barrier && barrier < fetched_;
      barrier_init(barrier, counts_bytes       ? 1
                            : waits_for_adders ? kAdders * kWarpArrivals
                                               : kWarpArrivals);
      barrier_init_fence();
    }
    if (i < 2 * kStreamWarps) state_->keys[i / kStreamWarps][i % kStreamWarps] = kUnusedKey;
    if (i < kAdders) state_->groups_ended[i] = 0;
    if (i == 0) state_->inputs_ready = own_inputs_ != nullptr ? 1 : 0;
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
    rounds_before_ = rounds_so_far(barrier_);
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
      // Counts this block's groups of hidden values up to the first that is not written.
      static_assert(kAdders == 2);
      const int ended = min(2 * load_acquire_shared(&state_->groups_ended[0]),
                            2 * load_acquire_shared(&state_->groups_ended[1]) + 1);
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
        __nanosleep(20);
      }
    }
  }

  // One thread of the watching warp.
  __device__ void meet_grid() {
    arrive_at(barrier_);
    wait_for_round(barrier_, rounds_before_, ++rounds_);
  }

  // ---- the stream ----

  __device__ Walk walk() const { return Walk(state_->passes, pass_count_); }

  // What a warp has to know of a unit: which inputs, and from which chunk of their columns on.
  static constexpr int kNoUnit = -1;
  static constexpr std::uint32_t kUnusedKey = 1;
  __device__ static int unit_key(const Walk& at) {
    return (at.tile() * 2 + at.pass_number()) << 8 | at.chunk();
  }
  // Keys come before the weights do, so that inputs are on their way meanwhile. The last bit
  // changes from one use of a buffer to the next.
  __device__ static std::uint32_t tagged_key(int key, std::uint32_t round) {
    return static_cast<std::uint32_t>(key + 1) * 2 + (round / 2 & 1u);
  }
  __device__ int await_key(std::uint32_t round) const {
    std::uint32_t* from = &state_->keys[round % 2][warp_];
    std::uint32_t key;
    while (((key = load_acquire_shared(from)) & 1u) != (round / 2 & 1u)) __nanosleep(20);
    return static_cast<int>(key / 2) - 1;
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
        is_left = !at.ended();
        store_release_shared(&state_->keys[buffer][warp],
                             tagged_key(is_left ? unit_key(at) : kNoUnit, round));
        ++round;
        if (is_left) {
          if (meets_tile)
            expert = at.pass().weights + tables_.tiles[at.tile()].expert * at.pass().expert_bytes;
          bulk_fetch(rings_ + (warp * 2 + buffer) * kChunkBytes, expert + at.chunk_offset(),
                     kChunkBytes, fetched_ + place, policy);
          meets_tile = at.advance(kStreamWarps);
        }
      }
      if (!__any_sync(kAllLanes, is_free)) __nanosleep(40);
    }
  }

  using Rows = const std::uint8_t* [kGroups];

  __device__ void stream() {
    Rows rows = {};
    std::uint32_t round = 0;
    for (int key = await_key(round); key != kNoUnit;) {
      const int groups = find_inputs(key >> 9, key >> 8 & 1, rows);
      if (kGroups == 1 || groups == 1)
        key = stream_tile<1>(key, rows, round);
      else
        key = stream_tile<kGroups>(key, rows, round);
    }
  }

  // Multiplies the units of one tile and pass from the one of `key` on, for kUsed groups of tokens;
  // returns the key that follows.
  template <int kUsed>
  __device__ int stream_tile(int key, const Rows& rows, std::uint32_t& round) const {
    // Inputs of a single group and part stay in registers while the columns are the same; others
    // are loaded a slab ahead.
    constexpr bool kKeeps = kUsed * kParts == 1;
    constexpr int kHeld = kKeeps ? 4 : 2;
    SlabInputs<kUsed, kParts> inputs[kHeld];
    const int tile = key >> 8;
    int held = kNoUnit;
    do {
      const int inputs_at = (key & 0xFF) * (kParts * kChunkCols * 2);
      if (!kKeeps || key != held) {
        held = key;
#pragma unroll
        for (int i = 0; i < (kKeeps ? 4 : 1); ++i) inputs[i].load(rows, inputs_at, i);
      }
      const std::uint32_t place = round % 2 * kStreamWarps + warp_;
      barrier_wait_idle(fetched_ + place, round / 2 & 1u);
      const std::uint32_t unit = shared_address(rings_) + (warp_ * 2 + round % 2) * kChunkBytes;
      float sums[2][kUsed][4] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (!kKeeps && i < 3) inputs[(i + 1) % kHeld].load(rows, inputs_at, i + 1);
        multiply_slab<kFp8>(unit, i, inputs[i % kHeld], sums);
      }
      warp_arrive(freed_ + place);  // the buffer has been read
      hand_over(round, sums);
      key = await_key(++round);
    } while (key >> 8 == tile);
    return key;
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
  __device__ int find_inputs(int tile_number, int pass_number, Rows& rows) const {
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
      rows[n] =
          base + std::int64_t{inputs.slots_per_row.quotient(slot)} * row_bytes + lane_ % 4 * 16;
    }
    return (tile.count + 7) / 8;
  }

  // Those of 8 tokens follow each other, and those of a slab all tokens' of the one before.
  __device__ float4* sums_at(std::uint32_t round, int warp) const {
    const int unit = round % kSumRounds * kStreamWarps + warp;
    return sums_ + unit * kGroupSlabs * kGroups * kWarp + lane_;
  }

  template <int kUsed>
  __device__ void hand_over(std::uint32_t round, const float (&sums)[2][kUsed][4]) const {
    barrier_wait_idle(added_ + round % kSumRounds, (round / kSumRounds & 1u) ^ 1u);
#pragma unroll
    for (int slab = 0; slab < kGroupSlabs; ++slab)
#pragma unroll
      for (int n = 0; n < kUsed; ++n)
        sums_at(round, warp_)[(slab * kGroups + n) * kWarp] =
            make_float4(sums[slab][n][0], sums[slab][n][1], sums[slab][n][2], sums[slab][n][3]);
    warp_arrive(handed_over_ + round % kSumRounds * kStreamWarps + warp_);
  }

  // ---- results ----

  using Totals = float[kGroupSlabs][kGroups][4];

  // Adds the units of every kAdders-th group, in order of columns, and finishes them.
  __device__ void add_up(int adder) const {
    const DecodeResults<kParts> results(args_, tables_.sorted);
    Walk at = walk();
    Totals totals = {};
    GlobalScales scales = {};
    std::uint32_t ended = 0;
    int group = 0;
    int left = units();
    for (std::uint32_t round = 0; left > 0; ++round, left -= kStreamWarps) {
      const std::uint32_t parity = round / kSumRounds & 1u;
      const int handed = min(left, kStreamWarps);
      for (int i = 0; i < handed;) {
        // No further than the group: later units may wait for its results.
        const int n = min(handed - i, at.chunks() - at.chunk());
        const bool ends = at.chunk() + n == at.chunks();
        if (group % kAdders == adder) {
          const TokenTile tile = tables_.tiles[at.tile()];
          if (at.chunk() == 0) scales = results.scales_of(is_first(at), tile.expert);
          Barrier* units = handed_over_ + round % kSumRounds * kStreamWarps + i;
          if constexpr (kWarpArrivals == 1)
            barrier_wait_idle(units + min(lane_, n - 1), parity);  // one each
          else
            for (int j = 0; j < n; ++j) barrier_wait_idle(units + j, parity);
          __syncwarp();
          add_units(sums_at(round, i), n, (tile.count + 7) / 8, totals);
          if (ends) {
            finish_group(results, at, tile, scales, totals);
            if (is_first(at) && args_.second) {
              __syncwarp();
              ++ended;
              if (lane_ == 0) store_release_shared(&state_->groups_ended[adder], ended);
            }
          }
        }
        if (ends) ++group;
        i += n;
        at.advance(n);
      }
      // An adder that had no group since must not arrive for two rounds at once.
      barrier_wait_idle(added_ + round % kSumRounds, parity ^ 1u);
      warp_arrive(added_ + round % kSumRounds);
    }
  }
  __device__ bool is_first(const Walk& at) const { return args_.first && at.pass_number() == 0; }

  // Hands on a group's sums and clears them.
  __device__ void finish_group(const DecodeResults<kParts>& results, const Walk& at,
                               const TokenTile& tile, const GlobalScales& scales,
                               Totals& totals) const {
#pragma unroll
    for (int slab = 0; slab < kGroupSlabs; ++slab) {
      results.finish(is_first(at), at.group() * kGroupSlabs + slab, tile, scales, totals[slab]);
#pragma unroll
      for (int i = 0; i < kGroups * 4; ++i) totals[slab][i / 4][i % 4] = 0;
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

void experts_decode(DecodeArgs args, const DecodeConfig& config, cudaStream_t stream) {
  args.blocks = Divisor(config.blocks);
  args.columns = Divisor(args.w.hidden);
  args.groups[0] = Divisor(groups_of(first_projection(args.w.hidden, args.w.inner)));
  args.groups[1] = Divisor(groups_of(second_projection(args.w.hidden, args.w.inner)));
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

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
#include "backends/cuda/cuda_check.h"
#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/decode_results.cuh"
#include "backends/cuda/device/decode_shared.cuh"
#include "backends/cuda/device/decode_unit.cuh"
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/expert_tiles.cuh"
#include "backends/cuda/device/expert_walk.cuh"
#include "backends/cuda/device/grid_sync.cuh"
#include "backends/cuda/device/warp_arrival.cuh"
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

template <int kTokens, int kParts, bool kFp8>
class Decoder {
 public:
  static constexpr int kGroups = kTokens / 8;  // of tokens
  static constexpr int kSumRounds = DecodeShared<kTokens>::kSumRounds;

  __device__ Decoder(const DecodeArgs& args, std::uint8_t* shared)
      : args_(args), shared_(args.at, shared) {}

  __device__ void run() {
    const int warp = warp_id();
    init_barriers();
    wait_for_previous();
    if (args_.routed.tokens * args_.routed.k > kWarp) {
      load_ids(args_.routed, shared_.tables(), threadIdx.x, kThreads);
      __syncthreads();
    }
    if (warp == kWatcher) {
      prepare();
    } else if (warp < kWatcher) {
      convert_source();
    }
    __syncthreads();  // the list is made, the barriers are ready, this block's inputs are written
    if (warp < kStreamWarps) {
      stream();
      if (!args_.second) return;
      combine_outputs(args_, (warp_id() * gridDim.x + blockIdx.x) * kWarp + lane_id(),
                      gridDim.x * (kStreamWarps * kWarp),
                      [] { named_sync(kGridIsDone, kGridThreads); });
      return;
    }
    if (warp == kFetcher) return fetch_units();
    if (warp < kWatcher)
      add_up(warp - kStreamWarps);
    else if (lane_id() == 0)
      watch_inputs();
    __syncwarp();
    if (!args_.second) return;
    named_sync(kOutputsAreWritten, kOutputThreads);
    if (warp != kWatcher) return;
    finish_grid();
    // The watcher has seen the grid's outputs, which is all that the stream warps wait for; it has
    // nothing to wait for itself.
    named_arrive(kGridIsDone, kGridThreads);
  }

 private:
  // ---- before the stream ----

  __device__ void prepare() {
    const int lane = lane_id();
    if (args_.routed.tokens * args_.routed.k <= kWarp)
      load_ids(args_.routed, shared_.tables(), lane, kWarp);
    __syncwarp();
    const int tiles = list_token_tiles<kTokens>(args_.routed, args_.w.experts, shared_.tables());
    if (lane < pass_count()) {
      const int hidden = args_.w.hidden, inner = args_.w.inner;
      const bool is_first = args_.first && lane == 0;
      shared_.state().passes[lane] =
          make_pass(is_first ? args_.w.first : args_.w.second,
                    is_first ? first_projection(hidden, inner) : second_projection(hidden, inner),
                    tiles, args_.blocks, args_.groups[is_first ? 0 : 1]);
    }
    if (lane == 0) shared_.state().tiles = tiles;
  }

  // And what else does not depend on other kernels.
  __device__ void init_barriers() const {
    constexpr int kBarriers = kSumRounds * (kStreamWarps + 1) + 4 * kStreamWarps;
    static_assert(kBarriers <= kThreads && 2 * kStreamWarps <= kThreads);
    // The lanes of a warp take turns at barriers, so these are spread over the warps.
    const int i = lane_id() * kDecodeWarps + warp_id();
    if (i < kBarriers) {
      Barrier* barrier = shared_.handed_over() + i;
      const bool counts_bytes = shared_.fetched() <= barrier && barrier < shared_.freed();
      const bool waits_for_adders = shared_.added() <= barrier && barrier < shared_.fetched();
      barrier_init(barrier, counts_bytes       ? 1
                            : waits_for_adders ? kAdders * kWarpArrivals
                                               : kWarpArrivals);
      barrier_init_fence();
    }
    if (i < 2 * kStreamWarps) shared_.state().keys[i / kStreamWarps][i % kStreamWarps] = kUnusedKey;
    if (i < kAdders) shared_.state().groups_ended[i] = 0;
    if (i == 0) shared_.state().inputs_ready = args_.own_inputs ? 1 : 0;
  }

  // This block's share of the inputs as BF16 parts, or all of them for itself.
  __device__ void convert_source() const {
    const SourceRows rows = {args_.source, args_.source_rows,
                             args_.first ? args_.w.hidden : args_.w.inner};
    if (args_.own_inputs) {
      convert_inputs<kParts>(rows, shared_.own_inputs(), threadIdx.x, kWatcher * kWarp);
    } else {
      const InputRows& inputs = args_.first ? args_.inputs : args_.middle;
      convert_inputs<kParts>(rows, inputs.values,
                             (warp_id() * gridDim.x + blockIdx.x) * kWarp + lane_id(),
                             gridDim.x * (kWatcher * kWarp));
    }
  }

  // One thread: publishes inputs as they come to be, and tells other blocks of hidden values.
  __device__ void watch_inputs() {
    rounds_before_ = rounds_so_far(barrier());
    if (!args_.own_inputs) {
      meet_grid();
      store_release_shared(&shared_.state().inputs_ready, 1);
    }
    if (pass_count() == 1) return;
    const Pass& first = shared_.state().passes[0];
    const Pass& second = shared_.state().passes[1];
    Walk told_at = walk();
    int to_tell = max(first.count, 0), told = 0;
    int tile = second.first_tile;
    const int last_tile = second.count > 0 ? second.last_tile : tile - 1;
    const auto groups = static_cast<std::uint32_t>(first.groups);
    while (told < to_tell || tile <= last_tile) {
      // Counts this block's groups of hidden values up to the first that is not written.
      static_assert(kAdders == 2);
      const int ended = min(2 * load_acquire_shared(&shared_.state().groups_ended[0]),
                            2 * load_acquire_shared(&shared_.state().groups_ended[1]) + 1);
      if (told < ended) __threadfence();
      for (; told < ended; ++told) {
        atomicAdd(groups_done() + told_at.tile(), 1u);
        told_at.advance(told_at.chunks());
      }
      // Acquiring empties the first-level cache of inputs, so only when there is something.
      if (tile <= last_tile && load_relaxed(groups_done() + tile) >= groups) {
        load_acquire(groups_done() + tile);
        store_release_shared(&shared_.state().inputs_ready, static_cast<std::uint32_t>(2 + tile));
        ++tile;
      } else {
        __nanosleep(20);
      }
    }
  }

  // One thread of the watching warp.
  __device__ void meet_grid() {
    arrive_at(barrier());
    wait_for_round(barrier(), rounds_before_, ++rounds_);
  }

  // ---- the stream ----

  __device__ Walk walk() const { return Walk(shared_.state().passes, pass_count()); }

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
    std::uint32_t* from = &shared_.state().keys[round % 2][warp_id()];
    std::uint32_t key;
    while (((key = load_acquire_shared(from)) & 1u) != (round / 2 & 1u)) __nanosleep(20);
    return static_cast<int>(key / 2) - 1;
  }

  // A warp of which each lane fills the ring of one stream warp.
  __device__ void fetch_units() const {
    const int lane = lane_id();
    const std::uint64_t policy = evict_first_policy();
    const int warp = min(lane, kStreamWarps - 1);
    bool is_left = lane < kStreamWarps;
    Walk at = walk();
    at.advance(warp);
    bool meets_tile = true;
    const std::uint8_t* expert = nullptr;
    for (std::uint32_t round = 0; __any_sync(kAllLanes, is_left);) {
      const std::uint32_t buffer = round % 2;
      const std::uint32_t place = buffer * kStreamWarps + warp;
      const bool is_free = is_left && barrier_test(shared_.freed() + place, (round / 2 & 1u) ^ 1u);
      if (is_free) {
        is_left = !at.ended();
        store_release_shared(&shared_.state().keys[buffer][warp],
                             tagged_key(is_left ? unit_key(at) : kNoUnit, round));
        ++round;
        if (is_left) {
          if (meets_tile)
            expert = at.pass().weights +
                     shared_.tables().tiles[at.tile()].expert * at.pass().expert_bytes;
          bulk_fetch(shared_.ring(warp, buffer), expert + at.chunk_offset(), kChunkBytes,
                     shared_.fetched() + place, policy);
          meets_tile = at.advance(kStreamWarps);
        }
      }
      if (!__any_sync(kAllLanes, is_free)) __nanosleep(40);
    }
  }

  // A lane's, by group of tokens, or by part where inputs have several.
  using Rows = const std::uint8_t * [kGroups * kParts];
  static_assert(kGroups == 1 || kParts == 1);

  __device__ void stream() {
    Rows rows = {};
    std::uint32_t round = 0;
    for (int key = await_key(round); key != kNoUnit;) {
      const int tokens = find_inputs(key >> 9, key >> 8 & 1, rows);
      key = stream_tile_of(tokens, key, rows, round);
    }
  }
  __device__ int stream_tile_of(int tokens, int key, const Rows& rows, std::uint32_t& round) const {
    if constexpr (kParts > 1) {
      return stream_tile<8, kParts>(key, rows, round);
    } else {
      const int width = tile_width<kParts>(tokens);
      if (kGroups > 1 && tokens > 8) return stream_tile<8, kGroups>(key, rows, round);
      if (width == 8) return stream_tile<8, 1>(key, rows, round);
      if (width == 4) return stream_tile<4, 1>(key, rows, round);
      if (width == 2) return stream_tile<2, 1>(key, rows, round);
      return stream_tile<1, 1>(key, rows, round);
    }
  }

  // Multiplies the units of one tile and pass from the one of `key` on, each with the inputs of
  // kProducts products; returns the key that follows.
  template <int kWidth, int kProducts>
  __device__ int stream_tile(int key, const Rows& rows, std::uint32_t& round) const {
    // Inputs of one product stay in registers while the columns are the same; others are loaded a
    // slab ahead.
    constexpr bool kKeeps = kProducts == 1;
    constexpr int kHeld = kKeeps ? 4 : 2;
    SlabInputs<kWidth, kProducts> inputs[kHeld];
    int inputs_at = 0;
    const auto load_inputs = [&] {
      inputs_at = (key & 0xFF) * (kParts * kChunkCols * 2);
#pragma unroll
      for (int i = 0; i < (kKeeps ? 4 : 1); ++i)
        inputs[i].load(rows, inputs_at, slab_in_turn<kWidth>(i));
    };
    if constexpr (kKeeps) load_inputs();
    const int tile = key >> 8, warp = warp_id();
    int held = key;
    do {
      if (!kKeeps || key != held) load_inputs();
      held = key;
      const std::uint32_t place = round % 2 * kStreamWarps + warp;
      barrier_wait_idle(shared_.fetched() + place, round / 2 & 1u);
      const std::uint32_t unit = shared_address(shared_.ring(warp, round % 2));
      const auto inputs_of = [&](int nth) -> const auto& {
        if (!kKeeps) inputs[(nth + 1) % kHeld].load(rows, inputs_at, (nth + 1) % 4);
        return inputs[nth % kHeld];
      };
      constexpr int kUsed = kProducts / kParts, kLane = kLaneSums<kWidth>;
      float sums[kGroupSlabs][kUsed][kLane] = {};
      static_assert(kGroupSlabs == 2);
      if constexpr (kParts == 1) {
        // In a loop, whose code many warps share, rather than side by side.
#pragma unroll 1
        for (int slab = 0; slab < kGroupSlabs; ++slab) {
#pragma unroll
          for (int i = 0; i < kUsed * kLane; ++i)
            sums[0][i / kLane][i % kLane] = sums[1][i / kLane][i % kLane];
          multiply_slab<kFp8, kWidth>(unit, slab, args_.scale_place, inputs_of, sums[1]);
        }
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) multiply_parts(unit, i, inputs_of(i), sums);
      }
      warp_arrive(shared_.freed() + place);  // the buffer has been read
      barrier_wait_idle(shared_.added() + round % kSumRounds, (round / kSumRounds & 1u) ^ 1u);
      store_unit<kGroups>(shared_.sums(round, warp), sums);
      warp_arrive(shared_.handed_over() + round % kSumRounds * kStreamWarps + warp);
      key = await_key(++round);
    } while (key >> 8 == tile);
    return key;
  }

  __device__ int units() const {
    int all = 0;
    for (int i = 0; i < pass_count(); ++i)
      all += max(shared_.state().passes[i].count, 0) * shared_.state().passes[i].chunks;
    return all;
  }

  // Waits for the inputs of a tile and finds this lane's rows. Lanes past the last token read the
  // first one's, for sums that nobody takes. Returns how many tokens there are.
  __device__ int find_inputs(int tile_number, int pass_number, Rows& rows) const {
    const bool is_hidden = pass_number == 1;
    const std::uint32_t needed = is_hidden ? 2 + tile_number : 1;
    while (load_acquire_shared(&shared_.state().inputs_ready) < needed) __nanosleep(20);
    const InputRows& inputs = args_.first && !is_hidden ? args_.inputs : args_.middle;
    const TokenTile tile = shared_.tables().tiles[tile_number];
    const auto* base = reinterpret_cast<const std::uint8_t*>(
        args_.own_inputs && !is_hidden ? shared_.own_inputs() : inputs.values);
    const int row_bytes = shared_.state().passes[pass_number].chunks * (kParts * kChunkCols * 2);
    const int token_of_8 = lane_id() / 4 & (tile_width<kParts>(tile.count) - 1);
#pragma unroll
    for (int n = 0; n < kGroups * kParts; ++n) {
      const int token = n / kParts * 8 + token_of_8;
      const int slot = shared_.tables().sorted[tile.first + (token < tile.count ? token : 0)];
      rows[n] = base + std::int64_t{inputs.slots_per_row.quotient(slot)} * row_bytes +
                n % kParts * (kChunkCols * 2) + lane_id() % 4 * 16;
    }
    return tile.count;
  }

  // ---- results ----

  // Adds the units of every kAdders-th group, in order of columns, and finishes them.
  __device__ void add_up(int adder) const {
    const int lane = lane_id();
    const DecodeResults<kParts> results(args_, shared_.tables().sorted);
    Walk at = walk();
    UnitSums<kGroups> totals = {};
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
          const TokenTile tile = shared_.tables().tiles[at.tile()];
          if (at.chunk() == 0) scales = results.scales_of(is_first(at), tile.expert);
          Barrier* units = shared_.handed_over() + round % kSumRounds * kStreamWarps + i;
          if constexpr (kWarpArrivals == 1)
            barrier_wait_idle(units + min(lane, n - 1), parity);  // one each
          else
            for (int j = 0; j < n; ++j) barrier_wait_idle(units + j, parity);
          __syncwarp();
          add_units<kGroups>(shared_.sums(round, i), n, tile.count, tile_width<kParts>(tile.count),
                             totals);
          if (ends) {
            results.template finish<kGroups>(is_first(at), at.group(), tile, scales, totals);
#pragma unroll
            for (int j = 0; j < kGroupSlabs * kGroups * 4; ++j)
              totals[j / (4 * kGroups)][j / 4 % kGroups][j % 4] = 0;
            if (is_first(at) && args_.second) {
              __syncwarp();
              ++ended;
              if (lane == 0) store_release_shared(&shared_.state().groups_ended[adder], ended);
            }
          }
        }
        if (ends) ++group;
        i += n;
        at.advance(n);
      }
      // An adder that had no group since must not arrive for two rounds at once.
      barrier_wait_idle(shared_.added() + round % kSumRounds, parity ^ 1u);
      warp_arrive(shared_.added() + round % kSumRounds);
    }
  }
  __device__ bool is_first(const Walk& at) const { return args_.first && at.pass_number() == 0; }

  // One warp: returns when all outputs of the grid are written.
  __device__ void finish_grid() {
    const int lane = lane_id();
    if (lane == 0) meet_grid();
    __syncwarp();
    if (blockIdx.x == 0 && pass_count() == 2)  // as the next launch needs them
      for (int tile = lane; tile < shared_.state().tiles; tile += kWarp) groups_done()[tile] = 0;
  }

  __device__ GridBarrier* barrier() const { return reinterpret_cast<GridBarrier*>(args_.sync); }
  /// [tiles] times adders; zero between launches.
  __device__ std::uint32_t* groups_done() const { return args_.sync + kGridBarrierWords; }
  __device__ int pass_count() const { return args_.first && args_.second ? 2 : 1; }

  const DecodeArgs& args_;
  const DecodeShared<kTokens> shared_;
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
  if constexpr (kTokens == 8)
    if (parts == 2) return experts_decode_kernel<kTokens, 2, false>;
  return experts_decode_kernel<kTokens, 1, false>;
}

}  // namespace

void experts_decode(DecodeArgs args, const DecodeConfig& config, cudaStream_t stream) {
  args.blocks = Divisor(config.blocks);
  args.columns = Divisor(args.w.hidden);
  args.scale_place = kScaleFloatPlace;
  args.at = config.at;
  args.own_inputs =
      config.at.has_own_inputs() && args.first && args.source_rows == args.routed.tokens;
  args.groups[0] = Divisor(groups_of(first_projection(args.w.hidden, args.w.inner)));
  args.groups[1] = Divisor(groups_of(second_projection(args.w.hidden, args.w.inner)));
  const Kernel kernel = config.tile_tokens == 8 ? kernel_for<8>(config.parts, args.w.fp8)
                                                : kernel_for<16>(config.parts, args.w.fp8);
  QT_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, config.at.bytes));
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
  launch.dynamicSmemBytes = static_cast<std::size_t>(config.at.bytes);
  launch.stream = stream;
  launch.attrs = attributes;
  launch.numAttrs = 2;
  QT_CUDA(cudaLaunchKernelEx(&launch, kernel, args));
}

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// linears for some dozens of tokens: weights stream through the chip once for 64 tokens.
//
// Inputs are split beforehand, by a first kernel, into blobs that one bulk copy each brings to
// shared memory. A block has a tile of weight rows and 32 or 64 tokens; each of its 8 or 16 warps
// streams its own 16 rows through a ring in shared memory that every lane fills and empties for
// itself, and decodes them into operand A of warpgroup products. While those of one group run,
// others decode weights and scale sums.
//
// Where there are few tiles, several blocks share one: each takes one slice of the columns, writes
// its sums to memory, waits for the others and adds up a part. Sums are those of linear_stream.cu
// in the same order, and have the same bits.
//
// Limits: with FP8 weights and 64 tokens the instructions that decode them, and tensor cores where
// inputs have two parts; memory with BF16 weights or fewer tokens.
#include <algorithm>
#include <span>
#include <utility>

#include "backends/cuda/device/acquire.cuh"
#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/linear_blobs.cuh"
#include "backends/cuda/device/linear_narrow.cuh"
#include "backends/cuda/device/linear_target.cuh"
#include "backends/cuda/device/warp_arrival.cuh"
#include "backends/cuda/device/wgmma_tile.cuh"
#include "backends/cuda/launch/launch.h"
#include "backends/cuda/launch/linear_kinds.h"
#include "backends/cuda/launch/linear_narrow.h"
#include "backends/cuda/launch/linear_tiles.h"

namespace quatrain::cuda {
namespace {

using namespace narrow;

/// The grid is [blocks of columns, tiles of tokens, parts · groups].
template <int kTokens, LinearKind... kKinds>
__global__ void __launch_bounds__(kSplitWarps* kWarp)
    split_kernel(const __grid_constant__ Parts parts) {
  wait_for_previous();
  let_next_start();  // which then takes no room from what this kernel waited for
  const int groups = parts.part[0].args.groups;
  const Part& part = parts.part[static_cast<int>(blockIdx.z) / groups];
  const int group = static_cast<int>(blockIdx.z) % groups;
  if (blockIdx.x + blockIdx.y + static_cast<unsigned>(group) == 0 && part.meeting.ranks > 1) {
    const int units = part.args.tiles * static_cast<int>(gridDim.y);
    for (int i = static_cast<int>(threadIdx.x); i < units; i += kSplitWarps * kWarp)
      part.meeting.arrivals[i] = 0;
  }
  (void)((part.args.kind == kKinds &&
          (split_all<kKinds, kTokens>(part.args, group, part.blobs), true)) ||
         ...);
}

/// The warps that multiply. Members are what the phases of a warp share.
template <LinearKind kKind, int kTokens, int kGroups>
class Multiplier {
 public:
  using Memory = Shared<kKind, kTokens, kGroups>;
  static constexpr int kProductThreads = Memory::kProductThreads;
  static constexpr int kTiles = kTokens / 8;

  __device__ Multiplier(const Part& part, const Memory& shared)
      : part_(part),
        shared_(shared),
        walk_(part),
        warp_(uniform_warp_id() - kCopyThreads / kWarp),
        copier_(part.args.products[0].w, 0, 0, 0),
        operands_(swizzled_operand(shared_address(shared.stages))) {}

  __device__ void run() {
    fetched_block_ = walk_.end_block;  // the first fetch finds the first unit
    fetched_unit_ = walk_.unit - walk_.step;
    fetch_first();
    wait_for_previous();
    int nth = 0;
    for (int unit = walk_.unit; unit < walk_.units; unit += walk_.step, ++nth) {
      strip_ = strip_of(unit / walk_.token_tiles);
      token0_ = unit % walk_.token_tiles * kTokens;
      TileSums<kTiles> sums = {};
      Fp4Scales scales = {};
      load_scales(walk_.first_block, scales);
      for (int block = walk_.first_block; block < walk_.end_block; ++block) {
        multiply(block, scales, sums);
        if (part_.meeting.ranks > 1 ||
            ((block + 1) % kSliceBlocks != 0 && block + 1 != walk_.end_block))
          continue;
        add_slice(block / kSliceBlocks, sums);
        clear_sums<kTiles>(sums);
      }
      if (part_.meeting.ranks > 1) meet(nth, unit, sums);
    }
  }

 private:
  using Fp4Scales = std::uint32_t[2];  // of a block

  __device__ static int thread() { return static_cast<int>(threadIdx.x) - kCopyThreads; }
  __device__ TileStrip strip_of(int tile) const {
    return strip_of_tile(part_.args, tile, kGroupRows * kGroups, warp_ * kStripRows);
  }
  __device__ char* slot(int i) const {
    return shared_.ring + (warp_ * Memory::kSlots + i) * Memory::kSlotBytes + lane_id() * 16;
  }
  __device__ float* block_scale(int nth_block) const {
    constexpr int kScaleSlots = Memory::kScaleSlots;
    return shared_.ring_scales + warp_ * kScaleSlots + nth_block % kScaleSlots;
  }

  static constexpr int kTurns = Memory::kHalves;  // slots that a block of columns takes

  template <int... kTurn>
  __device__ void fetch_turns(int to, std::integer_sequence<int, kTurn...>) {
    (fetch<kTurn>(to + kTurn), ...);
  }
  __device__ void fetch_first() {
    constexpr int kLeft = Memory::kSlots % kTurns, kWhole = Memory::kSlots - kLeft;
#pragma unroll 1
    for (int to = 0; to < kWhole; to += kTurns)
      fetch_turns(to, std::make_integer_sequence<int, kTurns>());
    fetch_turns(kWhole, std::make_integer_sequence<int, kLeft>());
  }
  /// Starts the copy of the next slot but kSlots, `turn` being its turn in its block, as a group of
  /// its own, with nothing in it at the end.
  template <int kTurn>
  __device__ void fetch(int to) {
    if (kTurn == 0) next_block();
    if (fetched_block_ < walk_.end_block) {
      constexpr int kCount = kPieces<kKind> / Memory::kHalves;
      copier_.template copy_pieces<kTurn * kCount, kCount>(slot(to));
      if constexpr (kIsFp8<kKind> && kTurn == 0)
        if (lane_id() == 0) copy_scale();
    }
    commit_copies();
  }

  __device__ void next_block() {
    ++nth_fetched_;
    if (fetched_block_ + 1 < walk_.end_block) {
      copier_.next_block();
      ++fetched_block_;
      return;
    }
    fetched_unit_ += walk_.step;
    fetched_block_ = walk_.end_block;
    if (fetched_unit_ >= walk_.units || walk_.first_block == walk_.end_block) return;
    fetched_block_ = walk_.first_block;
    source_ = strip_of(fetched_unit_ / walk_.token_tiles);
    copier_ = StripCopier<kKind>(part_.args.products[source_.product].w, source_.row, source_.end,
                                 fetched_block_);
  }

  /// Of all rows of the strip, by one lane for all.
  __device__ void copy_scale() const {
    const Matrix& w = part_.args.products[source_.product].w;
    float* to = block_scale(nth_fetched_);
    if (w.format != WeightFormat::kFp8Block) {
      *to = 1;
      return;
    }
    const int row = min(source_.row, source_.end - 1);
    const int columns = ceil_div(part_.args.cols, kLinearBlock);
    copy4(shared_address(to), static_cast<const float*>(w.scales) +
                                  std::int64_t{row / kLinearBlock} * columns + fetched_block_);
  }

  __device__ void load_scales(int block, Fp4Scales& scales) const {
    if constexpr (kIsFp4<kKind>)
      StripReader<kKind>(part_.args.products[strip_.product].w, strip_, 0)
          .load_scales(block, scales);
  }

  /// Operands of half a block's products, from the ring.
  template <int kHalf>
  __device__ void decode_half(const std::uint32_t (&scales)[2], std::uint32_t (&a)[4][4]) const {
    constexpr int kPairs = kSteps / 2 / kPieces<kKind>;  // of steps that a piece holds
    if constexpr (kHalf < Memory::kHalves) wait_copies<Memory::kSlots - 1>();
    const char* from = slot(next_out_);
    WeightBlock<kKind> w;
    w.scale[0] = scales[0];
    w.scale[1] = scales[1];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      constexpr int kFirstPiece = Memory::kHalves == 2 ? kHalf * kPieces<kKind> / 2 : 0;
      const int pair = 2 * kHalf + i;
#pragma unroll
      for (int row = 0; row < 2; ++row)
        w.piece[pair / kPairs][row] =
            StripCopier<kKind>::read_piece(from, pair / kPairs - kFirstPiece, row);
      std::uint32_t pair_of[2][4];
      decode_pair<kKind>(w, pair, pair_of);
#pragma unroll
      for (int step = 0; step < 2; ++step)
#pragma unroll
        for (int r = 0; r < 4; ++r) a[2 * i + step][r] = pair_of[step][r];
    }
  }
  /// Once products have begun with what came out of the ring, which therefore has been read.
  template <int kHalf>
  __device__ void refill() {
    if constexpr (kHalf == 0 && Memory::kHalves == 1) return;  // a slot that is read twice
    constexpr int kTurn = Memory::kHalves == 2 ? kHalf : 0;
    fetch<(kTurn + Memory::kSlots) % kTurns>(next_out_);
    next_out_ = next_out_ + 1 == Memory::kSlots ? 0 : next_out_ + 1;
  }

  __device__ void start_half(const std::uint32_t (&a)[4][4], int half, int stage,
                             TileSums<kTiles>& products) const {
    using Blob = typename Memory::Blob;
    const std::uint64_t from = operand_behind(operands_, stage * Blob::kHalfBytes);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int part = 0; part < kParts<kKind>; ++part)
        wgmma_tile<kKind, kTiles>(products, a[i],
                                  operand_behind(from, part * Blob::kPartBytes + i * 32),
                                  half + i + part > 0);
    wgmma_commit();
  }

  __device__ void release(int stage) const { warp_arrive(shared_.empty + stage); }
  __device__ static void keep(std::uint32_t (&a)[4][4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) keep_operand(a[i]);
  }

  /// The products of half a block, under way.
  template <int kHalf>
  __device__ void begin(int stage, const Fp4Scales& scales, std::uint32_t (&a)[4][4],
                        TileSums<kTiles>& products) {
    decode_half<kHalf>(scales, a);
    start_half(a, kHalf, stage, products);
    refill<kHalf>();
  }

  /// sums += the products of a block of columns, scaled. Two groups of warps have a buffer for the
  /// operands of each half, and decode the second while the products of the first run; where there
  /// are four, others run meanwhile.
  __device__ void multiply(int block, Fp4Scales& scales, TileSums<kTiles>& sums) {
    TileSums<kTiles> products;
    std::uint32_t a[kGroups == 2 ? 2 : 1][4][4];
    auto& second_a = a[kGroups == 2 ? 1 : 0];
    const int first = ring_.at;
    barrier_wait(shared_.full + first, ring_.parity);
    ring_.next(Memory::kStages);
    begin<0>(first, scales, a[0], products);
    const int second = ring_.at;
    barrier_wait(shared_.full + second, ring_.parity);
    ring_.next(Memory::kStages);
    if constexpr (kGroups > 2) {
      wgmma_wait<0>();
      keep(a[0]);
      release(first);
    }
    begin<1>(second, scales, second_a, products);
    if constexpr (kGroups == 2) {
      wgmma_wait<1>();
      release(first);
    }
    if (block + 1 < walk_.end_block) load_scales(block + 1, scales);
    __syncwarp();  // scales came by other lanes
    const float scale = kIsFp8<kKind> ? *block_scale(nth_block_) : 1;
    wgmma_wait<0>();
    keep_sums<kTiles>(products);
    keep(a[0]);
    keep(second_a);
    add_products<kKind, kTiles>(products, scale, shared_.factors + second / 2 * kTokens, sums);
    ++nth_block_;
    release(second);
  }

  __device__ StripTarget target() const {
    const TiledProduct& product = part_.args.products[strip_.product];
    return {product.w, product.out, strip_, lane_id() / 4, token0_, part_.args.tokens - token0_};
  }

  /// Sums of a slice and all before it, of a block alone. The last ones go to memory.
  __device__ void add_slice(int slice, TileSums<kTiles>& sums) const {
    const bool is_last = slice + 1 == part_.args.slices;
    join_slices<kTiles, kProductThreads>(shared_.totals + thread(), slice > 0, is_last, sums);
    if (!is_last) return;
    const StripTarget target = this->target();
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
      target.write(n, {sums[n][0], sums[n][1], sums[n][2], sums[n][3]});
  }

  /// The sums of all slices of a unit, its nth: every block adds up a share of the quads. That of
  /// the next unit but one overwrites them, when all have come to the next and so left this one.
  __device__ void meet(int nth, int unit, const TileSums<kTiles>& sums) const {
    const int ranks = part_.meeting.ranks;
    const auto sums_of = [&](int rank) {
      const int block = part_.block() - walk_.rank + rank;
      return part_.meeting.sums +
             (std::int64_t{nth % 2} * part_.blocks + block) * (kTiles * kProductThreads) + thread();
    };
    float4* own = sums_of(walk_.rank);
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
      __stcg(own + n * kProductThreads, {sums[n][0], sums[n][1], sums[n][2], sums[n][3]});
    named_sync(1, kProductThreads);
    if (thread() == 0) {
      __threadfence();
      atomicAdd(part_.meeting.arrivals + unit, 1u);
      while (load_acquire(part_.meeting.arrivals + unit) < static_cast<std::uint32_t>(ranks)) {
      }
    }
    named_sync(1, kProductThreads);
    const StripTarget target = this->target();
    const int end = (walk_.rank + 1) * kTiles / ranks;
#pragma unroll 1
    for (int n = walk_.rank * kTiles / ranks; n < end; ++n) {
      float4 total = __ldcg(sums_of(0) + n * kProductThreads);
#pragma unroll 4
      for (int rank = 1; rank < ranks; ++rank) {
        const float4 next = __ldcg(sums_of(rank) + n * kProductThreads);
        total = {total.x + next.x, total.y + next.y, total.z + next.z, total.w + next.w};
      }
      target.write(n, total);
    }
  }

  const Part& part_;
  const Memory& shared_;
  const Walk<kTokens> walk_;
  const int warp_;             // of those that multiply
  int fetched_unit_ = 0;       // whose weights are asked for
  int fetched_block_ = 0;      // the next block of it
  TileStrip source_;           // the warp's strip of it
  StripCopier<kKind> copier_;  // from there
  int next_out_ = 0;           // slot; the next to be filled is the same
  int nth_block_ = 0;          // of all that this block multiplies
  int nth_fetched_ = -1;
  TileStrip strip_;  // the warp's of the unit
  int token0_ = 0;
  const std::uint64_t operands_;  // describes the first stage
  RingPosition ring_;
};

template <int kGroups>
inline constexpr int kThreads = kCopyThreads + kProductThreads<kGroups>;

template <LinearKind kKind, int kTokens, int kGroups>
__device__ void multiply_part(const Part& part, char* memory) {
  using Memory = Shared<kKind, kTokens, kGroups>;
  const Memory shared(memory);
  if (threadIdx.x == 0)
    init_ring(shared.full, 1, shared.empty, Memory::kWarps * kWarpArrivals, Memory::kStages);
  __syncthreads();
  if (threadIdx.x < kCopyThreads) {
    lower_registers<kCopyRegisters<kGroups>>();
    wait_for_previous();
    if (threadIdx.x == 0) copy_inputs<Memory, kTokens>(part, kGroupRows * kGroups, shared);
  } else {
    raise_registers<kProductRegisters<kGroups>>();
    Multiplier<kKind, kTokens, kGroups>(part, shared).run();
  }
}

template <int kTokens, int kGroups, LinearKind... kKinds>
__global__ void __launch_bounds__(kThreads<kGroups>, 1)
    narrow_kernel(const __grid_constant__ Parts parts) {
  extern __shared__ char memory[];
  let_next_start();
  int p = 0;
  while (p + 1 < parts.count && static_cast<int>(blockIdx.x) >= parts.part[p + 1].first_block) ++p;
  const Part& part = parts.part[p];
  // Nothing is left to do after the first that fits.
  (void)((part.args.kind == kKinds &&
          (multiply_part<kKinds, kTokens, kGroups>(part, memory), true)) ||
         ...);
}

/// Of a kind's scratch: inputs, sums of blocks that share tiles, arrivals.
template <int kTokens>
struct Layout {
  static constexpr std::int64_t kMostBlockBytes = std::int64_t{256} * kTokens * 4;
  std::int64_t sums_at, arrivals_at, bytes;

  explicit Layout(const LinearTiles& args) {
    const int token_tiles = ceil_div(args.tokens, kTokens);
    sums_at = std::int64_t{args.groups} * ceil_div(args.cols, kLinearBlock) * token_tiles *
              InputBlob<kTokens, 2>::kBytes;
    arrivals_at = sums_at + 2 * multiprocessors() * kMostBlockBytes;
    const std::int64_t end =
        arrivals_at + std::int64_t{4} * row_tiles(args, 2 * kGroupRows) * token_tiles;
    bytes = (end + 1023) / 1024 * 1024;
  }
};

template <int kTokens, int kGroups, LinearKind... kKinds>
void launch_parts(std::span<const LinearTiles> kinds, const NarrowCut& cut,
                  const LinearScratch& scratch, cudaStream_t stream) {
  const auto kernel = narrow_kernel<kTokens, kGroups, kKinds...>;
  constexpr std::size_t kMostShared = std::max({Shared<kKinds, kTokens, kGroups>::kBytes...});
  static const bool allowed = (allow_shared(kernel, kMostShared), true);
  (void)allowed;
  Parts parts;
  auto* memory = static_cast<char*>(scratch.memory);
  int blocks = 0;
  for (const LinearTiles& args : kinds) {
    const int ranks = cut.ranks[parts.count];
    Part& part = parts.part[parts.count];
    part = {.args = args,
            .meeting = {.ranks = ranks},
            .blobs = memory,
            .first_block = blocks,
            .blocks = cut.blocks[parts.count]};
    cut_into_tiles(part.args, kGroupRows * kGroups);
    const Layout<kTokens> layout(args);
    part.meeting.sums = reinterpret_cast<float4*>(memory + layout.sums_at);
    part.meeting.arrivals = reinterpret_cast<std::uint32_t*>(memory + layout.arrivals_at);
    memory += layout.bytes;
    blocks += part.blocks;
    ++parts.count;
  }
  const LinearTiles& first = kinds[0];
  launch(split_kernel<kTokens, kKinds...>,
         {.grid = dim3(static_cast<unsigned>(ceil_div(first.cols, kLinearBlock)),
                       static_cast<unsigned>(ceil_div(first.tokens, kTokens)),
                       static_cast<unsigned>(parts.count * first.groups)),
          .block = kSplitWarps * kWarp},
         stream, parts);
  // One block fits a multiprocessor; those that wait for each other are all there.
  launch(kernel,
         {.grid = static_cast<unsigned>(blocks), .block = kThreads<kGroups>, .shared = kMostShared},
         stream, parts);
}

template <int kTokens>
void launch_kinds(std::span<const LinearTiles> kinds, const LinearScratch& scratch,
                  cudaStream_t stream) {
  for (std::size_t k = 0; k < kinds.size(); k += kMostNarrowParts) {
    const auto some = kinds.subspan(k, std::min<std::size_t>(kMostNarrowParts, kinds.size() - k));
    const NarrowCut cut = narrow_cut(some, kTokens, multiprocessors());
    with_kinds(
        some, [&]<LinearKind... kKinds>() {
          cut.groups == 4 ? launch_parts<kTokens, 4, kKinds...>(some, cut, scratch, stream)
                          : launch_parts<kTokens, 2, kKinds...>(some, cut, scratch, stream);
        });
  }
}

}  // namespace

std::int64_t narrow_scratch_bytes(std::span<const LinearTiles> kinds) {
  std::int64_t bytes = 0;
  for (const LinearTiles& args : kinds)
    bytes += args.tokens > 32 ? Layout<64>(args).bytes : Layout<32>(args).bytes;
  return bytes;
}

void multiply_narrow(std::span<const LinearTiles> kinds, const LinearScratch& scratch,
                     cudaStream_t stream) {
  if (kinds[0].tokens > 32)
    launch_kinds<64>(kinds, scratch, stream);
  else
    launch_kinds<32>(kinds, scratch, stream);
}

}  // namespace quatrain::cuda

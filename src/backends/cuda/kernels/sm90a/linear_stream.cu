// SPDX-License-Identifier: Apache-2.0
// stream_linears, linears for few tokens: weights stream through the chip.
//
// A block takes one slice of 1024 columns, of large launches as many as its shared memory has room
// for their inputs, a cluster all of them, and every cluster its share of the strips of 16 rows.
// Every multiprocessor has one block, which splits its inputs once. After that its warps go their
// own ways: each multiplies strips of its own by one slice, a block of 128 columns after the other,
// and keeps their sums in registers. Weights come through a ring in shared memory that every warp
// has for itself. The sums of slices are sent to the block of the cluster that has their strip,
// which adds them in order.
//
// Limits: for one wave of blocks its start and its end, and the inputs; the head streams at the
// bandwidth of memory.
#include <algorithm>
#include <array>
#include <atomic>
#include <span>

#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/cluster.cuh"
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/linear_inputs.cuh"
#include "backends/cuda/device/linear_ring.cuh"
#include "backends/cuda/device/linear_stream.cuh"
#include "backends/cuda/device/linear_turn.cuh"
#include "backends/cuda/device/warp_arrival.cuh"
#include "backends/cuda/device/weight_decode.cuh"
#include "backends/cuda/launch/launch.h"
#include "backends/cuda/launch/linear_kinds.h"
#include "backends/cuda/launch/linear_stream.h"
#include "backends/cuda/launch/tensor_map.h"

namespace quatrain::cuda {
namespace {

using namespace stream;

/// One part of a launch by one block. Members are what its phases share.
template <LinearKind kKind, int kTokens>
class Stream {
 public:
  __device__ Stream(const LinearStream& args, const StreamPart& part, char* memory)
      : args_(args),
        part_(part),
        shared_(memory, args.held_slices.value()),
        share_(share_of(args, part, kTokens)),
        warp_(uniform_warp_id()),
        warp_strip_(args.held_slices.quotient(warp_)),
        warp_slice_(args.held_slices.remainder(warp_)),
        round_strips_(args.round_strips),
        fetched_(first_place()),
        scaled_(first_place()),
        ring_(shared_.ring + warp_ * kRingBytes, shared_.full + warp_ * shared_.kMostTurns,
              kRingTurns<kKind>) {}

  // Every phase is written once, and loops that need not be are not unrolled: in a step the code of
  // a launch has left the multiprocessors.
  __device__ void run() {
    load_scales();
    ring_.init();
    fetch();
    init_barriers();
    wait_for_previous();
    if (is_split()) cluster_wait();  // whom sums are sent to has its barriers
    int inputs_of = -1;
    for (int nth = 0;; ++nth) {
      const int round = share_.first + nth * round_strips_;
      const bool has_ended = round >= share_.end;
#pragma unroll 1
      for (int first = share_.first_slice; first < share_.end_slice && !has_ended;
           first += args_.held_slices.value()) {
        if (first != inputs_of) {
          __syncthreads();
          load_inputs(first);
          __syncthreads();
          inputs_of = first;
        }
        const int slice = first + warp_slice_;
        if (has_unit({round + warp_strip_, slice, 0})) multiply_unit(round, nth, slice);
      }
      if (is_split() && nth > 0) finish_round(round - round_strips_, nth - 1);
      if (has_ended) return;
    }
  }

 private:
  static constexpr int kParts = cuda::kParts<kKind>;
  static constexpr int kTiles = kTokenTiles<kTokens>;
  static constexpr int kBlocks = kTurnBlocks<kKind>;

  /// How far a warp has come: a unit, which is a strip and a slice, and a block of it.
  struct Place {
    int strip, slice, block;
  };
  using Turn = stream::Turn<kKind, kTokens>;
  using Sums = typename Turn::Sums;
  using Scales = typename Turn::Scales;

  __device__ bool is_split() const { return args_.slices > 1; }
  /// Whether there is work for the warp.
  __device__ bool has_unit(const Place& at) const {
    return at.strip < share_.end && at.slice < share_.end_slice && warp_strip_ < round_strips_;
  }
  __device__ Place first_place() const {
    return {share_.first + warp_strip_, share_.first_slice + warp_slice_, 0};
  }
  __device__ int blocks_of(int slice) const {
    return min(kSliceBlocks, ceil_div(args_.cols, kLinearBlock) - slice * kSliceBlocks);
  }
  __device__ void advance(Place& at, int blocks) const {
    at.block += blocks;
    if (at.block < blocks_of(at.slice)) return;
    at.block = 0;
    at.slice += args_.held_slices.value();
    if (at.slice < share_.end_slice) return;
    at.slice = share_.first_slice + warp_slice_;
    at.strip += round_strips_;
  }
  __device__ Strip rows_of(int strip, int& product) const {
    product = product_at(args_, part_, strip);
    return strip_of(args_.products[product], share_.group, strip);
  }

  __device__ void init_barriers() const {
    if (threadIdx.x == 0 && is_split()) {
      for (int i = 0; i < 2; ++i) {
        barrier_init(shared_.complete + i, 1);
        barrier_init(shared_.taken + i, round_strips_ * kWarpArrivals);
      }
      barrier_init_fence();
      for (int i = 0; i < 2; ++i) expect_round(share_.first + i * round_strips_, i);
    }
    __syncwarp();
    if (is_split()) cluster_arrive_relaxed();
  }

  // ---- weights ----

  /// Asks for the next turn, where there is one.
  __device__ void fetch() {
    if (has_unit(fetched_)) {
      if (fetched_.block == 0) fetched_from_ = rows_of(fetched_.strip, fetched_product_).row;
      const int block = fetched_.slice * kSliceBlocks + fetched_.block;
      ring_.fetch(args_.products[fetched_product_].values, fetched_from_,
                  static_cast<int>(bytes_of_columns<kKind>(block * kLinearBlock)));
      advance(fetched_, kBlocks);
    }
    ring_.next();
  }

  __device__ float* lane_scale() const {
    return shared_.scales + warp_ * kUnitScales + lane_id() % kUnitScales;
  }
  /// Asks for the scales of the next unit (FP8) or turn (FP4). Those of FP8 come through shared
  /// memory: a load to a register, which those of FP4 are, is waited for at the next branch.
  __device__ void load_scales() {
    if (kKind == LinearKind::kBf16 || !has_unit(scaled_)) return;
    int product;
    const Strip rows = rows_of(scaled_.strip, product);
    const Matrix& w = args_.products[product].w;
    if constexpr (kIsFp8<kKind>) {
      const int row = min(rows.row + lane_id() / 8 * (kStripRows - 1), rows.end - 1);
      const int columns = ceil_div(args_.cols, kLinearBlock);
      const int block = scaled_.slice * kSliceBlocks + lane_id() % kSliceBlocks;
      if (lane_id() < kUnitScales) {
        if (w.format == WeightFormat::kFp8Block && block < columns)
          copy4(shared_address(lane_scale()),
                static_cast<const float*>(w.scales) + row / kLinearBlock * columns + block);
        else
          *lane_scale() = 1;
      }
      advance(scaled_, kSliceBlocks);
    } else if constexpr (kIsFp4<kKind>) {
      const StripReader<kKind> reader(w, rows, scaled_.slice * kSliceBlocks, ring_row());
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) reader.load_scales(scaled_.block + b, next_scales_.of[b]);
      advance(scaled_, kBlocks);
    }
  }

  // ---- products ----

  /// Of the slices that are held at once, from `first` on.
  __device__ void load_inputs(int first) {
    const LinearRows rows{.x = args_.x,
                          .up = args_.up,
                          .limit = args_.limit,
                          .token0 = share_.token0,
                          .tokens = share_.tokens,
                          .group = share_.group,
                          .groups = args_.groups,
                          .cols = args_.cols};
    // What is asked for late in the queues of the memory waits for all that is there: so scales
    // come before weights, and inputs before all weights but one turn.
    const auto fill_ring = [&] {
#pragma unroll 1
      for (; turns_asked_ < kRingTurns<kKind>; ++turns_asked_) fetch();
    };
    split_inputs<kKind, kThreads, kTokens>(rows, first * kSliceBlocks * kLinearBlock,
                                           args_.held_slices, shared_.inputs, fill_ring);
  }

  __device__ void multiply_unit(int round, int nth, int slice) {
    const int strip = round + warp_strip_;
    Sums sums = {};
    Scales scales;
    int from[2];  // FP8: the lanes that have the scales of this lane's two rows
    if constexpr (kIsFp8<kKind>) {
      int product;
      const int first = rows_of(strip, product).row;
#pragma unroll
      for (int half = 0; half < 2; ++half)
        from[half] = (first + ring_row() + 8 * half) / kLinearBlock == first / kLinearBlock ? 0 : 8;
    }
    if constexpr (kIsFp8<kKind>) {
      wait_for_copies();
      scales.of_lane = lane_id() < kUnitScales ? *lane_scale() : 1;
      load_scales();
    }
    const int blocks = blocks_of(slice);
#pragma unroll 1
    for (int block = 0; block < blocks; block += kBlocks) {
      if constexpr (kIsFp4<kKind>) {
        scales = next_scales_;
        load_scales();
      }
      Turn turn(shared_.inputs, warp_slice_ * kSliceBlocks + block, share_.tokens);
      turn.load_factors(scales, block, from);
      ring_.wait();
      turn.multiply(ring_, scales);
      fetch();
      turn.add_to(sums);
    }
    if (is_split() && nth >= 2)  // what came two rounds ago has been taken everywhere
      wait_for_ranks(shared_.taken + nth % 2, static_cast<std::uint32_t>(nth / 2 - 1) % 2);
    if (is_split())
      send(slice, strip - round, nth % 2, sums);
    else
      write(strip, sums);
  }

  // ---- sums of slices ----

  /// Of the first n strips of a round, how many a block of the cluster collects at most.
  __device__ int owned_of(int n) const {
    return args_.cluster_blocks.quotient(n + args_.cluster_blocks.value() - 1);
  }
  /// Strip `nth` of those that a block of the cluster collects: a lane's place.
  __device__ float4* received(int parity, int slice, int nth) const {
    return shared_.received +
           ((parity * args_.slices + slice) * owned_of(round_strips_) + nth) * kTiles * kWarp +
           lane_id();
  }

  /// Announces what a round will bring.
  __device__ void expect_round(int round, int nth) const {
    const int strips = min(round_strips_, share_.end - round) - static_cast<int>(cluster_rank());
    barrier_expect(
        shared_.complete + nth % 2,
        static_cast<std::uint32_t>(owned_of(max(0, strips)) * args_.slices * kTiles * kWarp) * 16u);
  }

  __device__ void send(int slice, int round_strip, int parity, const Sums& sums) const {
    const int nth = args_.cluster_blocks.quotient(round_strip);
    const auto rank = static_cast<unsigned>(round_strip - nth * args_.cluster_blocks.value());
    const std::uint32_t barrier = address_in_rank(shared_address(shared_.complete + parity), rank);
    const std::uint32_t to = address_in_rank(shared_address(received(parity, slice, nth)), rank);
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
      send16(to + static_cast<std::uint32_t>(t * kWarp) * 16u,
             {sums[t][0], sums[t][1], sums[t][2], sums[t][3]}, barrier);
  }

  /// Adds up the slices of this block's strips, in order, a warp one of them.
  __device__ void finish_round(int round, int nth) const {
    const int round_strip = warp_ * args_.cluster_blocks.value() + static_cast<int>(cluster_rank());
    if (round_strip >= round_strips_ || round + round_strip >= share_.end) return;
    wait_for_ranks(shared_.complete + nth % 2, static_cast<std::uint32_t>(nth / 2) % 2);
    Sums sums;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      float4 sum = received(nth % 2, 0, warp_)[t * kWarp];
#pragma unroll 4
      for (int slice = 1; slice < args_.slices; ++slice) {
        const float4 s = received(nth % 2, slice, warp_)[t * kWarp];
        sum = {sum.x + s.x, sum.y + s.y, sum.z + s.z, sum.w + s.w};
      }
      sums[t][0] = sum.x, sums[t][1] = sum.y, sums[t][2] = sum.z, sums[t][3] = sum.w;
    }
    const int next = round + 2 * round_strips_;
    if (next < share_.end) {  // whoever sends to that one waits for this
      if (threadIdx.x == 0) expect_round(next, nth);
      warp_arrive_in_ranks(shared_.taken + nth % 2);
    }
    write(round + round_strip, sums);
  }

  /// A strip's sums times the scales that are left.
  __device__ void write(int at, const Sums& sums) const {
    int index;
    const Strip strip = rows_of(at, index);
    const MappedProduct& product = args_.products[index];
    const std::int64_t rows = product.w.rows;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = strip.row + ring_row() + 8 * half;
      if (row >= strip.end) return;
      float scale = 1;
      if (kIsFp8<kKind> && product.w.format != WeightFormat::kFp8Block)
        scale = row_scale(product.w, row);
#pragma unroll
      for (int t = 0; t < kTiles; ++t)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int token = 8 * t + lane_id() % 4 * 2 + j;
          if (token < share_.tokens)
            product.out[(share_.token0 + token) * rows + row] =
                sums[t][2 * half + j] * scale * product.w.global_scale;
        }
    }
  }

  const LinearStream& args_;
  const StreamPart& part_;
  const Shared<kTokens, kParts> shared_;
  const Share share_;
  const int warp_;
  const int warp_strip_, warp_slice_;  // of a round and of what is held, the warp's
  const int round_strips_;
  Place fetched_;                               // what is copied next
  Place scaled_;                                // what scales are asked for next
  int fetched_product_ = 0, fetched_from_ = 0;  // its rows begin there
  Ring<kKind> ring_;
  int turns_asked_ = 1;  // of the first kTurns
  Scales next_scales_;
};

/// Of launches whose parts are of these kinds.
template <int kTokens, LinearKind... kKinds>
__global__ void __launch_bounds__(kThreads, 1)
    stream_kernel(const __grid_constant__ LinearStream args) {
  extern __shared__ __align__(1024) char memory[];
  let_next_start();
  int p = 0;
  while (p + 1 < args.parts && static_cast<int>(cluster_index()) >= args.part[p + 1].first_cluster)
    ++p;
  const StreamPart& part = args.part[p];
  // Nothing is left to do after the first that fits.
  (void)((part.kind == kKinds && (Stream<kKinds, kTokens>(args, part, memory).run(), true)) || ...);
}

// ---- host ----

constexpr int kMaxSlices = 4 * kMaxClusterBlocks;

template <class Cut>
constexpr bool fits_always() {
  for (int slices = 1; slices <= kMaxSlices; ++slices)
    for (const bool is_large : {false, true})
      if (!Cut(slices, is_large).fits()) return false;
  return true;
}

/// kParts: the most that the inputs of a part of the launch have.
template <int kTokens, int kParts, LinearKind... kKinds>
void launch_stream(LinearStream args, cudaStream_t stream) {
  static_assert(kTokens > 8 || fits_always<Cut<kTokens, kParts>>());
  const auto kernel = stream_kernel<kTokens, kKinds...>;
  const Cut<kTokens, kParts> cut(args.slices, args.is_large);
  for (int p = 0; p < args.parts; ++p)
    for (int i = 0; i < args.part[p].count; ++i) {
      MappedProduct& product = args.products[args.part[p].first_product + i];
      product.values = weight_map(product.w, kStripRows);
    }
  args.slices_per_block = cut.slices_per_block;
  args.held_slices = Divisor(cut.held_slices);
  args.round_strips = cut.round_strips;
  args.cluster_blocks = Divisor(cut.cluster_blocks);
  const int blocks = cut.cluster_blocks;
  LaunchShape shape{.grid = static_cast<unsigned>(blocks),
                    .block = kThreads,
                    .shared = cut.shared_bytes,
                    .cluster_x = static_cast<unsigned>(blocks)};
  // A property of the chip and the cut, asked for once.
  static std::array<std::atomic<int>, kMaxSlices + 1> known[2];
  std::atomic<int>& resident = known[args.is_large][static_cast<std::size_t>(args.slices)];
  if (resident == 0) {
    allow_shared(kernel, cut.kMaxShared);
    resident = resident_clusters(kernel, shape);
  }
  // Two tiles of tokens go side by side; the second reads most weights from the second-level cache.
  const int token_tiles = ceil_div(args.tokens, kTokens);
  share_out(args, std::max(1, std::min(resident.load(), multiprocessors() / blocks) /
                                  std::min(token_tiles, 2)));
  const StreamPart& last = args.part[args.parts - 1];
  shape.grid = dim3(
      static_cast<unsigned>((last.first_cluster + last.clusters.value() * args.groups) * blocks),
      static_cast<unsigned>(token_tiles));
  launch(kernel, shape, stream, args);
}

}  // namespace

bool stream_takes(int cols) { return cols <= kMaxSlices * kSliceBlocks * kLinearBlock; }

void stream_linears(const LinearStream& args, cudaStream_t stream) {
  int rounded = 0;
  for (int p = 0; p < args.parts; ++p)
    rounded += args.part[p].kind == LinearKind::kFp8Rounded ? 1 : 0;
  const bool all_rounded = rounded == args.parts;
  const std::span<const StreamPart> parts(args.part, static_cast<std::size_t>(args.parts));
  with_kinds(
      parts, [&]<LinearKind... kKinds>() {
        constexpr bool kHasRounded = ((kKinds == LinearKind::kFp8Rounded) || ...);
        // Inputs of two parts alone are read twice for 16 tokens, rather than have half of the
        // shared memory; so are all of small launches, which have idle warps for both tiles.
        if constexpr (kHasRounded) {
          const bool fits = all_rounded ? Cut<16, 1>(args.slices, args.is_large).fits()
                                        : Cut<16, 2>(args.slices, args.is_large).fits();
          if (args.tokens > 8 && rounded > 0 && fits && !args.is_small)
            return all_rounded ? launch_stream<16, 1, kKinds...>(args, stream)
                               : launch_stream<16, 2, kKinds...>(args, stream);
          if (all_rounded)
            return args.tokens > 4 ? launch_stream<8, 1, kKinds...>(args, stream)
                                   : launch_stream<4, 1, kKinds...>(args, stream);
        }
        args.tokens > 4 ? launch_stream<8, 2, kKinds...>(args, stream)
                        : launch_stream<4, 2, kKinds...>(args, stream);
      });
}

}  // namespace quatrain::cuda

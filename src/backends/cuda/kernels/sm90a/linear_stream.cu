// SPDX-License-Identifier: Apache-2.0
// stream_linears, linears for few tokens: weights stream through the chip.
//
// A block takes one slice of 1024 columns, a cluster all of them, and every cluster its share of
// the strips of 16 rows. Every multiprocessor has one block, which splits its inputs once, into
// shared memory. After that its warps go their own ways: each multiplies strips of its own, a block
// of 128 columns after the other, and keeps their sums in registers. Weights come through a ring in
// shared memory that each lane fills and empties for itself, with no barrier. The sums of slices
// are sent to the block of the cluster that has their strip, which adds them in order.
//
// Limits: for one wave of blocks the start, the end and the inputs; the head streams at the
// bandwidth of memory.
#include <algorithm>
#include <array>
#include <atomic>

#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/cluster.cuh"
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/linear_inputs.cuh"
#include "backends/cuda/device/linear_stream.cuh"
#include "backends/cuda/device/warp_arrival.cuh"
#include "backends/cuda/device/weight_decode.cuh"
#include "backends/cuda/launch/launch.h"
#include "backends/cuda/launch/linear_stream.h"

namespace quatrain::cuda {
namespace {

using namespace stream;

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

/// One part of a launch by one block. Members are what its phases share.
template <LinearKind kKind, int kTokenTiles>
class Stream {
 public:
  __device__ Stream(const LinearStream& args, const StreamPart& part, char* memory)
      : args_(args),
        part_(part),
        shared_(memory),
        share_(share_of(args, part, kTokens)),
        round_strips_(round_strips<kKind, kTokenTiles>(args.slices)),
        fetched_(first_place()),
        scaled_(first_place()) {}

  __device__ void run() {
    init_barriers();
    for (int i = 0; i < kRing; ++i) fetch();
    load_scales();
    wait_for_previous();
    int inputs_of = share_.first_slice;
    load_inputs(inputs_of);
    __syncthreads();
    if (is_split()) cluster_wait();  // whom sums are sent to has its barriers

    int nth = 0;
    for (int round = share_.first; round < share_.end; round += round_strips_, ++nth) {
      for (int slice = share_.first_slice; slice < share_.end_slice; ++slice) {
        if (slice != inputs_of) {
          __syncthreads();
          load_inputs(slice);
          __syncthreads();
          inputs_of = slice;
        }
        if (has_unit(round + first_of_warp())) multiply_unit(round, nth, slice);
      }
      if (is_split() && nth > 0) finish_round(round - round_strips_, nth - 1);
    }
    if (is_split() && nth > 0) finish_round(share_.first + (nth - 1) * round_strips_, nth - 1);
  }

 private:
  static constexpr int kTokens = 8 * kTokenTiles;
  static constexpr int kStrips = kUnitStrips<kKind, kTokenTiles>;
  static constexpr int kBlocks = kTurn<kKind, kTokenTiles>;  // of a turn
  static constexpr int kRing = kSlots<kKind, kTokenTiles>;
  static constexpr int kSlot = kSlotBytes<kKind, kTokenTiles>;
  static_assert(kRing % kBlocks == 0);

  /// How far a warp has come: a unit's first strip, a slice and a block of it.
  struct Place {
    int strip, slice, block;
  };
  /// Sums of a strip: a lane has rows g and g + 8, g = lane / 4, of two tokens each.
  using Sums = float[kTokenTiles][4];
  /// FP8: of block lane % 8, first or last row (lane / 8 % 2) and strip lane / 16 of a unit. FP4:
  /// of a turn, as WeightBlock has them.
  struct Scales {
    float of_lane;
    std::uint32_t of[kIsFp4<kKind> ? kBlocks : 1][kStrips][2];
  };

  __device__ bool is_split() const { return args_.slices > 1; }
  __device__ int first_of_warp() const { return warp_id() * kStrips; }
  __device__ bool has_unit(int strip) const {
    return strip < share_.end && first_of_warp() < round_strips_;
  }
  __device__ Place first_place() const {
    return {share_.first + first_of_warp(), share_.first_slice, 0};
  }
  __device__ int blocks_of(int slice) const {
    return min(kSliceBlocks, ceil_div(args_.cols, kLinearBlock) - slice * kSliceBlocks);
  }
  __device__ void advance(Place& at, int blocks) const {
    at.block += blocks;
    if (at.block < blocks_of(at.slice)) return;
    at.block = 0;
    if (++at.slice < share_.end_slice) return;
    at.slice = share_.first_slice;
    at.strip += round_strips_;
  }
  /// Of strip `i` of a unit, empty beyond the block's share.
  __device__ Strip rows_of(int strip, int& product) const {
    product = product_at(args_, part_, min(strip, share_.end - 1));
    Strip rows = strip_of(args_.products[product], share_.group, strip);
    if (strip >= share_.end) rows.end = rows.row;
    return rows;
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
    if (is_split()) cluster_arrive();
  }

  // ---- weights ----

  __device__ char* slot(int i) const {
    return shared_.ring + warp_id() * kWarpRingBytes<kTokenTiles> + i * kSlot + lane_id() * 16;
  }

  /// Starts the copy of the next block of columns into the slot that has fallen empty; one group
  /// per slot, with nothing in it at the end. A unit fills whole turns.
  __device__ void fetch() {
    if (has_unit(fetched_.strip)) {
      if (fetched_.block == 0) find_strips();
#pragma unroll
      for (int i = 0; i < kStrips; ++i)
        copiers_[i].copy(0, slot(next_in_) + i * kStripBytes<kKind>);
#pragma unroll
      for (int i = 0; i < kStrips; ++i) copiers_[i].next_block();
      if (kBlocks > 1 && fetched_.block % kBlocks != kBlocks - 1)
        ++fetched_.block;
      else
        advance(fetched_, 1);
      next_in_ = next_in_ + 1 == kRing ? 0 : next_in_ + 1;
    }
    commit_copies();
  }
  __device__ void find_strips() {
#pragma unroll
    for (int i = 0; i < kStrips; ++i) {
      int product;
      const Strip rows = rows_of(fetched_.strip + i, product);
      copiers_[i] = StripCopier<kKind>(args_.products[product].w, rows.row, rows.end,
                                       fetched_.slice * kSliceBlocks);
    }
  }

  /// Asks for the scales of the next unit (FP8) or turn (FP4).
  __device__ void load_scales() {
    if (kKind == LinearKind::kBf16 || !has_unit(scaled_.strip)) return;
    if constexpr (kKind == LinearKind::kFp8) {
      int product;
      const Strip rows = rows_of(scaled_.strip + lane_id() / 16 % kStrips, product);
      const Matrix& w = args_.products[product].w;
      const int row = min(rows.row + lane_id() / 8 % 2 * (kStripRows - 1), rows.end - 1);
      const int columns = ceil_div(args_.cols, kLinearBlock);
      const int block = scaled_.slice * kSliceBlocks + lane_id() % kSliceBlocks;
      next_scales_.of_lane = 1;
      if (w.format == WeightFormat::kFp8Block && block < columns && rows.row < rows.end)
        next_scales_.of_lane =
            static_cast<const float*>(w.scales)[row / kLinearBlock * columns + block];
      advance(scaled_, kSliceBlocks);
    } else if constexpr (kIsFp4<kKind>) {
#pragma unroll
      for (int i = 0; i < kStrips; ++i) {
        int product;
        const Strip rows = rows_of(scaled_.strip + i, product);
        const StripReader<kKind> reader(args_.products[product].w, rows,
                                        scaled_.slice * kSliceBlocks);
#pragma unroll
        for (int b = 0; b < kBlocks; ++b)
          reader.load_scales(scaled_.block + b, next_scales_.of[b][i]);
      }
      advance(scaled_, kBlocks);
    }
  }

  // ---- products ----

  __device__ void load_inputs(int slice) const {
    const InputRows rows{.x = args_.x,
                         .up = args_.up,
                         .limit = args_.limit,
                         .token0 = share_.token0,
                         .tokens = share_.tokens,
                         .group = share_.group,
                         .groups = args_.groups,
                         .cols = args_.cols};
    split_inputs<kKind, kTokens, kThreads<kTokenTiles>>(rows, slice, blocks_of(slice),
                                                        shared_.inputs);
  }

  __device__ void multiply_unit(int round, int nth, int slice) {
    Sums sums[kStrips] = {};
    Scales scales;
    int from[kStrips][2];  // FP8: the lanes that have the scales of this lane's two rows
    if constexpr (kKind == LinearKind::kFp8) {
#pragma unroll
      for (int i = 0; i < kStrips; ++i) {
        int product;
        const int first = rows_of(round + first_of_warp() + i, product).row;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = first + lane_id() / 4 + 8 * half;
          from[i][half] = 16 * i + (row / kLinearBlock == first / kLinearBlock ? 0 : 8);
        }
      }
    }
    if constexpr (!kIsFp4<kKind>) {
      scales = next_scales_;
      load_scales();
    }
    const int blocks = blocks_of(slice);
    for (int block = 0; block < blocks; block += kBlocks) {
      if constexpr (kIsFp4<kKind>) {
        scales = next_scales_;
        load_scales();
      }
      float products[kBlocks][kStrips][kTokenTiles][4] = {};
      wait_copies<kRing - kBlocks>();
      multiply(block, scales, products);
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        next_out_ = next_out_ + 1 == kRing ? 0 : next_out_ + 1;
        fetch();
      }
#pragma unroll
      for (int b = 0; b < kBlocks; ++b)
        if (block + b < blocks)
#pragma unroll
          for (int i = 0; i < kStrips; ++i)
            add(block + b, scales, from[i], products[b][i], sums[i]);
    }
    if (is_split() && nth >= 2)  // what came two rounds ago has been taken everywhere
      wait_for_ranks(shared_.taken + nth % 2, static_cast<std::uint32_t>(nth / 2 - 1) % 2);
#pragma unroll
    for (int i = 0; i < kStrips; ++i) {
      const int strip = round + first_of_warp() + i;
      if (strip >= share_.end) break;
      if (is_split())
        send(slice, strip - round, nth % 2, sums[i]);
      else
        write(strip, sums[i]);
    }
  }

  /// A turn: `kBlocks` blocks from `block` on of all strips of the unit.
  __device__ void multiply(int block, const Scales& scales,
                           float (&products)[kBlocks][kStrips][kTokenTiles][4]) const {
    constexpr int kPairs = kSteps / 2 / kPieces<kKind>;  // of steps that a piece holds
    WeightBlock<kKind> w[kBlocks][kStrips];
    const uint4* inputs[kTokenTiles];
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n)  // what goes with tokens that are not there is not used
      inputs[n] = &shared_.inputs.at(block, 0, min(8 * n + lane_id() / 4, share_.tokens - 1),
                                     lane_id() % 4);
#pragma unroll
    for (int pair = 0; pair < kSteps / 2; ++pair) {
      std::uint32_t a[kBlocks][kStrips][2][4];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b)
#pragma unroll
        for (int i = 0; i < kStrips; ++i) {
          WeightBlock<kKind>& one = w[b][i];
          if (pair % kPairs == 0)
#pragma unroll
            for (int half = 0; half < 2; ++half)
              one.piece[pair / kPairs][half] = StripCopier<kKind>::read_piece(
                  slot(next_out_ + b) + i * kStripBytes<kKind>, pair / kPairs, half);
          if constexpr (kIsFp4<kKind>) {
            one.scale[0] = scales.of[b][i][0];
            one.scale[1] = scales.of[b][i][1];
          }
          decode_pair<kKind>(one, pair, a[b][i]);
        }
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        uint4 x[kBlocks][kTokenTiles];
#pragma unroll
        for (int b = 0; b < kBlocks; ++b)
#pragma unroll
          for (int n = 0; n < kTokenTiles; ++n)
            x[b][n] = inputs[n][(b * kSteps + 2 * pair + step) * kTokens * 4];
#pragma unroll
        for (int part = 0; part < 2; ++part)
#pragma unroll
          for (int b = 0; b < kBlocks; ++b)
#pragma unroll
            for (int i = 0; i < kStrips; ++i)
#pragma unroll
              for (int n = 0; n < kTokenTiles; ++n)
                mma_of<kKind>(products[b][i][n], a[b][i][step], part == 0 ? x[b][n].x : x[b][n].z,
                              part == 0 ? x[b][n].y : x[b][n].w);
      }
    }
  }

  /// Adds a block's products of a strip to its sums, scaled.
  __device__ void add(int block, const Scales& scales, const int (&from)[2],
                      const float (&products)[kTokenTiles][4], Sums& sums) const {
    float scale[2];
    if constexpr (kKind == LinearKind::kFp8)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        scale[half] = __shfl_sync(kAllLanes, scales.of_lane, from[half] + block);
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
      float2 factor;
      if constexpr (kKind == LinearKind::kFp8)
        factor = *reinterpret_cast<const float2*>(shared_.inputs.factors + block * kTokens + 8 * n +
                                                  lane_id() % 4 * 2);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if constexpr (kKind == LinearKind::kFp8)
          sums[n][j] =
              fmaf(products[n][j], scale[j / 2] * (j % 2 == 0 ? factor.x : factor.y), sums[n][j]);
        else
          sums[n][j] += products[n][j];
      }
    }
  }

  // ---- sums of slices ----

  __device__ int cluster_blocks() const { return static_cast<int>(cluster_size()); }
  /// Strip `nth` of those that a block of the cluster collects: a lane's place.
  __device__ float4* received(int parity, int slice, int nth) const {
    const int owned = ceil_div(round_strips_, cluster_blocks());
    return shared_.received +
           ((parity * args_.slices + slice) * owned + nth) * kTokenTiles * kWarp + lane_id();
  }

  /// Announces what a round will bring.
  __device__ void expect_round(int round, int nth) const {
    const int strips = min(round_strips_, share_.end - round) - static_cast<int>(cluster_rank());
    const int owned = ceil_div(max(0, strips), cluster_blocks());
    barrier_expect(shared_.complete + nth % 2,
                   static_cast<std::uint32_t>(owned * args_.slices * kTokenTiles * kWarp) * 16u);
  }

  __device__ void send(int slice, int round_strip, int parity, const Sums& sums) const {
    const auto rank = static_cast<unsigned>(round_strip % cluster_blocks());
    const std::uint32_t barrier = address_in_rank(shared_address(shared_.complete + parity), rank);
    const std::uint32_t to = address_in_rank(
        shared_address(received(parity, slice, round_strip / cluster_blocks())), rank);
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n)
      send16(to + n * kWarp * 16, {sums[n][0], sums[n][1], sums[n][2], sums[n][3]}, barrier);
  }

  /// Adds up the slices of this block's strips, in order, a warp one of them.
  __device__ void finish_round(int round, int nth) const {
    const int round_strip = warp_id() * cluster_blocks() + static_cast<int>(cluster_rank());
    if (round_strip >= round_strips_ || round + round_strip >= share_.end) return;
    wait_for_ranks(shared_.complete + nth % 2, static_cast<std::uint32_t>(nth / 2) % 2);
    Sums sums;
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
      float4 sum = received(nth % 2, 0, warp_id())[n * kWarp];
      for (int slice = 1; slice < args_.slices; ++slice) {
        const float4 s = received(nth % 2, slice, warp_id())[n * kWarp];
        sum = {sum.x + s.x, sum.y + s.y, sum.z + s.z, sum.w + s.w};
      }
      sums[n][0] = sum.x, sums[n][1] = sum.y, sums[n][2] = sum.z, sums[n][3] = sum.w;
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
    const StreamProduct& product = args_.products[index];
    const std::int64_t rows = product.w.rows;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = strip.row + lane_id() / 4 + 8 * half;
      if (row >= strip.end) return;
      float scale = 1;
      if (kKind == LinearKind::kFp8 && product.w.format != WeightFormat::kFp8Block)
        scale = row_scale(product.w, row);
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int token = 8 * n + lane_id() % 4 * 2 + j;
          if (token < share_.tokens)
            product.out[(share_.token0 + token) * rows + row] =
                sums[n][2 * half + j] * scale * product.w.global_scale;
        }
    }
  }

  const LinearStream& args_;
  const StreamPart& part_;
  const Shared<kTokenTiles> shared_;
  const Share share_;
  const int round_strips_;
  Place fetched_;  // what is copied next
  Place scaled_;   // what scales are asked for next
  StripCopier<kKind> copiers_[kStrips];
  Scales next_scales_;
  int next_in_ = 0, next_out_ = 0;  // slots
};

template <int kTokenTiles>
__global__ void __launch_bounds__(kThreads<kTokenTiles>, 1)
    stream_kernel(const __grid_constant__ LinearStream args) {
  extern __shared__ __align__(128) char memory[];
  let_next_start();
  int p = 0;
  while (p + 1 < args.parts && static_cast<int>(cluster_index()) >= args.part[p + 1].first_cluster)
    ++p;
  switch (args.part[p].kind) {
    case LinearKind::kBf16:
      return Stream<LinearKind::kBf16, kTokenTiles>(args, args.part[p], memory).run();
    case LinearKind::kFp8:
      return Stream<LinearKind::kFp8, kTokenTiles>(args, args.part[p], memory).run();
    case LinearKind::kNvfp4:
      return Stream<LinearKind::kNvfp4, kTokenTiles>(args, args.part[p], memory).run();
    case LinearKind::kMxfp4:
      return Stream<LinearKind::kMxfp4, kTokenTiles>(args, args.part[p], memory).run();
  }
}

// ---- host ----

constexpr std::size_t kMaxShared = 227 * 1024;
constexpr int kMaxSlices = 4 * kMaxClusterBlocks;

/// Shared memory that any kind of weight gets by with.
template <int kTokenTiles>
constexpr std::size_t shared_bytes(int slices) {
  const int blocks = ceil_div(slices, ceil_div(slices, kMaxClusterBlocks));
  return Shared<kTokenTiles>::bytes(slices,
                                    owned_strips<LinearKind::kFp8, kTokenTiles>(slices, blocks));
}
constexpr bool fits_always() {
  for (int slices = 1; slices <= kMaxSlices; ++slices)
    if (std::max(shared_bytes<1>(slices), shared_bytes<2>(slices)) > kMaxShared) return false;
  return true;
}
static_assert(fits_always());

template <int kTokenTiles>
void launch_stream(LinearStream args, cudaStream_t stream) {
  const auto kernel = stream_kernel<kTokenTiles>;
  args.slices_per_block = ceil_div(args.slices, kMaxClusterBlocks);
  const int blocks = ceil_div(args.slices, args.slices_per_block);
  LaunchShape shape{.grid = static_cast<unsigned>(blocks),
                    .block = kThreads<kTokenTiles>,
                    .shared = shared_bytes<kTokenTiles>(args.slices),
                    .cluster_x = static_cast<unsigned>(blocks)};
  // A property of the chip and the slices, asked for once.
  static std::array<std::atomic<int>, kMaxSlices + 1> known;
  std::atomic<int>& resident = known[static_cast<std::size_t>(args.slices)];
  if (resident == 0) {
    allow_shared(kernel, kMaxShared);
    resident = resident_clusters(kernel, shape);
  }
  share_out(args, std::min(resident.load(), std::max(1, multiprocessors() / blocks)));
  const StreamPart& last = args.part[args.parts - 1];
  shape.grid =
      dim3(static_cast<unsigned>((last.first_cluster + last.clusters * args.groups) * blocks),
           static_cast<unsigned>(ceil_div(args.tokens, 8 * kTokenTiles)));
  launch(kernel, shape, stream, args);
}

}  // namespace

bool stream_takes(int cols) { return cols <= kMaxSlices * kSliceBlocks * kLinearBlock; }

void stream_linears(const LinearStream& args, cudaStream_t stream) {
  if (args.tokens > 8)
    launch_stream<2>(args, stream);
  else
    launch_stream<1>(args, stream);
}

}  // namespace quatrain::cuda

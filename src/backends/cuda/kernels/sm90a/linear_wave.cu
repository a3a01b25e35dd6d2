// SPDX-License-Identifier: Apache-2.0
// linears for some dozens of tokens where the chip holds all blocks of a launch at once.
//
// A block has one slice of 1024 columns and some units of 64 weight rows. Blocks of the same slice
// first split its inputs, a share each, into blobs in memory, meet, and bring all of them to shared
// memory as operand B of warpgroup products. After that the four groups of warps of a block go
// their own ways: each multiplies units of its own, a block of 128 columns after the other. Weights
// come through a ring in shared memory that every warp has for itself, and are decoded into operand
// A. The sums of slices meet in memory, where each of the blocks that share a tile adds up a part
// of it. Sums are those of linear_stream.cu in the same order, and have the same bits.
//
// Limits: what passes between the L2 cache and the multiprocessors, which is the inputs of a slice
// for every block and the sums on top of the weights; two meetings.
#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/linear_blobs.cuh"
#include "backends/cuda/device/linear_ring.cuh"
#include "backends/cuda/device/linear_target.cuh"
#include "backends/cuda/device/linear_wave.cuh"
#include "backends/cuda/device/warp_arrival.cuh"
#include "backends/cuda/device/wgmma_tile.cuh"
#include "backends/cuda/launch/launch.h"
#include "backends/cuda/launch/linear_wave.h"
#include "backends/cuda/launch/tensor_map.h"

namespace quatrain::cuda {
namespace {

using namespace wave;

/// One part of a launch by one block. Members are what its phases share.
template <LinearKind kKind, int kTokens>
class Wave {
 public:
  __device__ Wave(const LinearWave& args, const WavePart& part, char* memory)
      : args_(args),
        part_(part),
        shared_(memory),
        share_(args, part),
        warp_(uniform_warp_id()),
        group_(warp_ / kGroupWarps),
        groups_(min(kWaveGroups, share_.units())),
        ring_slots_(Memory::kSlots / (kGroupWarps * max(groups_, 1))),
        ring_(shared_.ring + warp_ * ring_slots_ * kRingSlotBytes,
              shared_.full + warp_ * ring_slots_, ring_slots_),
        operands_(swizzled_operand(shared_address(shared_.stages))),
        fetched_(group_) {}

  __device__ void run() {
    ask_for_scales();
    if (threadIdx.x == 0) init_barriers();
    if (group_ < groups_) {
      ring_.init();
      fetch();
    }
    wait_for_previous();
    const MeetingPlace inputs_place(args_.meetings + share_.group * args_.slices + share_.slice);
    split_share<kTokens>(args_, share_, warp_, [&] {
      // What is asked for late waits for all that was asked for before: inputs come before all
      // weights but the first.
      if (group_ >= groups_) return;
#pragma unroll 1
      for (int i = 1; i < ring_slots_; ++i) fetch();
    });
    wait_for_copies();
    __syncthreads();
    if (warp_ == 0) meet_inputs(inputs_place);
    if (group_ < groups_) {
#pragma unroll 1
      for (int nth = group_; nth - group_ < share_.units(); nth += kWaveGroups) multiply_unit(nth);
    }
    if (args_.slices > 1 && groups_ > 0) add_slices();
  }

 private:
  using Memory = Shared<kKind, kTokens>;
  using Blob = typename Memory::Blob;
  static constexpr int kTiles = kTokens / 8;
  static constexpr int kStages = Memory::kStages;
  // Of operands: of 64 tokens the sums take the registers of a second one.
  static constexpr int kBuffers = kTokens > 32 ? 1 : 2;

  __device__ Unit unit(int nth) const { return {args_, part_, share_.group, share_.first + nth}; }
  __device__ Strip strip_of(const Unit& unit) const {
    return {.row = unit.row + warp_ % kGroupWarps * kStripRows, .end = unit.end};
  }
  __device__ StripTarget target(const Unit& unit) const {
    const MappedProduct& product = args_.products[unit.product];
    return {product.w, product.out, strip_of(unit), ring_row(), 0, args_.tokens};
  }

  // ---- what comes from memory ----

  /// FP8: through shared memory, as a load to a register is waited for at the next branch.
  __device__ void ask_for_scales() const {
    if constexpr (kIsFp8<kKind>) {
      const auto i = static_cast<int>(threadIdx.x);
      if (i >= share_.units() * kSliceBlocks) return;
      const Unit unit = this->unit(i / kSliceBlocks);
      const Matrix& w = args_.products[unit.product].w;
      const int block = i % kSliceBlocks;
      if (w.format == WeightFormat::kFp8Block && block < share_.blocks)
        copy4(shared_address(shared_.scales + i),
              static_cast<const float*>(w.scales) +
                  unit.row / kLinearBlock * ceil_div(args_.cols, kLinearBlock) +
                  share_.slice * kSliceBlocks + block);
      else
        shared_.scales[i] = 1;
    }
  }

  /// Asks for the next 128 bytes of a strip's rows, where there are any.
  __device__ void fetch() {
    if (fetched_ < share_.units()) {
      if (fetched_slot_ == 0) {
        const Unit unit = this->unit(fetched_);
        fetched_product_ = unit.product;
        fetched_row_ = strip_of(unit).row;
      }
      const int first = share_.slice * kSliceBlocks * kBlockSlots<kKind>;
      ring_.fetch(args_.products[fetched_product_].values, fetched_row_,
                  (first + fetched_slot_) * 128);
      if (++fetched_slot_ == share_.blocks * kBlockSlots<kKind>) {
        fetched_slot_ = 0;
        fetched_ += kWaveGroups;
      }
    }
    ring_.next();
  }

  __device__ void init_barriers() const {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(shared_.there + i, 1);
      barrier_init(shared_.empty + i, groups_ * kGroupWarps * kWarpArrivals);
    }
    barrier_init_fence();
  }
  /// Halves of blocks of columns that inputs are brought for: of a slice, again for every round of
  /// units where shared memory does not hold them all.
  __device__ int halves() const {
    const int rounds = (share_.units() + kWaveGroups - 1) / kWaveGroups;
    return (Memory::kHoldsAll ? 1 : rounds) * 2 * share_.blocks;
  }
  /// One thread: the inputs of the nth half, to its stage.
  __device__ void copy_inputs(int nth) const {
    int half = nth;
    while (half >= 2 * share_.blocks) half -= 2 * share_.blocks;
    const int stage = nth % kStages;
    const char* from = part_.blobs + Blob::offset(0, share_.group, args_.groups,
                                                  share_.slice * kSliceBlocks + half / 2,
                                                  ceil_div(args_.cols, kLinearBlock));
    Barrier* there = shared_.there + stage;
    const bool has_factors = half % 2 == 1;  // the last that is read
    barrier_expect(there, Blob::kHalfBytes + (has_factors ? Blob::kFactorBytes : 0));
    bulk_copy(shared_.stages + stage * Blob::kHalfBytes, from + half % 2 * Blob::kHalfBytes,
              Blob::kHalfBytes, there);
    if (has_factors)
      bulk_copy(shared_.factors + stage / 2 * kTokens, from + 2 * Blob::kHalfBytes,
                Blob::kFactorBytes, there);
  }
  /// One warp: when all blocks of the slice have split their shares.
  __device__ void meet_inputs(const MeetingPlace& place) const {
    if (lane_id() == 0) {
      place.arrive(share_.tile, args_.tiles);
      place.wait();
    }
    __syncwarp();
    async_proxy_fence();  // the engine reads what threads have written
    if (lane_id() < min(kStages, halves())) copy_inputs(lane_id());
  }
  /// The warp has read the nth half. The first then brings what is to come to the stage of the half
  /// before, which most will have read.
  __device__ void release(int nth) const {
    if constexpr (!Memory::kHoldsAll) {
      warp_arrive(shared_.empty + nth % kStages);
      const int before = nth - 1, next = before + kStages;
      if (threadIdx.x != 0 || before < 0 || next >= halves()) return;
      barrier_wait(shared_.empty + before % kStages,
                   static_cast<std::uint32_t>(before / kStages) % 2);
      copy_inputs(next);
    }
  }
  __device__ void wait_for_inputs(int nth) const {
    barrier_wait(shared_.there + nth % kStages, static_cast<std::uint32_t>(nth / kStages) % 2);
  }

  // ---- products ----

  /// Operands of half a block's products, from the ring.
  template <int kHalf>
  __device__ void decode_half(HalfOperands& a) const {
    constexpr int kPiecePairs = kSteps / 2 / kPieces<kKind>;
    WeightBlock<kKind> w;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int pair = 2 * kHalf + i, piece = pair / kPiecePairs;
      if (pair % kPiecePairs == 0)
#pragma unroll
        for (int row = 0; row < 2; ++row)
          w.piece[piece][row] = ring_.read(piece % 2, row);  // a slot has two pieces
      decode_pair<kKind>(w, pair, a[i]);
    }
  }

  /// The products of half a block, under way.
  template <int kHalf>
  __device__ void begin_half(int nth, HalfOperands& a, TileSums<kTiles>& products) {
    constexpr bool kLastOfSlot = kBlockSlots<kKind> == 2 || kHalf == 1;
    if (kBlockSlots<kKind> == 2 || kHalf == 0) ring_.wait();
    decode_half<kHalf>(a);
    const std::uint64_t from = operand_behind(operands_, nth % kStages * Blob::kHalfBytes);
    wait_for_inputs(nth);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int part = 0; part < kParts<kKind>; ++part)
        wgmma_tile<kKind, kTiles>(products, a[i / 2][i % 2],
                                  operand_behind(from, part * Blob::kPartBytes + i * 32),
                                  kHalf + i + part > 0);
    wgmma_commit();
    if (kLastOfSlot) fetch();
  }

  /// Of rounds in which other groups have a unit and this one has not, what is read is let go.
  __device__ void multiply_unit(int nth) {
    int half = Memory::kHoldsAll ? 0 : nth / kWaveGroups * 2 * share_.blocks;
    if (nth >= share_.units()) {
#pragma unroll 1
      for (const int end = half + 2 * share_.blocks; half < end && !Memory::kHoldsAll; ++half) {
        wait_for_inputs(half);
        release(half);
      }
      return;
    }
    const Unit unit = this->unit(nth);
    TileSums<kTiles> sums = {};
#pragma unroll 1
    for (int block = 0; block < share_.blocks; ++block, half += 2) {
      TileSums<kTiles> products;
      HalfOperands a[kBuffers];
      begin_half<0>(half, a[0], products);
      if constexpr (kBuffers == 1) {
        wgmma_wait<0>();
        keep_operands(a[0]);
        release(half);
      }
      begin_half<1>(half + 1, a[kBuffers - 1], products);
      const float scale = kIsFp8<kKind> ? shared_.scales[nth * kSliceBlocks + block] : 1;
      if constexpr (kBuffers == 2) {
        wgmma_wait<1>();
        release(half);
      }
      wgmma_wait<0>();
      keep_sums<kTiles>(products);
#pragma unroll
      for (auto& of : a) keep_operands(of);
      add_products<kKind, kTiles>(products, scale,
                                  shared_.factors + (half + 1) % kStages / 2 * kTokens, sums);
      release(half + 1);
    }
    const StripTarget to = target(unit);
    float4* mine = sums_of(share_.slice) + nth * kTiles * kGroupThreads;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const float4 sum = {sums[n][0], sums[n][1], sums[n][2], sums[n][3]};
      if (args_.slices == 1)
        to.write(n, sum);
      else
        __stcg(mine + n * kGroupThreads, sum);
    }
  }

  // ---- sums of slices ----

  /// The thread's, of a block of those that share the tile.
  __device__ float4* sums_of(int slice) const {
    const int block = static_cast<int>(blockIdx.x) - share_.slice + slice;
    return args_.sums + std::int64_t{block} * (kMostUnits * kTiles * kGroupThreads) +
           threadIdx.x % kGroupThreads;
  }

  /// Adds up the slices in order; every block takes a share of the tile.
  __device__ void add_slices() const {
    const MeetingPlace place(args_.meetings + gridDim.x +
                             args_.slice_of.quotient(static_cast<int>(blockIdx.x)));
    const int items = share_.units() * kTiles;
    const int end = args_.slice_of.quotient((share_.slice + 1) * items);
    int i = args_.slice_of.quotient(share_.slice * items) + group_;
    const auto target_of = [&](int item) { return target(unit(min(item, items - 1) / kTiles)); };
    StripTarget to = target_of(i);
    __syncthreads();
    if (threadIdx.x == 0) {
      place.arrive(share_.slice, args_.slices);
      place.wait();
    }
    __syncthreads();
#pragma unroll 1
    for (; i < end; i += kWaveGroups, to = target_of(i)) {
      float4 total = __ldcg(sums_of(0) + i * kGroupThreads);
#pragma unroll 8
      for (int slice = 1; slice < args_.slices; ++slice) {
        const float4 next = __ldcg(sums_of(slice) + i * kGroupThreads);
        total = {total.x + next.x, total.y + next.y, total.z + next.z, total.w + next.w};
      }
      to.write(i % kTiles, total);
    }
  }

  const LinearWave& args_;
  const WavePart& part_;
  const Memory shared_;
  const Share share_;
  const int warp_;
  const int group_;       // of warps
  const int groups_;      // that have units
  const int ring_slots_;  // of a warp
  StripRing<1> ring_;
  const std::uint64_t operands_;  // describes the first stage
  int fetched_;                   // unit, of the block's
  int fetched_slot_ = 0, fetched_product_ = 0, fetched_row_ = 0;
};

template <int kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    wave_kernel(const __grid_constant__ LinearWave args) {
  extern __shared__ __align__(1024) char memory[];
  let_next_start();
  int p = 0;
  while (p + 1 < args.parts &&
         args.slice_of.quotient(static_cast<int>(blockIdx.x)) >= args.part[p + 1].first_tile)
    ++p;
  const WavePart& part = args.part[p];
  if (part.kind == LinearKind::kBf16)
    Wave<LinearKind::kBf16, kTokens>(args, part, memory).run();
  else
    Wave<LinearKind::kFp8Rounded, kTokens>(args, part, memory).run();
}

// ---- host ----

template <int kTokens>
void launch_wave(const LinearWave& args, int blocks, cudaStream_t stream) {
  static const bool allowed = (allow_shared(wave_kernel<kTokens>, kSharedBytes), true);
  (void)allowed;
  // One block fits a multiprocessor; those that wait for each other are all there.
  launch(wave_kernel<kTokens>,
         {.grid = static_cast<unsigned>(blocks), .block = kThreads, .shared = kSharedBytes}, stream,
         args);
}

/// Whether the kernel has code for all parts.
bool has_kinds(const LinearStream& all) {
  for (int p = 0; p < all.parts; ++p)
    if (all.part[p].kind != LinearKind::kBf16 && all.part[p].kind != LinearKind::kFp8Rounded)
      return false;
  return true;
}

LinearWave as_wave(const LinearStream& all) {
  LinearWave args{static_cast<const LinearInputs&>(all)};
  for (int p = 0; p < all.parts; ++p) {
    const StreamPart& from = all.part[p];
    WavePart& part = args.part[args.parts++];
    part = {.kind = from.kind, .first_product = from.first_product, .count = from.count};
    for (int i = from.first_product; i < from.first_product + from.count; ++i) {
      const MappedProduct& product = all.products[i];
      args.products[i] = product;
      args.products[i].first = part.units;
      part.units += ceil_div(product.group_rows, kUnitRows);
    }
  }
  return args;
}

std::int64_t sum_bytes() {
  return std::int64_t{multiprocessors()} * kMostUnits * kUnitRows * kMostWaveTokens * 4;
}
std::int64_t blob_bytes(const LinearWave& args) {
  return std::int64_t{args.groups} * ceil_div(args.cols, kLinearBlock) *
         InputBlob<kMostWaveTokens, 2>::kBytes;
}

}  // namespace

bool multiply_wave(const LinearStream& all, const LinearScratch& scratch, cudaStream_t stream) {
  if (all.tokens > kMostWaveTokens || !has_kinds(all) || scratch.meetings == nullptr) return false;
  LinearWave args = as_wave(all);
  const WaveCut cut = wave_cut(args, multiprocessors());
  if (cut.tokens == 0 || scratch.bytes < sum_bytes() + args.parts * blob_bytes(args)) return false;
  char* blobs = static_cast<char*>(scratch.memory) + sum_bytes();
  int tiles = 0;  // of all groups
  for (int p = 0; p < args.parts; ++p) {
    WavePart& part = args.part[p];
    part.tiles = Divisor(cut.tiles[p]);
    part.blobs = blobs + p * blob_bytes(args);
    part.first_tile = tiles;
    tiles += cut.tiles[p] * args.groups;
    args.tiles += cut.tiles[p];
    for (int i = part.first_product; i < part.first_product + part.count; ++i)
      args.products[i].values = weight_map(args.products[i].w, kStripRows);
  }
  args.slice_of = Divisor(args.slices);
  args.sums = static_cast<float4*>(scratch.memory);
  args.meetings = scratch.meetings;
  const auto launch_for = cut.tokens == 64 ? launch_wave<64> : launch_wave<32>;
  launch_for(args, tiles * args.slices, stream);
  return true;
}

}  // namespace quatrain::cuda

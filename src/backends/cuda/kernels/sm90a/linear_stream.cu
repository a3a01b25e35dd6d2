// SPDX-License-Identifier: Apache-2.0
// stream_linears, linears for few tokens: weights stream through the chip.
//
// A block takes one slice of 1024 columns, a cluster all of them, and every cluster its share of
// the strips of 16 rows. Each of the 8 warps of a block has 128 columns: it splits its inputs once,
// into registers, and multiplies strip after strip with them. Weights come through a ring in shared
// memory that each lane fills and empties for itself, with no barrier. The warps take turns at
// adding up the products of all of them, in the order of columns; the sums of slices are sent to
// the block of the cluster that has their row, which adds them in order.
//
// Two blocks fit a multiprocessor. Of a small launch one is there, so that the rings of the next
// one fill, since weights depend on nothing, while this one ends.
//
// Limits: for one wave of blocks the start, the end and the latency of a turn; the head streams at
// the bandwidth of memory.
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

constexpr int kMaxClusterBlocks = 8;  // what every chip schedules

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

/// One part of a launch by one block. Members are what its phases share.
template <LinearKind kKind, int kTokenTiles>
class Stream {
 public:
  __device__ Stream(const LinearStream& args, const StreamPart& part, char* memory)
      : args_(args),
        part_(part),
        shared_(memory),
        share_(share_of(args, part, kTokens)),
        fetched_(share_),
        source_(args.products[0].w, 0, 0, 0) {}

  __device__ void run() {
    for (int i = 0; i < kSlots; ++i) fetch();
    Walk at(share_);
    Scales scales;
    load_scales(at, scales);
    init_barriers();
    wait_for_previous();

    InputBlock inputs[kTokenTiles];
    float factors[kTokenTiles];
    Walk late = at;  // what is added up
    int turn = 0;
    for (; !at.ended(share_); ++turn) {
      if (at.strip == at.round && (turn == 0 || args_.slices_per_block > 1))
        load_inputs(at.slice, inputs, factors);
      Walk next = at;
      next.advance(share_, kStrips);
      Scales next_scales;
      load_scales(next, next_scales);

      const int strips = min(kStrips, at.round_end(share_) - at.strip);
      float products[kStrips][kTokenTiles][4] = {};
      wait_copies<kSlots - kStrips>();
      if (has_block(at.slice)) multiply(strips, scales, inputs, products);
      const int buffer = turn % kBuffers;
      if (turn >= kBuffers) barrier_wait(shared_.empty + buffer, (turn / kBuffers - 1) % 2);
      store(buffer, products, factors);
      for (int i = 0; i < strips; ++i) {
        next_out_ = next_out_ + 1 == kSlots ? 0 : next_out_ + 1;
        fetch();
      }
      if (turn >= kLag) add_blocks(late, turn - kLag);
      at = next;
      scales = next_scales;
    }
    Walk last = late;
    for (int left = max(0, turn - kLag); left < turn; ++left) {
      last = late;
      add_blocks(late, left);
    }
    if (is_split())
      finish_round(last.round, nth_round(last), static_cast<int>(threadIdx.x), kThreads);
  }

 private:
  using SharedMemory = Shared<kKind, kTokenTiles>;
  using Walk = quatrain::cuda::Walk<kTokenTiles>;
  static constexpr int kTokens = SharedMemory::kTokens;
  static constexpr int kStrips = SharedMemory::kStrips;
  static constexpr int kSlots = kRing<kKind, kTokenTiles>;

  /// FP4: of a turn's strips, as WeightBlock has them.
  struct Scales {
    std::uint32_t of[kStrips][2];
  };

  __device__ bool is_split() const { return args_.slices > 1; }
  __device__ int nth_round(const Walk& at) const {
    return (at.round - share_.first) / kRound<kTokenTiles>;
  }
  __device__ int block_of(int slice) const { return slice * kSliceBlocks + warp_id(); }
  __device__ bool has_block(int slice) const { return block_of(slice) * kLinearBlock < args_.cols; }
  __device__ char* slot(int i) const {
    return shared_.ring + (warp_id() * kSlots + i) * kStripBytes<kKind> + lane_id() * 16;
  }

  __device__ void init_barriers() const {
    if (threadIdx.x == 0) {
      for (int i = 0; i < kBuffers; ++i) {
        barrier_init(shared_.full + i, kWarps * kWarpArrivals);
        barrier_init(shared_.empty + i, chunks() * kWarpArrivals);
      }
      for (int i = 0; i < 2; ++i) {
        barrier_init(shared_.complete + i, 1);
        barrier_init(shared_.taken + i, static_cast<int>(cluster_size()) * kWarpArrivals);
      }
      barrier_init_fence();
    }
    if (is_split())
      cluster_sync();
    else
      __syncthreads();
  }

  /// Starts the copy of the next strip into the slot that has fallen empty; one group per slot,
  /// with nothing in it at the end.
  __device__ void fetch() {
    if (!fetched_.ended(share_)) {
      if (has_block(fetched_.slice)) {
        if (fetched_.strip < source_first_ || fetched_.strip >= source_end_ ||
            fetched_.slice != source_slice_)
          find_source();
        source_.copy(fetched_.strip - source_first_, slot(next_in_));
        if constexpr (kKind == LinearKind::kFp8)
          if (lane_id() < 2) copy_scale();
      }
      fetched_.advance(share_, 1);
      next_in_ = next_in_ + 1 == kSlots ? 0 : next_in_ + 1;
    }
    commit_copies();
  }

  __device__ float* ring_scale(int slot) const {
    return shared_.ring_scales + (warp_id() * kSlots + slot) * 2 + lane_id();
  }
  /// Of the strip's first or last row, by the lane that reads it back.
  __device__ void copy_scale() const {
    if (source_scales_ == nullptr) {
      *ring_scale(next_in_) = 1;
      return;
    }
    const int row = min(
        source_row_ + (fetched_.strip - source_first_) * kStripRows + lane_id() * (kStripRows - 1),
        source_end_row_ - 1);
    const int columns = (args_.cols + kLinearBlock - 1) / kLinearBlock;
    copy4(shared_address(ring_scale(next_in_)), source_scales_ + row / kLinearBlock * columns);
  }

  __device__ void find_source() {
    const StreamProduct& product = args_.products[product_at(args_, part_, fetched_.strip)];
    const Strip first = strip_of(product, share_.group, product.first_strip);
    source_first_ = product.first_strip;
    source_end_ = source_first_ + (product.group_rows + kStripRows - 1) / kStripRows;
    source_slice_ = fetched_.slice;
    source_ = StripCopier<kKind>(product.w, first.row, first.end, block_of(fetched_.slice));
    source_row_ = first.row;
    source_end_row_ = first.end;
    source_scales_ = product.w.format == WeightFormat::kFp8Block
                         ? static_cast<const float*>(product.w.scales) + block_of(fetched_.slice)
                         : nullptr;
  }

  __device__ void load_scales(const Walk& at, Scales& scales) const {
    if constexpr (!kIsFp4<kKind>) return;
    if (at.ended(share_) || !has_block(at.slice)) return;
    const int last = at.round_end(share_) - 1;
#pragma unroll
    for (int i = 0; i < kStrips; ++i) {
      const int wanted = min(at.strip + i, last);
      const StreamProduct& product = args_.products[product_at(args_, part_, wanted)];
      const Strip strip = strip_of(product, share_.group, wanted);
      if constexpr (kIsFp4<kKind>)
        StripReader<kKind>(product.w, strip, block_of(at.slice)).load_scales(0, scales.of[i]);
    }
  }

  __device__ void load_inputs(int slice, InputBlock (&inputs)[kTokenTiles],
                              float (&factors)[kTokenTiles]) const {
    const InputRows rows{.x = args_.x,
                         .up = args_.up,
                         .limit = args_.limit,
                         .token0 = share_.token0,
                         .tokens = share_.tokens,
                         .group = share_.group,
                         .groups = args_.groups,
                         .cols = args_.cols};
    LaneInputs values[kTokenTiles];
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n)
      quatrain::cuda::load_inputs<kKind>(rows, 8 * n + lane_id() / 4,
                                         block_of(slice) * kLinearBlock, values[n]);
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) factors[n] = split_inputs<kKind>(values[n], inputs[n]);
  }

  __device__ void multiply(int strips, const Scales& scales,
                           const InputBlock (&inputs)[kTokenTiles],
                           float (&products)[kStrips][kTokenTiles][4]) const {
    constexpr int kPairs = kSteps / 2 / kPieces<kKind>;  // of steps that a piece holds
    WeightBlock<kKind> w[kStrips];
    const char* from[kStrips];
#pragma unroll
    for (int i = 0; i < kStrips; ++i) {
      const int at = next_out_ + min(i, strips - 1);
      from[i] = slot(at >= kSlots ? at - kSlots : at);
      if constexpr (kIsFp4<kKind>) {
        w[i].scale[0] = scales.of[i][0];
        w[i].scale[1] = scales.of[i][1];
      }
    }
#pragma unroll
    for (int pair = 0; pair < kSteps / 2; ++pair) {
      std::uint32_t a[kStrips][2][4];
#pragma unroll
      for (int i = 0; i < kStrips; ++i) {
        if (pair % kPairs == 0)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            w[i].piece[pair / kPairs][half] =
                StripCopier<kKind>::read_piece(from[i], pair / kPairs, half);
        decode_pair<kKind>(w[i], pair, a[i]);
      }
#pragma unroll
      for (int step = 0; step < 2; ++step)
#pragma unroll
        for (int part = 0; part < 2; ++part)
#pragma unroll
          for (int i = 0; i < kStrips; ++i)
#pragma unroll
            for (int n = 0; n < kTokenTiles; ++n) {
              const uint4& b = inputs[n].part[part][pair];
              mma_of<kKind>(products[i][n], a[i][step], step == 0 ? b.x : b.z,
                            step == 0 ? b.y : b.w);
            }
    }
  }

  /// A turn's products of this warp, and what they have to be scaled by.
  __device__ void store(int buffer, const float (&products)[kStrips][kTokenTiles][4],
                        const float (&factors)[kTokenTiles]) const {
    float* partials = shared_.partials + buffer * kStrips * SharedMemory::kStripPartials;
#pragma unroll
    for (int i = 0; i < kStrips; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = lane_id() / 4 + 8 * half;
        float* to = partials + ((i * kWarps + warp_id()) * kStripRows + row) * kTokens;
#pragma unroll
        for (int n = 0; n < kTokenTiles; ++n)
          *reinterpret_cast<float2*>(to + 8 * n + lane_id() % 4 * 2) = {
              products[i][n][2 * half], products[i][n][2 * half + 1]};
      }
    if constexpr (kKind == LinearKind::kFp8) {
      if (lane_id() < 2)
#pragma unroll
        for (int i = 0; i < kStrips; ++i) {
          const int at = next_out_ + i;
          shared_
              .scales[buffer * SharedMemory::kScales + (2 * i + lane_id()) * kWarps + warp_id()] =
              *ring_scale(at >= kSlots ? at - kSlots : at);
        }
      if (lane_id() % 4 == 0)
#pragma unroll
        for (int n = 0; n < kTokenTiles; ++n)
          shared_.factors[(buffer * kWarps + warp_id()) * kTokens + 8 * n + lane_id() / 4] =
              factors[n];
    }
    warp_arrive(shared_.full + buffer);
  }

  /// Sums of a turn, 32 groups of 4 to a warp; another one's turn it is each time.
  __device__ int chunks() const { return (kStrips * kStripRows * quads() + kWarp - 1) / kWarp; }

  /// The slice's sums of a turn, and on to the next: blocks in order, scaled. They go to the
  /// output, or to the block of the cluster that collects the row.
  __device__ void add_blocks(Walk& late, int turn) const {
    const Walk at = late;
    late.advance(share_, kStrips);
    const int chunk = (warp_id() - turn * chunks()) & (kWarps - 1);
    if (chunk >= chunks()) return;
    const int buffer = turn % kBuffers;
    const int nth = nth_round(at);
    const bool is_first_slice = at.slice == share_.first_slice;
    if (is_split()) {
      if (nth >= 2)  // what came two rounds ago has been taken everywhere
        wait_for_ranks(shared_.taken + nth % 2, static_cast<std::uint32_t>(nth / 2 - 1) % 2);
      if (is_first_slice && at.strip == at.round && chunk == 0 && lane_id() == 0)
        expect_round(at.round, nth);
    }
    barrier_wait(shared_.full + buffer, turn / kBuffers % 2);
    const int i = chunk * kWarp + lane_id();
    const int row = i % kStripRows, strip = i / kStripRows % kStrips;
    const int quad = i / (kStripRows * kStrips);
    if (quad < quads() && at.strip + strip < at.round_end(share_)) {
      const float4 sum = slice_sum(at, buffer, strip, row, quad);
      if (!is_split())
        write(at.strip + strip, row, quad, sum);
      else
        send(at.slice, (at.strip - at.round + strip) * kStripRows + row, quad, nth % 2, sum);
    }
    warp_arrive(shared_.empty + buffer);
    if (!is_split() || chunk > 0) return;
    // Half a round later the round before is long complete, and the one after has half a round to
    // learn of it.
    const int most = at.round_end(share_) - at.round - 1;
    const int wanted = min(kRound<kTokenTiles> / 2, most / kStrips * kStrips);
    if (nth > 0 && is_first_slice && at.strip - at.round == wanted)
      finish_round(at.round - kRound<kTokenTiles>, nth - 1, lane_id(), kWarp);
  }

  __device__ float4 slice_sum(const Walk& at, int buffer, int strip, int row, int quad) const {
    const int blocks = (args_.cols + kLinearBlock - 1) / kLinearBlock - at.slice * kSliceBlocks;
    const float* from = shared_.partials +
                        ((buffer * kStrips + strip) * kWarps * kStripRows + row) * kTokens +
                        4 * quad;
    const float* scales = shared_.scales + (buffer * kStrips + strip) * 2 * kWarps;
    if constexpr (kKind == LinearKind::kFp8) {
      const int wanted = at.strip + strip;
      const int first =
          strip_of(args_.products[product_at(args_, part_, wanted)], share_.group, wanted).row;
      if ((first + row) / kLinearBlock != first / kLinearBlock) scales += kWarps;
    }
    float4 p[kSliceBlocks];
#pragma unroll
    for (int b = 0; b < kSliceBlocks; ++b)
      p[b] = *reinterpret_cast<const float4*>(from + b * kStripRows * kTokens);
    float4 sum = {0, 0, 0, 0};
#pragma unroll
    for (int b = 0; b < kSliceBlocks; ++b) {
      float4 next = {sum.x + p[b].x, sum.y + p[b].y, sum.z + p[b].z, sum.w + p[b].w};
      if constexpr (kKind == LinearKind::kFp8) {
        const float4 f = *reinterpret_cast<const float4*>(
            shared_.factors + (buffer * kWarps + b) * kTokens + 4 * quad);
        const float scale = scales[b];
        next = {fmaf(p[b].x, scale * f.x, sum.x), fmaf(p[b].y, scale * f.y, sum.y),
                fmaf(p[b].z, scale * f.z, sum.z), fmaf(p[b].w, scale * f.w, sum.w)};
      }
      if (b < blocks) sum = next;
    }
    return sum;
  }

  __device__ int quads() const { return (share_.tokens + 3) / 4; }
  __device__ float* received(int parity, int slice, int row, int quad) const {
    return shared_.received +
           ((parity * args_.slices + slice) * args_.rows_per_block + row) * kTokens + 4 * quad;
  }

  /// Rows that this block collects of the round that starts with strip `round`.
  __device__ int rows_of_round(int round) const {
    const int rows = min(kRound<kTokenTiles>, share_.end - round) * kStripRows;
    return max(0, min(args_.rows_per_block,
                      rows - static_cast<int>(cluster_rank()) * args_.rows_per_block));
  }

  /// Announces what a round will bring.
  __device__ void expect_round(int round, int nth) const {
    barrier_expect(shared_.complete + nth % 2,
                   static_cast<std::uint32_t>(rows_of_round(round) * args_.slices * quads()) * 16u);
  }

  __device__ void send(int slice, int round_row, int quad, int parity, const float4& sum) const {
    int rank = 0, row = round_row;
    while (row >= args_.rows_per_block) {
      row -= args_.rows_per_block;
      ++rank;
    }
    send16(address_in_rank(shared_address(received(parity, slice, row, quad)),
                           static_cast<unsigned>(rank)),
           sum,
           address_in_rank(shared_address(shared_.complete + parity), static_cast<unsigned>(rank)));
  }

  /// Adds up the slices of this block's rows, in order; `first` of `threads` threads.
  __device__ void finish_round(int round, int nth, int first, int threads) const {
    wait_for_ranks(shared_.complete + nth % 2, static_cast<std::uint32_t>(nth / 2) % 2);
    const int first_row = static_cast<int>(cluster_rank()) * args_.rows_per_block;
    const int rows = rows_of_round(round);
    for (int i = first; i < rows * quads(); i += threads) {
      const int row = i % rows, quad = i / rows;
      float4 sum = *reinterpret_cast<const float4*>(received(nth % 2, 0, row, quad));
#pragma unroll 4
      for (int slice = 1; slice < args_.slices; ++slice) {
        const float4 s = *reinterpret_cast<const float4*>(received(nth % 2, slice, row, quad));
        sum = {sum.x + s.x, sum.y + s.y, sum.z + s.z, sum.w + s.w};
      }
      const int round_row = first_row + row;
      write(round + round_row / kStripRows, round_row % kStripRows, quad, sum);
    }
    // Whoever still has two rounds to go waits for this.
    if (round + 2 * kRound<kTokenTiles> < share_.end) warp_arrive_in_ranks(shared_.taken + nth % 2);
  }

  /// A row's sums times the scales that are left.
  __device__ void write(int at, int row, int quad, const float4& sum) const {
    const StreamProduct& product = args_.products[product_at(args_, part_, at)];
    const Strip strip = strip_of(product, share_.group, at);
    if (strip.row + row >= strip.end) return;
    float scale = 1;
    if (kKind == LinearKind::kFp8 && product.w.format != WeightFormat::kFp8Block)
      scale = row_scale(product.w, strip.row + row);
    const float values[4] = {sum.x, sum.y, sum.z, sum.w};
    const std::int64_t rows = product.w.rows;
    float* out = product.out + (share_.token0 + 4 * quad) * rows + strip.row + row;
    const float global = product.w.global_scale;
#pragma unroll
    for (int j = 0; j < 4; ++j, out += rows)
      if (4 * quad + j < share_.tokens) *out = values[j] * scale * global;
  }

  const LinearStream& args_;
  const StreamPart& part_;
  const SharedMemory shared_;
  const Share share_;
  Walk fetched_;                                              // the next strip to copy
  StripCopier<kKind> source_;                                 // its product
  int source_first_ = 0, source_end_ = 0, source_slice_ = 0;  // strips; of the columns
  int source_row_ = 0, source_end_row_ = 0;
  const float* source_scales_ = nullptr;  // FP8 blocks: of the warp's columns
  int next_in_ = 0, next_out_ = 0;        // slots
};

template <int kTokenTiles>
__global__ void __launch_bounds__(kThreads, 2)
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
constexpr std::int64_t kMuchBytes = 96 << 10;  // for a multiprocessor
constexpr int kMaxSlices = 5 * kMaxClusterBlocks;

/// Rows of a round whose sums a block of the cluster collects.
template <int kTokenTiles>
constexpr int rows_per_block(int cluster_blocks) {
  return ceil_div(kRound<kTokenTiles> * kStripRows, cluster_blocks);
}

/// Shared memory that any kind of weight gets by with.
template <int kTokenTiles>
constexpr std::size_t shared_bytes(int slices, int cluster_blocks) {
  const std::size_t work = std::max({Shared<LinearKind::kBf16, kTokenTiles>::kBytes,
                                     Shared<LinearKind::kFp8, kTokenTiles>::kBytes,
                                     Shared<LinearKind::kNvfp4, kTokenTiles>::kBytes});
  const int rows = slices > 1 ? 2 * slices * rows_per_block<kTokenTiles>(cluster_blocks) : 0;
  return work + static_cast<std::size_t>(rows) * 8 * kTokenTiles * 4;
}
static_assert(shared_bytes<1>(kMaxSlices, kMaxClusterBlocks) <= kMaxShared);
static_assert(shared_bytes<2>(kMaxSlices, kMaxClusterBlocks) <= kMaxShared);

/// Of one slice.
std::int64_t strip_bytes(LinearKind kind) {
  return kind == LinearKind::kBf16 ? 32768 : kind == LinearKind::kFp8 ? 16384 : 8192;
}

/// Of all parts and one group.
std::int64_t weight_bytes(const LinearStream& args) {
  std::int64_t bytes = 0;
  for (int p = 0; p < args.parts; ++p)
    bytes += args.part[p].strips * strip_bytes(args.part[p].kind);
  return bytes;
}

/// Shares `clusters` out over the parts by their bytes, at least one for each group.
void share_out(LinearStream& args, int clusters) {
  std::int64_t bytes_left = weight_bytes(args);
  int left = std::max(1, clusters / args.groups), first = 0;
  for (int p = 0; p < args.parts; ++p) {
    StreamPart& part = args.part[p];
    const std::int64_t bytes = part.strips * strip_bytes(part.kind);
    const int fair = static_cast<int>((left * bytes + bytes_left / 2) / bytes_left);
    part.clusters = std::clamp(fair, 1, part.strips);
    part.first_cluster = first;
    first += part.clusters * args.groups;
    left = std::max(0, left - part.clusters);
    bytes_left -= bytes;
  }
}

int multiprocessors() {
  static const int count = [] {
    int device = 0, found = 0;
    QT_CUDA(cudaGetDevice(&device));
    QT_CUDA(cudaDeviceGetAttribute(&found, cudaDevAttrMultiProcessorCount, device));
    return found;
  }();
  return count;
}

template <int kTokenTiles>
void launch_stream(LinearStream args, cudaStream_t stream) {
  const auto kernel = stream_kernel<kTokenTiles>;
  args.slices_per_block = ceil_div(args.slices, kMaxClusterBlocks);
  const int blocks = ceil_div(args.slices, args.slices_per_block);
  args.rows_per_block = rows_per_block<kTokenTiles>(blocks);
  LaunchShape shape{.grid = static_cast<unsigned>(blocks),
                    .block = kThreads,
                    .shared = shared_bytes<kTokenTiles>(args.slices, blocks),
                    .cluster_x = static_cast<unsigned>(blocks),
                    // Blocks that start early take room from the kernel before: a step of three
                    // V4-Flash layers took 847 us with that and 820 without, of 16 rows 5 % more.
                    .starts_early = false};
  // A property of the chip and the slices, asked for once.
  static std::array<std::atomic<int>, kMaxSlices + 1> known;
  std::atomic<int>& resident = known[static_cast<std::size_t>(args.slices)];
  if (resident == 0) {
    allow_shared(kernel, kMaxShared);
    resident = resident_clusters(kernel, shape);
  }
  // Where a block would have much to do, two to a multiprocessor hide more of each other's
  // latencies than the next kernel's start is worth.
  const bool is_much =
      weight_bytes(args) * args.groups * args.slices > kMuchBytes * multiprocessors();
  share_out(args, std::clamp((is_much ? 2 : 1) * multiprocessors() / blocks, 1, resident.load()));
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

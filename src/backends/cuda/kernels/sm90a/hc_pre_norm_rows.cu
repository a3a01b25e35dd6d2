// SPDX-License-Identifier: Apache-2.0
// hc_pre_norm of more tokens, in two launches with the sums and so the bits of hc_pre_norm.cu.
//
// The first updates the streams and adds up every unit's part of the mixes. A warp holds the `fn`
// of its unit in registers and walks over tokens on its own, with the next ones on their way to its
// ring in shared memory; no block waits for another. A unit has as many channels as a warp has
// lanes, so its parts wait in the very place of the result that its channels take in the end. With
// many tokens it pays to order the weights for the exchanges among lanes (OrderedChannel).
//
// The second takes a block per token: it adds the parts up, balances the matrix in a warp of its
// own, and collapses the streams, which are on their way to registers from the start.
#include <algorithm>
#include <cstddef>

#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/hc_site.cuh"
#include "backends/cuda/launch/launch.h"

namespace quatrain::cuda {
namespace {

using namespace hc;

constexpr int kLeastRows = 9;   // fewer are one turn of the clusters
constexpr int kManyRows = 256;  // for which it pays to order a warp's weights
constexpr int kMaxGroups = 16;  // of tokens

// ---- streams and parts of the mixes ----

constexpr int kUpdateWarps = 8;
constexpr int kRing = 8;  // tokens of a warp that have a place

// What a unit needs of one token.
struct alignas(16) Stage {
  float streams[kHc][kWarp];
  float f[kWarp];
  float4 post;
  float4 comb[kHc];
};
constexpr int kChunks = kWarp / 4;  // of 16 bytes in a row of a stage
constexpr int kUpdateChunks = kChunks + 1 + kHc;
static_assert(kHc * kChunks == kWarp && kUpdateChunks <= kWarp);

// What a lane copies of one token after the other: lane l chunk l of the streams and, of what the
// update needs, chunk l of f, post and comb.
class LaneCopies {
 public:
  // From token t on.
  __device__ LaneCopies(const HcPreNormArgs& args, std::int64_t t, int unit, Stage* ring)
      : stage_(shared_address(ring)) {
    const std::int64_t width = args.pre.width;
    const int lane = lane_id();
    const int channel = unit * kWarp + lane % kChunks * 4;
    streams_ = args.pre.streams + (t * kHc + lane / kChunks) * width + channel;
    streams_step_ = kHc * width;
    if (args.update.f == nullptr || lane >= kUpdateChunks) return;
    if (lane < kChunks) {
      update_ = args.update.f + t * width + channel;
      update_step_ = args.pre.width;
      update_to_ = offsetof(Stage, f) + 16 * lane;
    } else if (lane == kChunks) {
      update_ = args.update.post + t * kHc;
      update_step_ = kHc;
      update_to_ = offsetof(Stage, post);
    } else {
      const int row = lane - kChunks - 1;
      update_ = args.update.comb + (t * kHc + row) * kHc;
      update_step_ = kHc * kHc;
      update_to_ = offsetof(Stage, comb) + 16 * row;
    }
  }

  // The next token, to a place of the ring.
  __device__ void fetch(int place) {
    const std::uint32_t stage = stage_ + place * static_cast<std::uint32_t>(sizeof(Stage));
    copy16(stage + 16 * lane_id(), streams_);
    streams_ += streams_step_;
    if (update_ == nullptr) return;
    copy16(stage + update_to_, update_);
    update_ += update_step_;
  }

 private:
  static_assert(offsetof(Stage, streams) == 0);
  const float* streams_;
  const float* update_ = nullptr;
  std::int64_t streams_step_;
  int update_step_ = 0;
  std::uint32_t stage_, update_to_ = 0;
};

template <class AnyChannel>
__global__ void __launch_bounds__(kUpdateWarps* kWarp, 2)
    hc_update_kernel(const __grid_constant__ HcPreNormArgs args) {
  __shared__ Stage stages[kUpdateWarps][kRing];
  let_next_start();
  const HcPreArgs& site = args.pre;
  const std::int64_t width = site.width;
  const int unit = static_cast<int>(blockIdx.x) * kUpdateWarps + warp_id();
  if (unit * kWarp >= site.width) return wait_for_previous();
  const int channel_index = unit * kWarp + lane_id();
  const AnyChannel channel(site, channel_index);
  const int groups = static_cast<int>(gridDim.y), group = static_cast<int>(blockIdx.y);
  const int begin = site.rows * group / groups, end = site.rows * (group + 1) / groups;
  Stage* ring = stages[warp_id()];
  LaneCopies copies(args, begin, unit, ring);
  wait_for_previous();
#pragma unroll
  for (int i = 0; i < kRing - 1; ++i) {
    if (begin + i < end) copies.fetch(i);
    commit_copies();
  }
  float* out = site.out + begin * width + channel_index;
  float* updated = args.update.streams + begin * kHc * width + channel_index;
  const bool updates = args.update.f != nullptr;
  for (int i = 0; i < end - begin; ++i) {
    wait_copies<kRing - 2>();
    __syncwarp();  // token i is there for all lanes, and i − 1 has been used
    if (i + kRing - 1 < end - begin) copies.fetch((i + kRing - 1) % kRing);
    commit_copies();
    const Stage& stage = ring[i % kRing];
    float v[kHc];
#pragma unroll
    for (int s = 0; s < kHc; ++s) v[s] = stage.streams[s][lane_id()];
    if (updates) {
      float old[kHc];
#pragma unroll
      for (int s = 0; s < kHc; ++s) old[s] = v[s];
      update_channel(stage.f[lane_id()], stage.post, stage.comb, old, v);
#pragma unroll
      for (int s = 0; s < kHc; ++s) updated[s * width] = v[s];
      updated += kHc * width;
    }
    *out = unit_values(channel, v);
    out += width;
  }
}

// ---- the collapse ----

constexpr int kUnitsPerWarp = 8;
constexpr int kMaxCollapseWarps = kMaxRanks * kMaxUnits / kUnitsPerWarp;  // one more balances
constexpr int kFewCollapseWarps = 16;  // of which a processor holds two blocks
constexpr int kChannelsBarrier = 1;    // the warps of channels

// For up to kWarps warps of channels.
template <int kWarps>
__global__ void __launch_bounds__((kWarps + 1) * kWarp, kWarps > kFewCollapseWarps ? 1 : 2)
    hc_collapse_kernel(const __grid_constant__ HcPreNormArgs args, int ranks, int units_per_rank) {
  __shared__ float slices[kMaxRanks][kWarp];
  __shared__ float squares[kMaxRanks * kMaxUnits];
  const HcPreArgs& site = args.pre;
  const std::int64_t t = blockIdx.x, width = site.width;
  const int units = ranks * units_per_rank, warps = warps_in_block() - 1;
  const MixScales scales(site);
  wait_for_previous();
  float* out = site.out + t * width + lane_id();
  const int first_unit = warp_id() * kUnitsPerWarp;
  const int own_units = warp_id() < warps ? units - first_unit : 0;
  const float* streams = site.streams + t * kHc * width + first_unit * kWarp + lane_id();
  float v[kUnitsPerWarp][kHc];
#pragma unroll
  for (int j = 0; j < kUnitsPerWarp; ++j)
#pragma unroll
    for (int s = 0; s < kHc; ++s) v[j][s] = j < own_units ? streams[s * width + j * kWarp] : 0.0f;
  for (int r = warp_id(); r < ranks; r += warps + 1) {
    float sum = 0;
#pragma unroll 8
    for (int u = 0; u < units_per_rank; ++u) sum += out[(r * units_per_rank + u) * kWarp];
    slices[r][lane_id()] = sum;
  }
  __syncthreads();  // the parts have been read
  let_next_start();
  const float mix = mix_of(slices, site, ranks, scales);
  if (warp_id() == warps) return balance(site, t, mix);
  const float pre = sigmoid(mix) + site.hc_eps;
  float y[kUnitsPerWarp];
#pragma unroll
  for (int j = 0; j < kUnitsPerWarp; ++j) {
    y[j] = collapse(pre, v[j]);
    const float sum = unit_squares(y[j]);
    if (j < own_units && lane_id() == 0) squares[first_unit + j] = sum;
  }
  named_sync(kChannelsBarrier, warps * kWarp);
  const float factor = norm_factor(squares, units, site.width, args.eps);
#pragma unroll
  for (int j = 0; j < kUnitsPerWarp; ++j) {
    if (j >= own_units) continue;
    const int at = (first_unit + j) * kWarp;
    out[at] = load_weight(args.norm_weight + at + lane_id()) * (y[j] * factor);
  }
}

}  // namespace

bool has_hc_pre_norm_rows(const HcPreNormArgs& args) {
  const int width = args.pre.width;
  return args.pre.rows >= kLeastRows && width == ranks_for(width) * slice_of(width) &&
         slice_of(width) % kWarp == 0;
}

void hc_pre_norm_rows(const HcPreNormArgs& args, cudaStream_t stream) {
  const int ranks = ranks_for(args.pre.width), units_per_rank = slice_of(args.pre.width) / kWarp;
  const int units = ranks * units_per_rank, rows = args.pre.rows;
  // Every group reads all of fn, so there are about as many as tokens in a group.
  int groups = 1;
  while (groups < kMaxGroups && groups * groups < rows) groups *= 2;
  const dim3 update_grid(static_cast<unsigned>((units + kUpdateWarps - 1) / kUpdateWarps),
                         static_cast<unsigned>(groups));
  const auto update =
      rows < kManyRows ? hc_update_kernel<Channel> : hc_update_kernel<OrderedChannel>;
  launch(update, {.grid = update_grid, .block = kUpdateWarps * kWarp}, stream, args);
  const int warps = (units + kUnitsPerWarp - 1) / kUnitsPerWarp;  // of channels
  const auto collapse = warps > kFewCollapseWarps ? hc_collapse_kernel<kMaxCollapseWarps>
                                                  : hc_collapse_kernel<kFewCollapseWarps>;
  launch(collapse,
         {.grid = static_cast<unsigned>(rows), .block = static_cast<unsigned>((warps + 1) * kWarp)},
         stream, args, ranks, units_per_rank);
}

}  // namespace quatrain::cuda

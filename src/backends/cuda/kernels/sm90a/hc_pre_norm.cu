// SPDX-License-Identifier: Apache-2.0
// hc_pre_norm of few tokens: the update of the streams by the sub-layer before (hc_post), then
// mixes, Sinkhorn and collapse of a hyper-connection site (hc_pre), and the RMS norm after it, in
// one launch; hc_pre_norm_rows.cu has the kernels for more.
//
// A cluster of blocks takes a token at a time. A thread owns one channel of all streams. Its part
// of `fn`, the bulk of the bytes, is on its way before the kernel in front has ended: to registers,
// or of one token to shared memory, which takes less code; but then the next kernel's blocks find
// no room beside these, and clusters of several tokens are on half of the chip. Blocks send each
// other their parts of the mixes, then of the norm's squares, and count the bytes that came; one
// warp more balances the matrix meanwhile.
#include <algorithm>
#include <atomic>
#include <type_traits>

#include "backends/cuda/device/cluster.cuh"
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/hc_site.cuh"
#include "backends/cuda/launch/launch.h"

namespace quatrain::cuda {
namespace {

using namespace hc;

constexpr int kFewUnits = 8;  // of a slice

// Named barriers of a block.
constexpr int kPartsBarrier = 1;  // warps of channels: their parts of the mixes are there
constexpr int kReadBarrier = 2;   // all warps: the cluster's parts have been read

struct Shared {
  Barrier mixes_came, squares_came;
  float units[kMaxUnits][kWarp];         // values of this block's
  float slices[kMaxRanks][kWarp];        // values of all blocks
  float squares[kMaxRanks * kMaxUnits];  // of all units of all blocks
};

// This thread's channel of all streams of a token, once the update before has been applied to it.
__device__ void load_channel(const HcPreNormArgs& args, std::int64_t t, int channel,
                             float (&v)[kHc]) {
  const std::int64_t width = args.pre.width;
  const float* streams = args.pre.streams + t * kHc * width + channel;
  float old[kHc];
#pragma unroll
  for (int s = 0; s < kHc; ++s) old[s] = streams[s * width];
  if (args.update.f == nullptr) {
#pragma unroll
    for (int s = 0; s < kHc; ++s) v[s] = old[s];
    return;
  }
  const auto* post = reinterpret_cast<const float4*>(args.update.post + t * kHc);
  const auto* from = reinterpret_cast<const float4*>(args.update.comb + t * kHc * kHc);
  const float4 comb[kHc] = {from[0], from[1], from[2], from[3]};
  update_channel(args.update.f[t * width + channel], *post, comb, old, v);
  float* updated = args.update.streams + t * kHc * width + channel;
#pragma unroll
  for (int s = 0; s < kHc; ++s) updated[s * width] = v[s];
}

template <int kMostUnits, bool kOneToken>
__global__ void __launch_bounds__((kMostUnits + 1) * kWarp, 1)
    hc_pre_norm_kernel(const __grid_constant__ HcPreNormArgs args, int slice) {
  __shared__ Shared shared;
  extern __shared__ __align__(16) float unit_weights[];  // UnitWeights of every warp of channels
  const HcPreArgs& site = args.pre;
  const int blocks = static_cast<int>(cluster_size());
  const int rank = static_cast<int>(cluster_rank());
  const int units = warps_in_block() - 1;
  const bool balances = warp_id() == units;
  if (threadIdx.x == 0) {
    barrier_init(&shared.mixes_came, 1);
    barrier_init(&shared.squares_came, 1);
    barrier_init_fence();
  }
  cluster_arrive();
  const int of_slice = static_cast<int>(threadIdx.x);
  int index = rank * slice + of_slice;
  if (of_slice >= slice || index >= site.width) index = -1;
  using AnyChannel = std::conditional_t<kOneToken, SharedChannel, Channel>;
  const AnyChannel channel = [&] {
    if constexpr (kOneToken) {
      UnitWeights& weights = reinterpret_cast<UnitWeights*>(unit_weights)[balances ? 0 : warp_id()];
      if (!balances) fetch_unit(site, rank * slice + warp_id() * kWarp, weights);
      return SharedChannel{weights};
    } else {
      return Channel(site, index);  // zeros in the warp that balances
    }
  }();
  const float norm_weight = index < 0 ? 0.0f : load_weight(args.norm_weight + index);
  const MixScales scales(site);
  wait_for_previous();
  cluster_wait();  // all blocks are there and have barriers

  std::uint32_t parity = 0;
  for (int t = static_cast<int>(cluster_index()); t < site.rows;
       t += static_cast<int>(cluster_count()), parity ^= 1) {
    if (threadIdx.x == 0) {
      barrier_expect(&shared.mixes_came, static_cast<std::uint32_t>(blocks * kValues * 4));
      barrier_expect(&shared.squares_came, static_cast<std::uint32_t>(blocks * units * 4));
    }
    if (balances) {
      wait_for_ranks(&shared.mixes_came, parity);
      const float mix = mix_of(shared.slices, site, blocks, scales);
      named_arrive(kReadBarrier, static_cast<int>(blockDim.x));
      if (t % blocks == rank) balance(site, t, mix);  // the blocks take turns
      continue;
    }
    float v[kHc] = {};
    if (index >= 0) load_channel(args, t, index, v);
    if constexpr (kOneToken) await_unit();
    shared.units[warp_id()][lane_id()] = unit_values(channel, v);
    named_sync(kPartsBarrier, units * kWarp);
    let_next_start();  // all that this kernel reads has come
    float sum = 0;
    for (int u = 0; u < units; ++u) sum += shared.units[u][lane_id()];
    if (lane_id() < kValues)
      for (int to = warp_id(); to < blocks; to += units)
        send_to_rank(&shared.slices[rank][lane_id()], sum, &shared.mixes_came,
                     static_cast<unsigned>(to));
    wait_for_ranks(&shared.mixes_came, parity);
    const float pre = sigmoid(mix_of(shared.slices, site, blocks, scales)) + site.hc_eps;
    const float y = collapse(pre, v);
    const float squares = unit_squares(y);
    // Once all blocks have read the mixes, the next ones may come.
    named_sync(kReadBarrier, static_cast<int>(blockDim.x));
    if (lane_id() < blocks)
      send_to_rank(&shared.squares[rank * units + warp_id()], squares, &shared.squares_came,
                   static_cast<unsigned>(lane_id()));
    wait_for_ranks(&shared.squares_came, parity);
    const float factor = norm_factor(shared.squares, blocks * units, site.width, args.eps);
    if (index >= 0) site.out[std::int64_t{t} * site.width + index] = norm_weight * (y * factor);
  }
}

// ---- host ----

// Clusters that the chip holds: a property of the shape, asked for once.
template <int kMostUnits, bool kOneToken>
int resident(LaunchShape shape) {
  static std::atomic<int> all[2][kMaxUnits + 2];
  std::atomic<int>& known = all[shape.cluster_x == kMaxRanks][shape.block.x / kWarp];
  if (known == 0) {
    const auto kernel = hc_pre_norm_kernel<kMostUnits, kOneToken>;
    QT_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    allow_shared(kernel, kOneToken ? kMostUnits * sizeof(UnitWeights) : 0);
    shape.grid = shape.cluster_x;
    known = resident_clusters(kernel, shape);
  }
  return known;
}

template <int kMostUnits, bool kOneToken>
void launch_site(const HcPreNormArgs& args, cudaStream_t stream) {
  const int ranks = ranks_for(args.pre.width), slice = slice_of(args.pre.width);
  const int units = (slice + kWarp - 1) / kWarp;
  LaunchShape shape{.block = static_cast<unsigned>(units + 1) * kWarp,
                    .shared = kOneToken ? static_cast<std::size_t>(units) * sizeof(UnitWeights) : 0,
                    .cluster_x = static_cast<unsigned>(ranks)};
  const int clusters = std::min(args.pre.rows, resident<kMostUnits, kOneToken>(shape));
  shape.grid = static_cast<unsigned>(ranks * clusters);
  launch(hc_pre_norm_kernel<kMostUnits, kOneToken>, shape, stream, args, slice);
}

template <int kMostUnits>
void launch_site(const HcPreNormArgs& args, cudaStream_t stream) {
  // Shared memory is filled 16 bytes at a time.
  if (args.pre.rows == 1 && slice_of(args.pre.width) % 4 == 0)
    launch_site<kMostUnits, true>(args, stream);
  else
    launch_site<kMostUnits, false>(args, stream);
}

}  // namespace

bool has_hc_pre_norm(int hc, int width) {
  return hc == kHc && slice_of(width) <= kMaxUnits * kWarp;
}

void hc_pre_norm(const HcPreNormArgs& args, cudaStream_t stream) {
  if (args.pre.rows == 0) return;
  if (has_hc_pre_norm_rows(args)) return hc_pre_norm_rows(args, stream);
  if (slice_of(args.pre.width) > kFewUnits * kWarp)
    launch_site<kMaxUnits>(args, stream);
  else
    launch_site<kFewUnits>(args, stream);
}

}  // namespace quatrain::cuda

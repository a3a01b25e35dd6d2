// SPDX-License-Identifier: Apache-2.0
// hc_pre_norm: the update of the streams by the sub-layer before (hc_post), then mixes, Sinkhorn
// and collapse of a hyper-connection site (hc_pre), and the RMS norm after it.
//
// A cluster of blocks takes a few tokens at a time. A thread owns one channel of all streams and
// holds its part of `fn`, the bulk of the bytes, in registers: it is on its way before the kernel
// in front has ended, and serves all tokens. Blocks send each other their parts of the mixes, then
// of the norm's squares, and count the bytes that came; one warp more balances the matrix
// meanwhile. Sums have the order of warps and blocks, so a token's bits depend on the width alone.
#include <algorithm>
#include <atomic>

#include "backends/cuda/device/cluster.cuh"
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/scalar.cuh"
#include "backends/cuda/launch/hyper_connections.h"
#include "backends/cuda/launch/launch.h"

namespace quatrain::cuda {
namespace {

constexpr int kHc = 4;                   // streams
constexpr int kMixes = (2 + kHc) * kHc;  // 24
constexpr int kValues = kMixes + 1;      // mixes, and the squares of the streams
constexpr int kGroup = 8;                // mixes that are summed over a warp together
constexpr int kMaxBlocks = 16;           // of a cluster
constexpr int kMaxWarps = 14;            // of channels; one more balances
constexpr int kFewWarps = 8;
static_assert(kMixes % kGroup == 0 && kValues <= kWarp);

// Named barriers of a block.
constexpr int kPartsBarrier = 1;  // warps of channels: their parts of the mixes are there
constexpr int kReadBarrier = 2;   // all warps: the cluster's parts have been read

template <int kTokens>
struct Shared {
  Barrier mixes_came, squares_came;
  float warp_parts[kMaxWarps][kTokens][kWarp];
  float parts[kTokens][kMaxBlocks][kWarp];         // of all blocks
  float squares[kTokens][kMaxBlocks * kMaxWarps];  // of all warps of all blocks
};

__device__ inline float load_weight(const float* from) {
  float value;
  asm volatile("ld.global.nc.L1::no_allocate.f32 %0, [%1];" : "=f"(value) : "l"(from));
  return value;
}

__device__ inline float reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Logits to a nearly doubly stochastic matrix (2.2); lane j of each four holds row j.
__device__ void sinkhorn(float (&row)[kHc], int iterations, float eps) {
  const auto scale_row = [&](float part) {
#pragma unroll
    for (int k = 0; k < kHc; ++k) row[k] *= part;
  };
  const float largest = fmaxf(fmaxf(row[0], row[1]), fmaxf(row[2], row[3]));
#pragma unroll
  for (int k = 0; k < kHc; ++k) row[k] = expf(row[k] - largest);
  scale_row(1.0f / ((row[0] + row[1]) + (row[2] + row[3])));
#pragma unroll
  for (int k = 0; k < kHc; ++k) row[k] += eps;
  for (int i = 0; i < iterations; ++i) {
    if (i > 0) scale_row(reciprocal(((row[0] + row[1]) + (row[2] + row[3])) + eps));
    float column[kHc];
#pragma unroll
    for (int k = 0; k < kHc; ++k) column[k] = row[k] + __shfl_xor_sync(kAllLanes, row[k], 1);
#pragma unroll
    for (int k = 0; k < kHc; ++k) {
      column[k] += __shfl_xor_sync(kAllLanes, column[k], 2);
      row[k] *= reciprocal(column[k] + eps);
    }
  }
}

// Sums each of x[0, kGroup) over the warp; lane l returns the sum of x[l % kGroup].
__device__ float sum_group(float (&x)[kGroup]) {
#pragma unroll
  for (int half = kGroup / 2; half > 0; half /= 2) {
    const bool upper = (lane_id() & half) != 0;  // keeps the upper half, and gives the lower away
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float kept = upper ? x[i + half] : x[i];
      const float given = upper ? x[i] : x[i + half];
      x[i] = kept + __shfl_xor_sync(kAllLanes, given, half);
    }
  }
  float sum = x[0];
  sum += __shfl_xor_sync(kAllLanes, sum, kGroup);
  return sum + __shfl_xor_sync(kAllLanes, sum, 2 * kGroup);
}

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
  const float f = args.update.f[t * width + channel];
  const float4 post = *reinterpret_cast<const float4*>(args.update.post + t * kHc);
  v[0] = post.x * f;
  v[1] = post.y * f;
  v[2] = post.z * f;
  v[3] = post.w * f;
#pragma unroll
  for (int j = 0; j < kHc; ++j) {
    const float4 comb = *reinterpret_cast<const float4*>(args.update.comb + (t * kHc + j) * kHc);
    v[0] = fmaf(comb.x, old[j], v[0]);
    v[1] = fmaf(comb.y, old[j], v[1]);
    v[2] = fmaf(comb.z, old[j], v[2]);
    v[3] = fmaf(comb.w, old[j], v[3]);
  }
  float* updated = args.update.streams + t * kHc * width + channel;
#pragma unroll
  for (int s = 0; s < kHc; ++s) updated[s * width] = v[s];
}

// What the warps of channels hold for the whole launch.
struct Channel {
  int index;  // of this thread, or −1
  float fn[kMixes][kHc];
  float norm_weight;

  __device__ Channel(const HcPreNormArgs& args, int slice) {
    const int thread = static_cast<int>(threadIdx.x);
    index = static_cast<int>(cluster_rank()) * slice + thread;
    if (thread >= slice || index >= args.pre.width) index = -1;
#pragma unroll
    for (int i = 0; i < kMixes; ++i)
#pragma unroll
      for (int s = 0; s < kHc; ++s)
        fn[i][s] =
            index < 0
                ? 0.0f
                : load_weight(args.pre.fn + std::int64_t{i * kHc + s} * args.pre.width + index);
    norm_weight = index < 0 ? 0.0f : load_weight(args.norm_weight + index);
  }

  // This warp's part of a token's mixes and squares.
  __device__ void add_up(const float (&v)[kHc], float* out) const {
#pragma unroll
    for (int g = 0; g < kMixes; g += kGroup) {
      float sums[kGroup];
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        sums[i] = fn[g + i][0] * v[0];
#pragma unroll
        for (int s = 1; s < kHc; ++s) sums[i] = fmaf(fn[g + i][s], v[s], sums[i]);
      }
      const float total = sum_group(sums);
      if (lane_id() < kGroup) out[g + lane_id()] = total;
    }
    const float squares = warp_sum((v[0] * v[0] + v[1] * v[1]) + (v[2] * v[2] + v[3] * v[3]));
    if (lane_id() == 0) out[kMixes] = squares;
  }
};

// The mixes' weights and biases, a lane per mix.
struct MixScales {
  float base = 0, scale = 0;
  __device__ explicit MixScales(const HcPreArgs& site) {
    if (lane_id() >= kMixes) return;
    base = load_weight(site.base + lane_id());
    scale = load_weight(site.scale + (lane_id() < kHc ? 0 : lane_id() < 2 * kHc ? 1 : 2));
  }
};

// A token's mixes from the cluster's parts, biased; lane i returns mix i.
template <int kTokens>
__device__ float mix_of(const Shared<kTokens>& shared, const HcPreArgs& site, int t, int blocks,
                        const MixScales& scales) {
  float sum = 0;
#pragma unroll 4
  for (int r = 0; r < blocks; ++r) sum += shared.parts[t][r][lane_id()];
  const float squares = __shfl_sync(kAllLanes, sum, kMixes);
  const float factor = rms_factor(squares, kHc * site.width, site.norm_eps);
  return sum * factor * scales.scale + scales.base;
}

// By one warp: post and comb of token t of the step from its mixes.
__device__ void balance(const HcPreArgs& site, std::int64_t t, float mix) {
  const int lane = lane_id();
  if (lane / kHc == 1) site.post[t * kHc + lane % kHc] = 2.0f * sigmoid(mix);
  float row[kHc];
#pragma unroll
  for (int k = 0; k < kHc; ++k)
    row[k] = __shfl_sync(kAllLanes, mix, 2 * kHc + lane % kHc * kHc + k);
  sinkhorn(row, site.sinkhorn_iters, site.hc_eps);
  if (lane < kHc)
    *reinterpret_cast<float4*>(site.comb + (t * kHc + lane) * kHc) = {row[0], row[1], row[2],
                                                                      row[3]};
}

template <int kTokens, int kMostWarps>
__global__ void __launch_bounds__((kMostWarps + 1) * kWarp, 1)
    hc_pre_norm_kernel(const __grid_constant__ HcPreNormArgs args, int slice) {
  __shared__ Shared<kTokens> shared;
  let_next_start();
  const HcPreArgs& site = args.pre;
  const int blocks = static_cast<int>(cluster_size());
  const int rank = static_cast<int>(cluster_rank());
  const int warps = warps_in_block() - 1;
  const bool balances = warp_id() == warps;
  if (threadIdx.x == 0) {
    barrier_init(&shared.mixes_came, 1);
    barrier_init(&shared.squares_came, 1);
    barrier_init_fence();
  }
  cluster_arrive();
  const Channel channel(args, slice);  // zeros in the warp that balances
  const MixScales scales(site);
  wait_for_previous();
  cluster_wait();  // all blocks are there and have barriers

  std::uint32_t parity = 0;
  for (int t0 = static_cast<int>(cluster_index()) * kTokens; t0 < site.rows;
       t0 += static_cast<int>(cluster_count()) * kTokens, parity ^= 1) {
    const int tokens = min(kTokens, site.rows - t0);
    if (threadIdx.x == 0) {
      barrier_expect(&shared.mixes_came, static_cast<std::uint32_t>(blocks * tokens * kValues * 4));
      barrier_expect(&shared.squares_came, static_cast<std::uint32_t>(blocks * warps * tokens * 4));
    }
    if (balances) {
      wait_for_ranks(&shared.mixes_came, parity);
      float mixes[kTokens];
#pragma unroll
      for (int t = 0; t < kTokens; ++t)
        mixes[t] = t < tokens ? mix_of(shared, site, t, blocks, scales) : 0.0f;
      named_arrive(kReadBarrier, static_cast<int>(blockDim.x));
      // The blocks take turns.
#pragma unroll
      for (int t = 0; t < kTokens; ++t)
        if (t < tokens && (t0 + t) % blocks == rank) balance(site, t0 + t, mixes[t]);
      continue;
    }
    float v[kTokens][kHc] = {};
#pragma unroll
    for (int t = 0; t < kTokens; ++t)
      if (t < tokens && channel.index >= 0) load_channel(args, t0 + t, channel.index, v[t]);
#pragma unroll
    for (int t = 0; t < kTokens; ++t)
      if (t < tokens) channel.add_up(v[t], shared.warp_parts[warp_id()][t]);
    named_sync(kPartsBarrier, warps * kWarp);
    for (int t = 0; t < tokens; ++t) {
      float sum = 0;
      for (int w = 0; w < warps; ++w) sum += shared.warp_parts[w][t][lane_id()];
      if (lane_id() < kValues)
        for (int to = warp_id(); to < blocks; to += warps)
          send_to_rank(&shared.parts[t][rank][lane_id()], sum, &shared.mixes_came,
                       static_cast<unsigned>(to));
    }
    wait_for_ranks(&shared.mixes_came, parity);
    float y[kTokens], squares[kTokens];
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (t >= tokens) continue;
      const float pre = sigmoid(mix_of(shared, site, t, blocks, scales)) + site.hc_eps;
      y[t] = 0;
#pragma unroll
      for (int s = 0; s < kHc; ++s) y[t] = fmaf(__shfl_sync(kAllLanes, pre, s), v[t][s], y[t]);
      squares[t] = warp_sum(y[t] * y[t]);
    }
    // Once all blocks have read the mixes, the next ones may come.
    named_sync(kReadBarrier, static_cast<int>(blockDim.x));
#pragma unroll
    for (int t = 0; t < kTokens; ++t)
      if (t < tokens && lane_id() < blocks)
        send_to_rank(&shared.squares[t][rank * warps + warp_id()], squares[t], &shared.squares_came,
                     static_cast<unsigned>(lane_id()));
    wait_for_ranks(&shared.squares_came, parity);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (t >= tokens) continue;
      float sum = 0;
      for (int i = lane_id(); i < blocks * warps; i += kWarp) sum += shared.squares[t][i];
      const float factor = rms_factor(warp_sum(sum), site.width, args.eps);
      if (channel.index >= 0)
        site.out[std::int64_t{t0 + t} * site.width + channel.index] =
            channel.norm_weight * (y[t] * factor);
    }
  }
}

// ---- host ----

// Blocks of a cluster and channels of a block: functions of the width alone, because they are the
// order of the sums.
int blocks_for(int width) { return width >= 2048 ? kMaxBlocks : 4; }
int slice_of(int width) { return (width + blocks_for(width) - 1) / blocks_for(width); }

template <int kTokens, int kMostWarps>
struct Site {
  // Clusters that the chip holds: a property of the shape, asked for once.
  static int resident(LaunchShape shape) {
    static std::atomic<int> all[2][kMaxWarps + 2];
    std::atomic<int>& known = all[shape.cluster_x == kMaxBlocks][shape.block.x / kWarp];
    if (known == 0) {
      const auto kernel = hc_pre_norm_kernel<kTokens, kMostWarps>;
      QT_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
      shape.grid = shape.cluster_x;
      known = resident_clusters(kernel, shape);
    }
    return known;
  }
  // Launches if the tokens take one turn, or if they have to.
  static bool launch_if(const HcPreNormArgs& args, bool must, cudaStream_t stream) {
    const int blocks = blocks_for(args.pre.width), slice = slice_of(args.pre.width);
    LaunchShape shape{.block = static_cast<unsigned>((slice + kWarp - 1) / kWarp + 1) * kWarp,
                      .cluster_x = static_cast<unsigned>(blocks)};
    const int tiles = (args.pre.rows + kTokens - 1) / kTokens;
    const int clusters = std::min(tiles, resident(shape));
    if (clusters < tiles && !must) return false;
    shape.grid = static_cast<unsigned>(clusters * blocks);
    launch(hc_pre_norm_kernel<kTokens, kMostWarps>, shape, stream, args, slice);
    return true;
  }
};

}  // namespace

bool has_hc_pre_norm(int hc, int width) {
  return hc == kHc && slice_of(width) <= kMaxWarps * kWarp;
}

void hc_pre_norm(const HcPreNormArgs& args, cudaStream_t stream) {
  if (args.pre.rows == 0) return;
  if (slice_of(args.pre.width) > kFewWarps * kWarp) {
    // No room in the registers for more tokens at once.
    Site<1, kMaxWarps>::launch_if(args, true, stream);
    return;
  }
  if (Site<1, kFewWarps>::launch_if(args, false, stream)) return;
  if (Site<2, kFewWarps>::launch_if(args, false, stream)) return;
  Site<4, kFewWarps>::launch_if(args, true, stream);
}

}  // namespace quatrain::cuda

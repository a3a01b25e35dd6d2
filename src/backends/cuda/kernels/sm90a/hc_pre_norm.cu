// SPDX-License-Identifier: Apache-2.0
// hc_pre_norm: mixes, Sinkhorn and collapse of a hyper-connection site, and the RMS norm after it.
//
// A cluster of blocks takes a few tokens; each block a slice of the channels of all streams. Its
// part of `fn`, the bulk of the bytes, is on its way to shared memory before the kernel in front
// has ended. Mixes and the norm's squares are summed over the cluster in the order of its blocks,
// so a token's bits depend on the width alone.
#include <algorithm>
#include <atomic>

#include "backends/cuda/device/async_copy.cuh"
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
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kMixesPerWarp = kMixes / kWarps;

struct HcPreNormKernelArgs {
  HcPreNormArgs site;
  int slice = 0;  // channels of a block, a multiple of 4
};

__device__ inline float dot4(float4 a, float4 b, float sum) {
  return fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, fmaf(a.w, b.w, sum))));
}

// Logits to a nearly doubly stochastic matrix (2.2), all in the registers of one thread.
__device__ void sinkhorn(float (&c)[kHc][kHc], int iterations, float eps) {
#pragma unroll
  for (int j = 0; j < kHc; ++j) {
    float largest = c[j][0];
#pragma unroll
    for (int k = 1; k < kHc; ++k) largest = fmaxf(largest, c[j][k]);
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kHc; ++k) sum += c[j][k] = expf(c[j][k] - largest);
#pragma unroll
    for (int k = 0; k < kHc; ++k) c[j][k] = c[j][k] / sum + eps;
  }
  for (int i = 0; i < iterations; ++i) {
    if (i > 0) {
#pragma unroll
      for (int j = 0; j < kHc; ++j) {
        const float part = __frcp_rn(eps + c[j][0] + c[j][1] + c[j][2] + c[j][3]);
#pragma unroll
        for (int k = 0; k < kHc; ++k) c[j][k] *= part;
      }
    }
#pragma unroll
    for (int k = 0; k < kHc; ++k) {
      const float part = __frcp_rn(eps + c[0][k] + c[1][k] + c[2][k] + c[3][k]);
#pragma unroll
      for (int j = 0; j < kHc; ++j) c[j][k] *= part;
    }
  }
}

// `v` [hc][slice] of one token: this block's part of the mixes and squares, by warps.
__device__ void partial_mixes(const float* fn, const float* v, int slice, float* out) {
  const int quads = kHc * slice / 4;
  const auto* v4 = reinterpret_cast<const float4*>(v);
  const auto* fn4 = reinterpret_cast<const float4*>(fn);
  float sums[kMixesPerWarp] = {}, squares = 0;
  for (int i = lane_id(); i < quads; i += kWarp) {
    const float4 a = v4[i];
#pragma unroll
    for (int m = 0; m < kMixesPerWarp; ++m)
      sums[m] = dot4(a, fn4[(warp_id() * kMixesPerWarp + m) * quads + i], sums[m]);
    if (warp_id() == 0) squares = dot4(a, a, squares);
  }
#pragma unroll
  for (int m = 0; m < kMixesPerWarp; ++m) {
    const float total = warp_sum(sums[m]);
    if (lane_id() == 0) out[warp_id() * kMixesPerWarp + m] = total;
  }
  if (warp_id() == 0) {
    squares = warp_sum(squares);
    if (lane_id() == 0) out[kMixes] = squares;
  }
}

// One thread: writes post and comb of the token from its mixes.
__device__ void balance(const HcPreNormArgs& site, std::int64_t t, const float* m) {
  float c[kHc][kHc];
#pragma unroll
  for (int j = 0; j < kHc; ++j) {
    site.pre.post[t * kHc + j] =
        2.0f * sigmoid(m[kHc + j] * site.pre.scale[1] + site.pre.base[kHc + j]);
#pragma unroll
    for (int k = 0; k < kHc; ++k) {
      const int at = 2 * kHc + kHc * j + k;
      c[j][k] = m[at] * site.pre.scale[2] + site.pre.base[at];
    }
  }
  sinkhorn(c, site.pre.sinkhorn_iters, site.pre.hc_eps);
#pragma unroll
  for (int i = 0; i < kHc * kHc; ++i) site.pre.comb[t * kHc * kHc + i] = c[i / kHc][i % kHc];
}

template <int kTokens>
__global__ void __launch_bounds__(kThreads) hc_pre_norm_kernel(HcPreNormKernelArgs args) {
  extern __shared__ __align__(16) float memory[];
  __shared__ float part[2][kTokens][kValues];  // by parity of the tile: neighbours read it
  __shared__ float part_squares[2][kTokens];
  __shared__ float mixes[kTokens][kValues];
  __shared__ float pre[kTokens][kHc];
  __shared__ float factor[kTokens];
  __shared__ float scratch[kReduceScratch];
  let_next_start();
  const HcPreArgs& site = args.site.pre;
  const int thread = static_cast<int>(threadIdx.x);
  const auto blocks = cluster_size();
  const int first = static_cast<int>(cluster_rank()) * args.slice;
  const int slice = max(0, min(args.slice, site.width - first));
  float* fn = memory;                    // [mixes][hc][slice]
  float* v = fn + kMixes * kHc * slice;  // [tokens][hc][slice]
  for (int i = thread; i < kMixes * kHc * slice / 4; i += kThreads) {
    const int row = i / (slice / 4);
    copy16_async(fn + 4 * i,
                 site.fn + std::int64_t{row} * site.width + first + i % (slice / 4) * 4);
  }
  wait_for_previous();

  int parity = 0;
  for (int t0 = static_cast<int>(cluster_index()) * kTokens; t0 < site.rows;
       t0 += static_cast<int>(cluster_count()) * kTokens, parity ^= 1) {
    const int tokens = min(kTokens, site.rows - t0);
    for (int i = thread; i < tokens * kHc * slice / 4; i += kThreads) {
      const std::int64_t row = std::int64_t{t0} * kHc + i / (slice / 4);
      copy16_async(v + 4 * i, site.streams + row * site.width + first + i % (slice / 4) * 4);
    }
    wait_for_copies();
    __syncthreads();
    for (int t = 0; t < tokens; ++t) partial_mixes(fn, v + t * kHc * slice, slice, part[parity][t]);
    cluster_sync();
    if (thread < tokens * kValues) {
      const int t = thread / kValues, i = thread % kValues;
      float sum = 0;
      for (unsigned r = 0; r < blocks; ++r) sum += load_from_rank(&part[parity][t][i], r);
      mixes[t][i] = sum;
    }
    __syncthreads();
    if (thread < tokens * kMixes) {
      const int t = thread / kMixes, i = thread % kMixes;
      const float m = mixes[t][i] * rms_factor(mixes[t][kMixes], kHc * site.width, site.norm_eps);
      if (i < kHc) pre[t][i] = sigmoid(m * site.scale[0] + site.base[i]) + site.hc_eps;
      mixes[t][i] = m;
    }
    __syncthreads();
    // The last thread of one block per token balances the matrix while the others go on.
    for (int t = 0; t < tokens; ++t) {
      const float* streams = v + t * kHc * slice;
      float squares = 0;
      for (int d = thread; d < slice; d += kThreads) {
        float sum = 0;
#pragma unroll
        for (int s = 0; s < kHc; ++s) sum += pre[t][s] * streams[s * slice + d];
        squares = fmaf(sum, sum, squares);
      }
      squares = block_sum(squares, scratch);
      if (thread == 0) part_squares[parity][t] = squares;
    }
    cluster_sync();
    if (thread < tokens) {
      float sum = 0;
      for (unsigned r = 0; r < blocks; ++r) sum += load_from_rank(&part_squares[parity][thread], r);
      factor[thread] = rms_factor(sum, site.width, args.site.eps);
    }
    __syncthreads();
    for (int t = 0; t < tokens; ++t) {
      const float* streams = v + t * kHc * slice;
      for (int d = thread; d < slice; d += kThreads) {
        float sum = 0;
#pragma unroll
        for (int s = 0; s < kHc; ++s) sum += pre[t][s] * streams[s * slice + d];
        site.out[std::int64_t{t0 + t} * site.width + first + d] =
            args.site.norm_weight[first + d] * (sum * factor[t]);
      }
    }
    // Everything the cluster waits for is done: one thread per token takes its time.
    for (int t = static_cast<int>(cluster_rank()); t < tokens; t += static_cast<int>(blocks))
      if (thread == 0) balance(args.site, t0 + t, mixes[t]);
    __syncthreads();  // v, mixes and pre are free again
  }
  cluster_sync();  // neighbours have read this block's parts
}

constexpr std::size_t kMaxShared = 200 * 1024;

template <int kTokens>
void launch_site(const HcPreNormArgs& args, int blocks, cudaStream_t stream) {
  const auto kernel = hc_pre_norm_kernel<kTokens>;
  HcPreNormKernelArgs all{.site = args};
  all.slice = (args.pre.width / 4 + blocks - 1) / blocks * 4;
  LaunchShape shape{.block = kThreads,
                    .shared = static_cast<std::size_t>((kMixes + kTokens) * kHc * all.slice) * 4,
                    .cluster_x = static_cast<unsigned>(blocks)};
  static std::atomic<int> resident = 0;  // clusters the chip holds, for the widest slice
  if (resident == 0) {
    allow_shared(kernel, kMaxShared);
    QT_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    shape.grid = static_cast<unsigned>(blocks);
    resident = resident_clusters(kernel, shape);
  }
  const int tiles = (args.pre.rows + kTokens - 1) / kTokens;
  shape.grid = static_cast<unsigned>(std::min(tiles, resident.load()) * blocks);
  launch(kernel, shape, stream, all);
}

// Blocks of a cluster: a function of the width alone, because it is the order of the sums.
int blocks_for(int width) { return width >= 2048 ? 16 : 4; }

}  // namespace

bool has_hc_pre_norm(int hc, int width) {
  const std::size_t slice = static_cast<std::size_t>(width / 4 / blocks_for(width) + 1) * 4;
  return hc == kHc && width % 4 == 0 && (kMixes + 4) * kHc * slice * 4 <= kMaxShared;
}

void hc_pre_norm(const HcPreNormArgs& args, cudaStream_t stream) {
  if (args.pre.rows == 0) return;
  const int blocks = blocks_for(args.pre.width);
  if (args.pre.rows <= 8)
    launch_site<1>(args, blocks, stream);
  else
    launch_site<4>(args, blocks, stream);
}

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// hc_pre, hc_post, hc_head: manifold-constrained hyper-connections (mHC), all in FP32.
//
// hc_pre and hc_head take a block per token; nothing is tiled over tokens, so `fn` is read once per
// token (from L2).
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/scalar.cuh"
#include "backends/cuda/launch/hyper_connections.h"
#include "backends/cuda/launch/launch.h"

namespace quatrain::cuda {
namespace {

constexpr int kMixThreads = 1024;
constexpr int kPostThreads = 256;
constexpr int kMaxMixes = (kMaxStreams + 2) * kMaxStreams;

// m[i] = (fn_i · v) / rms(v) for i < count: a warp per row of fn, and one for the squares of v,
// which pass through m[count]. n is a multiple of 4. Ends with a barrier.
__device__ void mixes(const float* v, int n, const float* fn, int count, float eps, float* m) {
  const auto* v4 = reinterpret_cast<const float4*>(v);
  for (int i = warp_id(); i <= count; i += warps_in_block()) {
    const auto* row =
        i < count ? reinterpret_cast<const float4*>(fn + static_cast<std::int64_t>(i) * n) : v4;
    float4 sum = {0, 0, 0, 0};
#pragma unroll 4
    for (int c = lane_id(); c < n / 4; c += kWarp) {
      const float4 a = v4[c];
      const float4 b = row[c];
      sum.x = fmaf(a.x, b.x, sum.x);
      sum.y = fmaf(a.y, b.y, sum.y);
      sum.z = fmaf(a.z, b.z, sum.z);
      sum.w = fmaf(a.w, b.w, sum.w);
    }
    const float total = warp_sum((sum.x + sum.y) + (sum.z + sum.w));
    if (lane_id() == 0) m[i] = total;
  }
  __syncthreads();
  const float factor = rms_factor(m[count], n, eps);
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < count) m[threadIdx.x] *= factor;
  __syncthreads();
}

// As mixes() for the few rows of the head: all warps share out the columns.
__device__ void head_mixes(const float* v, int n, const float* fn, int hc, float eps, float* m) {
  __shared__ float parts[kMixThreads / kWarp][kMaxStreams + 1];
  const auto* v4 = reinterpret_cast<const float4*>(v);
  float sums[kMaxStreams + 1] = {};
  for (int c = static_cast<int>(threadIdx.x); c < n / 4; c += kMixThreads) {
    const float4 a = v4[c];
#pragma unroll
    for (int i = 0; i <= kMaxStreams; ++i) {
      float4 b = a;
      if (i < kMaxStreams && i >= hc) continue;
      if (i < kMaxStreams)
        b = reinterpret_cast<const float4*>(fn + static_cast<std::int64_t>(i) * n)[c];
      sums[i] = fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, fmaf(a.w, b.w, sums[i]))));
    }
  }
#pragma unroll
  for (int i = 0; i <= kMaxStreams; ++i) {
    const float total = warp_sum(sums[i]);
    if (lane_id() == 0) parts[warp_id()][i] = total;
  }
  __syncthreads();
  if (warp_id() <= kMaxStreams) {
    const float total = warp_sum(parts[lane_id()][warp_id()]);
    if (lane_id() == 0) parts[0][warp_id()] = total;
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < hc)
    m[threadIdx.x] = parts[0][threadIdx.x] * rms_factor(parts[0][kMaxStreams], n, eps);
  __syncthreads();
}

// out[d] = Σ_s pre[s] v[s, d] for d = first, first + step, …
__device__ void weighted_sum(const float* v, const float* pre, int hc, int width, float* out,
                             int first, int step) {
  for (int d = first; d < width; d += step) {
    float sum = 0;
    for (int s = 0; s < hc; ++s) sum += pre[s] * v[static_cast<std::int64_t>(s) * width + d];
    out[d] = sum;
  }
}

// c[j, k] /= eps + the sum of its column (or row), by one warp; summed in the order of the CPU
// body.
template <bool kColumns>
__device__ void normalise(float* c, int hc, float eps) {
  float quotients[kMaxStreams * kMaxStreams / kWarp];
#pragma unroll
  for (int q = 0; q < kMaxStreams * kMaxStreams / kWarp; ++q) {
    const int i = lane_id() + q * kWarp;
    if (i >= hc * hc) continue;
    const int first = kColumns ? i % hc : i / hc * hc;
    const int step = kColumns ? hc : 1;
    float sum = eps;
    for (int j = 0; j < hc; ++j) sum += c[first + j * step];
    quotients[q] = c[i] / sum;
  }
  __syncwarp();
#pragma unroll
  for (int q = 0; q < kMaxStreams * kMaxStreams / kWarp; ++q) {
    const int i = lane_id() + q * kWarp;
    if (i < hc * hc) c[i] = quotients[q];
  }
  __syncwarp();
}

// Logits c [hc, hc] in shared memory to a nearly doubly stochastic matrix (2.2), by one warp.
__device__ void sinkhorn(float* c, int hc, int iterations, float eps) {
  for (int j = lane_id(); j < hc; j += kWarp) {  // a lane per row
    float* row = c + j * hc;
    float largest = row[0];
    for (int k = 1; k < hc; ++k) largest = fmaxf(largest, row[k]);
    float sum = 0;
    for (int k = 0; k < hc; ++k) sum += row[k] = expf(row[k] - largest);
    for (int k = 0; k < hc; ++k) row[k] = row[k] / sum + eps;
  }
  __syncwarp();
  normalise<true>(c, hc, eps);
  for (int i = 1; i < iterations; ++i) {
    normalise<false>(c, hc, eps);
    normalise<true>(c, hc, eps);
  }
}

__global__ void __launch_bounds__(kMixThreads) hc_pre_kernel(HcPreArgs args) {
  __shared__ float m[kMaxMixes + 1];
  __shared__ float pre[kMaxStreams];
  __shared__ float comb[kMaxStreams * kMaxStreams];
  let_next_start();
  wait_for_previous();
  const std::int64_t t = blockIdx.x;
  const int hc = args.hc;
  const int thread = static_cast<int>(threadIdx.x);
  const float* v = args.streams + t * hc * args.width;
  mixes(v, hc * args.width, args.fn, (2 + hc) * hc, args.norm_eps, m);
  if (thread < hc) {
    pre[thread] = sigmoid(m[thread] * args.scale[0] + args.base[thread]) + args.hc_eps;
    args.post[t * hc + thread] =
        2.0f * sigmoid(m[hc + thread] * args.scale[1] + args.base[hc + thread]);
  }
  if (thread < hc * hc)
    comb[thread] = m[2 * hc + thread] * args.scale[2] + args.base[2 * hc + thread];
  __syncthreads();
  // The first warp balances the matrix while the others collapse the streams.
  if (warp_id() == 0) {
    sinkhorn(comb, hc, args.sinkhorn_iters, args.hc_eps);
    for (int i = thread; i < hc * hc; i += kWarp) args.comb[t * hc * hc + i] = comb[i];
  } else {
    weighted_sum(v, pre, hc, args.width, args.out + t * args.width, thread - kWarp,
                 kMixThreads - kWarp);
  }
}

__global__ void __launch_bounds__(kMixThreads) hc_head_kernel(HcHeadArgs args) {
  __shared__ float m[kMaxStreams];
  __shared__ float pre[kMaxStreams];
  let_next_start();
  wait_for_previous();
  const std::int64_t t = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  const float* v = args.streams + t * args.hc * args.width;
  head_mixes(v, args.hc * args.width, args.fn, args.hc, args.norm_eps, m);
  if (thread < args.hc)
    pre[thread] = sigmoid(m[thread] * args.scale[0] + args.base[thread]) + args.hc_eps;
  __syncthreads();
  weighted_sum(v, pre, args.hc, args.width, args.out + t * args.width, thread, kMixThreads);
}

// A thread per channel, which reads all of its streams before it writes one.
__global__ void __launch_bounds__(kPostThreads) hc_post_kernel(HcPostArgs args) {
  __shared__ float post[kMaxStreams];
  __shared__ float comb[kMaxStreams * kMaxStreams];
  let_next_start();
  wait_for_previous();
  const std::int64_t t = blockIdx.x;
  const int hc = args.hc;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < hc) post[thread] = args.post[t * hc + thread];
  if (thread < hc * hc) comb[thread] = args.comb[t * hc * hc + thread];
  __syncthreads();
  const int d = static_cast<int>(blockIdx.y) * kPostThreads + thread;
  if (d >= args.width) return;
  const float f = args.f[t * args.width + d];
  float* streams = args.streams + t * hc * args.width + d;
  float old[kMaxStreams];
#pragma unroll
  for (int j = 0; j < kMaxStreams; ++j)
    if (j < hc) old[j] = streams[static_cast<std::int64_t>(j) * args.width];
  for (int k = 0; k < hc; ++k) {
    float sum = post[k] * f;
#pragma unroll
    for (int j = 0; j < kMaxStreams; ++j)
      if (j < hc) sum += comb[j * hc + k] * old[j];
    streams[static_cast<std::int64_t>(k) * args.width] = sum;
  }
}

}  // namespace

void hc_pre(const HcPreArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return;
  launch(hc_pre_kernel, {.grid = static_cast<unsigned>(args.rows), .block = kMixThreads}, stream,
         args);
}

void hc_post(const HcPostArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return;
  const dim3 grid(static_cast<unsigned>(args.rows),
                  static_cast<unsigned>((args.width + kPostThreads - 1) / kPostThreads));
  launch(hc_post_kernel, {.grid = grid, .block = kPostThreads}, stream, args);
}

void hc_head(const HcHeadArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return;
  launch(hc_head_kernel, {.grid = static_cast<unsigned>(args.rows), .block = kMixThreads}, stream,
         args);
}

}  // namespace quatrain::cuda

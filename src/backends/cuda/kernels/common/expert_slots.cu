// SPDX-License-Identifier: Apache-2.0
// Which tokens go to which expert, and the sum that brings them back. Deterministic: slots of an
// expert are in order of token, and a token's experts are added in the order of its choice.
#include "backends/cuda/cuda_check.h"
#include "backends/cuda/device/bf16_parts.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/launch/matmul.h"

namespace quatrain::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSortThreads = 1024;
constexpr int kRun = 8;  // consecutive slots of a thread

// Bit i: whether slot first + i belongs to expert e and a real row; first is a multiple of 8.
__device__ unsigned taken(const SortArgs& a, int first, int e) {
  const int slots = a.tokens * a.k;
  unsigned mine = 0;
  const bool aligned = reinterpret_cast<std::uintptr_t>(a.ids) % sizeof(int4) == 0;
  if (aligned && first + kRun <= slots) {
    const int4 low = reinterpret_cast<const int4*>(a.ids + first)[0];
    const int4 high = reinterpret_cast<const int4*>(a.ids + first)[1];
    const int ids[kRun] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < kRun; ++i) mine |= static_cast<unsigned>(ids[i] == e) << i;
  } else {
    for (int i = 0; i < kRun && first + i < slots; ++i)
      mine |= static_cast<unsigned>(a.ids[first + i] == e) << i;
  }
  for (unsigned left = mine; left != 0; left &= left - 1) {
    const int i = __ffs(static_cast<int>(left)) - 1;
    if (a.batch_slots[(first + i) / a.k] < 0) mine &= ~(1u << i);
  }
  return mine;
}

// One block per expert counts its slots.
__global__ void __launch_bounds__(kSortThreads) count_kernel(SortArgs a) {
  __shared__ int warp_counts[kSortThreads / kWarp];
  const int e = static_cast<int>(blockIdx.x);
  int count = 0;
  for (int first = static_cast<int>(threadIdx.x) * kRun; first < a.tokens * a.k;
       first += kSortThreads * kRun)
    count += __popc(taken(a, first, e));
  count = __reduce_add_sync(kAllLanes, count);
  if (lane_id() == 0) warp_counts[warp_id()] = count;
  __syncthreads();
  if (warp_id() != 0) return;
  count = __reduce_add_sync(kAllLanes, warp_counts[lane_id()]);
  if (lane_id() == 0) a.offsets[e + 1] = count;
}

// One warp turns counts into offsets.
__global__ void __launch_bounds__(kWarp) scan_kernel(SortArgs a) {
  int sum = 0;
  if (threadIdx.x == 0) a.offsets[0] = 0;
  for (int begin = 0; begin < a.num_experts; begin += kWarp) {
    const int e = begin + lane_id();
    const int up_to = sum + warp_scan(e < a.num_experts ? a.offsets[e + 1] : 0);
    if (e < a.num_experts) a.offsets[e + 1] = up_to;
    sum = __shfl_sync(kAllLanes, up_to, kWarp - 1);
  }
}

// One block per expert writes its slots in ascending order.
__global__ void __launch_bounds__(kSortThreads) fill_kernel(SortArgs a) {
  __shared__ int warp_counts[kSortThreads / kWarp];
  const int e = static_cast<int>(blockIdx.x);
  int at = a.offsets[e];
  const int end = a.offsets[e + 1];
  for (int begin = 0; begin < a.tokens * a.k && at < end; begin += kSortThreads * kRun) {
    const int first = begin + static_cast<int>(threadIdx.x) * kRun;
    const unsigned mine = taken(a, first, e);
    const int up_to = warp_scan(__popc(mine));
    if (lane_id() == kWarp - 1) warp_counts[warp_id()] = up_to;
    __syncthreads();  // counts of all warps are in
    int to = at + up_to - __popc(mine);
    for (int w = 0; w < kSortThreads / kWarp; ++w) {
      to += w < warp_id() ? warp_counts[w] : 0;
      at += warp_counts[w];
    }
    for (unsigned left = mine; left != 0; left &= left - 1)
      a.sorted[to++] = first + __ffs(static_cast<int>(left)) - 1;
    __syncthreads();  // counts are read before the next round writes them
  }
}

__global__ void map_kernel(SortArgs a, const float* scales, int* row_map, float* row_scales) {
  const int slot = blockIdx.x * blockDim.x + threadIdx.x;
  if (slot >= a.tokens * a.k) return;
  const bool real = a.batch_slots[slot / a.k] >= 0;
  row_map[slot] = real ? slot / a.k : 0;
  row_scales[slot] = real ? scales[a.ids[slot]] : 1.0f;
}

__device__ void add_product(float4& sum, float weight, float4 x) {
  sum.x += weight * x.x, sum.y += weight * x.y, sum.z += weight * x.z, sum.w += weight * x.w;
}
__device__ float4 four_floats(std::uint32_t low, std::uint32_t high) {
  return {low_float(low), high_float(low), low_float(high), high_float(high)};
}

// A thread takes 16 bytes of each output, and reads up to 8 outputs at once.
template <bool kBf16>
__global__ void __launch_bounds__(kThreads) combine_kernel(CombineArgs a) {
  constexpr int kFours = kBf16 ? 2 : 1, kTogether = 8;
  const std::int64_t t = blockIdx.y;
  const int d = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * 4 * kFours;
  if (d >= a.hidden || a.batch_slots[t] < 0) return;
  auto* out = reinterpret_cast<float4*>(a.out + t * a.hidden + d);
  float4 sums[kFours];
#pragma unroll
  for (int i = 0; i < kFours; ++i) sums[i] = out[i];
  for (int begin = 0; begin < a.k; begin += kTogether) {
    uint4 bits[kTogether] = {};
    float weights[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (begin + i >= a.k) break;
      const std::int64_t slot = t * a.k + begin + i, at = slot * a.hidden + d;
      bits[i] = __ldcs(kBf16 ? reinterpret_cast<const uint4*>(a.outputs16 + at)
                             : reinterpret_cast<const uint4*>(a.outputs + at));
      weights[i] = a.weights != nullptr ? a.weights[slot] : 1.0f;
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (begin + i >= a.k) break;
      if constexpr (kBf16) {
        add_product(sums[0], weights[i], four_floats(bits[i].x, bits[i].y));
        add_product(sums[1], weights[i], four_floats(bits[i].z, bits[i].w));
      } else {
        add_product(sums[0], weights[i], *reinterpret_cast<const float4*>(&bits[i]));
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kFours; ++i) out[i] = sums[i];
}

}  // namespace

void sort_by_expert(const SortArgs& args, cudaStream_t stream) {
  count_kernel<<<args.num_experts, kSortThreads, 0, stream>>>(args);
  scan_kernel<<<1, kWarp, 0, stream>>>(args);
  fill_kernel<<<args.num_experts, kSortThreads, 0, stream>>>(args);
  QT_CUDA(cudaGetLastError());
}

void map_slots(const SortArgs& args, const float* scales, int* row_map, float* row_scales,
               cudaStream_t stream) {
  const int slots = args.tokens * args.k;
  map_kernel<<<(slots + kThreads - 1) / kThreads, kThreads, 0, stream>>>(args, scales, row_map,
                                                                         row_scales);
  QT_CUDA(cudaGetLastError());
}

void combine_experts(const CombineArgs& args, cudaStream_t stream) {
  const int columns = (args.outputs16 != nullptr ? 8 : 4) * kThreads;
  const dim3 grid((args.hidden + columns - 1) / columns, args.tokens);
  if (args.outputs16 != nullptr)
    combine_kernel<true><<<grid, kThreads, 0, stream>>>(args);
  else
    combine_kernel<false><<<grid, kThreads, 0, stream>>>(args);
  QT_CUDA(cudaGetLastError());
}

}  // namespace quatrain::cuda

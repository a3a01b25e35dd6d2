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
constexpr int kRun = 8;  // consecutive slots of a thread

// Bit i: whether slot first + i belongs to expert e and a real row.
__device__ unsigned taken(const SortArgs& a, int first, int e) {
  const int slots = a.tokens * a.k;
  unsigned mine = 0;
#pragma unroll
  for (int i = 0; i < kRun; ++i)
    if (first + i < slots && a.ids[first + i] == e) mine |= 1u << i;
  for (unsigned left = mine; left != 0; left &= left - 1) {
    const int i = __ffs(static_cast<int>(left)) - 1;
    if (a.batch_slots[(first + i) / a.k] < 0) mine &= ~(1u << i);
  }
  return mine;
}

// One block per expert counts its slots.
__global__ void __launch_bounds__(kThreads) count_kernel(SortArgs a) {
  __shared__ int warp_counts[kThreads / kWarp];
  const int e = static_cast<int>(blockIdx.x);
  int count = 0;
  for (int first = static_cast<int>(threadIdx.x) * kRun; first < a.tokens * a.k;
       first += kThreads * kRun)
    count += __popc(taken(a, first, e));
  count = __reduce_add_sync(kAllLanes, count);
  if (lane_id() == 0) warp_counts[warp_id()] = count;
  __syncthreads();
  if (threadIdx.x != 0) return;
  count = 0;
  for (const int c : warp_counts) count += c;
  a.offsets[e + 1] = count;
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
__global__ void __launch_bounds__(kThreads) fill_kernel(SortArgs a) {
  __shared__ int warp_counts[kThreads / kWarp];
  const int e = static_cast<int>(blockIdx.x);
  int at = a.offsets[e];
  const int end = a.offsets[e + 1];
  for (int begin = 0; begin < a.tokens * a.k && at < end; begin += kThreads * kRun) {
    const int first = begin + static_cast<int>(threadIdx.x) * kRun;
    const unsigned mine = taken(a, first, e);
    const int up_to = warp_scan(__popc(mine));
    if (lane_id() == kWarp - 1) warp_counts[warp_id()] = up_to;
    __syncthreads();  // counts of all warps are in
    int to = at + up_to - __popc(mine);
    for (int w = 0; w < kThreads / kWarp; ++w) {
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

__device__ float4 four_outputs(const CombineArgs& a, std::int64_t at) {
  if (a.outputs16 == nullptr) return __ldcs(reinterpret_cast<const float4*>(a.outputs + at));
  const uint2 pairs = __ldcs(reinterpret_cast<const uint2*>(a.outputs16 + at));
  return {low_float(pairs.x), high_float(pairs.x), low_float(pairs.y), high_float(pairs.y)};
}

// Four columns per thread.
__global__ void __launch_bounds__(kThreads) combine_kernel(CombineArgs a) {
  const std::int64_t t = blockIdx.y;
  const int d = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * 4;
  if (d >= a.hidden || a.batch_slots[t] < 0) return;
  const auto add = [](float4& sum, float weight, float4 x) {
    sum.x += weight * x.x, sum.y += weight * x.y, sum.z += weight * x.z, sum.w += weight * x.w;
  };
  auto* out = reinterpret_cast<float4*>(a.out + t * a.hidden + d);
  float4 sum = *out;
#pragma unroll 8
  for (int i = 0; i < a.k; ++i) {
    const std::int64_t slot = t * a.k + i;
    const float weight = a.weights != nullptr ? a.weights[slot] : 1.0f;
    add(sum, weight, four_outputs(a, slot * a.hidden + d));
  }
  *out = sum;
}

}  // namespace

void sort_by_expert(const SortArgs& args, cudaStream_t stream) {
  count_kernel<<<args.num_experts, kThreads, 0, stream>>>(args);
  scan_kernel<<<1, kWarp, 0, stream>>>(args);
  fill_kernel<<<args.num_experts, kThreads, 0, stream>>>(args);
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
  const int columns = 4 * kThreads;
  const dim3 grid((args.hidden + columns - 1) / columns, args.tokens);
  combine_kernel<<<grid, kThreads, 0, stream>>>(args);
  QT_CUDA(cudaGetLastError());
}

}  // namespace quatrain::cuda

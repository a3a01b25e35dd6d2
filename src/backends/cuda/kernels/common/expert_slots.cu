// SPDX-License-Identifier: Apache-2.0
// Which tokens go to which expert, and the sum that brings them back. Deterministic: slots of an
// expert are in order of token, and a token's experts are added in the order of its choice.
#include "backends/cuda/cuda_check.h"
#include "backends/cuda/launch/matmul.h"

namespace quatrain::cuda {
namespace {

constexpr int kThreads = 256;

__device__ bool takes(const SortArgs& a, int slot, int e) {
  return slot < a.tokens * a.k && a.batch_slots[slot / a.k] >= 0 && a.ids[slot] == e;
}

// One block per expert counts its slots.
__global__ void __launch_bounds__(kThreads) count_kernel(SortArgs a) {
  const int e = blockIdx.x;
  int count = 0;
  for (int first = 0; first < a.tokens * a.k; first += kThreads)
    count += __syncthreads_count(takes(a, first + threadIdx.x, e));
  if (threadIdx.x == 0) a.offsets[e + 1] = count;
}

// One thread turns counts into offsets: a few hundred experts.
__global__ void scan_kernel(SortArgs a) {
  int sum = 0;
  a.offsets[0] = 0;
  for (int e = 0; e < a.num_experts; ++e) a.offsets[e + 1] = sum += a.offsets[e + 1];
}

// One block per expert writes its slots in ascending order.
__global__ void __launch_bounds__(kThreads) fill_kernel(SortArgs a) {
  __shared__ int warp_counts[kThreads / 32];
  const int e = blockIdx.x;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  int at = a.offsets[e];
  const int end = a.offsets[e + 1];
  for (int first = 0; first < a.tokens * a.k && at < end; first += kThreads) {
    const int slot = first + threadIdx.x;
    const bool mine = takes(a, slot, e);
    const unsigned votes = __ballot_sync(0xFFFFFFFFu, mine);
    if (lane == 0) warp_counts[warp] = __popc(votes);
    __syncthreads();  // counts of all warps are in
    int before = 0, all = 0;
    for (int w = 0; w < kThreads / 32; ++w) {
      before += w < warp ? warp_counts[w] : 0;
      all += warp_counts[w];
    }
    if (mine) a.sorted[at + before + __popc(votes & ((1u << lane) - 1u))] = slot;
    at += all;
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

__global__ void combine_kernel(CombineArgs a) {
  const std::int64_t t = blockIdx.y;
  const int d = blockIdx.x * blockDim.x + threadIdx.x;
  if (d >= a.hidden || a.batch_slots[t] < 0) return;
  float sum = a.out[t * a.hidden + d];
  for (int i = 0; i < a.k; ++i) {
    const std::int64_t slot = t * a.k + i;
    const float weight = a.weights != nullptr ? a.weights[slot] : 1.0f;
    sum += weight * a.outputs[slot * a.hidden + d];
  }
  a.out[t * a.hidden + d] = sum;
}

}  // namespace

void sort_by_expert(const SortArgs& args, cudaStream_t stream) {
  count_kernel<<<args.num_experts, kThreads, 0, stream>>>(args);
  scan_kernel<<<1, 1, 0, stream>>>(args);
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
  const dim3 grid((args.hidden + kThreads - 1) / kThreads, args.tokens);
  combine_kernel<<<grid, kThreads, 0, stream>>>(args);
  QT_CUDA(cudaGetLastError());
}

}  // namespace quatrain::cuda

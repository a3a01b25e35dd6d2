// SPDX-License-Identifier: Apache-2.0
// The top-k of a few thousand scores by one block, which has them in registers: what its time
// consists of is latency, so one warp finds digits of eight bits, and only digits that differ.
#pragma once

#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/scalar.cuh"
#include "backends/cuda/device/selected_indices.cuh"

namespace quatrain::cuda::few_top_k {

inline constexpr int kThreads = 1024;
inline constexpr int kWarps = kThreads / kWarp;
inline constexpr int kPerThread = 4;
inline constexpr int kMostScores = kThreads * kPerThread;
inline constexpr int kDigitBits = 8;
inline constexpr int kDigits = 1 << kDigitBits;
static_assert(kWarps == kWarp, "a lane knows a warp's numbers");

struct Shared {
  alignas(16) int histogram[2][kDigits];  // by turns
  unsigned lowest[kWarps], highest[kWarps];
  int digit, wanted, count;  // the digit found, how many of its candidates are wanted, of how many
  int larger[kWarps], equal[kWarps];  // than the threshold, by warp
};

/// A warp finds the digit of the `wanted`-th largest candidate.
__device__ inline void find_digit(Shared& shared, const int* histogram, int wanted) {
  constexpr int kOwn = kDigits / kWarp;
  const int top = kDigits - 1 - lane_id() * kOwn;  // and the ones below
  int counts[kOwn];
  int sum = 0;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) sum += counts[i] = histogram[top - i];
  const int up_to = warp_scan(sum);
  if (up_to < wanted || up_to - sum >= wanted) return;
  int left = wanted - (up_to - sum), digit = top;
  bool found = false;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    found = found || left <= counts[i];
    if (!found) {
      left -= counts[i];
      --digit;
    }
  }
  shared.digit = digit;
  shared.wanted = left;
  shared.count = histogram[digit];
}

/// selected = the indices of the k largest of `count` scores, ascending; the lowest index wins
/// among equals. k < count <= kMostScores; all threads of the block.
__device__ inline void select(Shared& shared, const float* scores, int count, int k,
                              int* selected) {
  // A warp has a run of scores, and a lane every 32nd of it.
  const int rounds = (count + kThreads - 1) / kThreads;
  const int first = warp_id() * rounds * kWarp + lane_id();
  const auto is_there = [&](int j) { return j < rounds && first + j * kWarp < count; };
  unsigned keys[kPerThread];
  unsigned lowest = 0xFFFFFFFFu, highest = 0;
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    keys[j] = is_there(j) ? ordered_key(scores[first + j * kWarp]) : 0;
    if (!is_there(j)) continue;
    lowest = min(lowest, keys[j]);
    highest = max(highest, keys[j]);
  }
  lowest = __reduce_min_sync(kAllLanes, lowest);
  highest = __reduce_max_sync(kAllLanes, highest);
  if (lane_id() == 0) {
    shared.lowest[warp_id()] = lowest;
    shared.highest[warp_id()] = highest;
  }
  if (threadIdx.x < kDigits) shared.histogram[0][threadIdx.x] = 0;
  __syncthreads();
  lowest = __reduce_min_sync(kAllLanes, shared.lowest[lane_id()]);
  highest = __reduce_max_sync(kAllLanes, shared.highest[lane_id()]);
  int shift = 32 - __clz(static_cast<int>(highest - lowest));  // bits that are not settled
  unsigned threshold = 0;                                      // the settled ones
  int wanted = k;
  // Ends early when all candidates are wanted.
  bool is_open = true;
#pragma unroll 1
  for (int turn = 0; shift > 0 && is_open; turn ^= 1) {
    const int bits = min(kDigitBits, shift);
    shift -= bits;
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      const unsigned key = (keys[j] - lowest) >> shift;
      if (is_there(j) && key >> bits == threshold)
        atomicAdd(shared.histogram[turn] + (key & (kDigits - 1)), 1);
    }
    __syncthreads();
    if (warp_id() == 0)
      find_digit(shared, shared.histogram[turn], wanted);
    else if (threadIdx.x >= kThreads - kDigits)
      shared.histogram[turn ^ 1][threadIdx.x - (kThreads - kDigits)] = 0;
    __syncthreads();
    threshold = threshold << bits | static_cast<unsigned>(shared.digit);
    wanted = shared.wanted;
    is_open = shared.count > wanted;
  }

  unsigned larger[kPerThread], equal[kPerThread];
  int larger_count = 0, equal_count = 0;
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const unsigned key = (keys[j] - lowest) >> shift;
    larger[j] = __ballot_sync(kAllLanes, is_there(j) && key > threshold);
    equal[j] = __ballot_sync(kAllLanes, is_there(j) && key == threshold);
    larger_count += __popc(larger[j]);
    equal_count += __popc(equal[j]);
  }
  if (lane_id() == 0) {
    shared.larger[warp_id()] = larger_count;
    shared.equal[warp_id()] = equal_count;
  }
  __syncthreads();
  const bool is_before = lane_id() < warp_id();
  SelectedIndices to{selected, wanted,
                     __reduce_add_sync(kAllLanes, is_before ? shared.larger[lane_id()] : 0),
                     __reduce_add_sync(kAllLanes, is_before ? shared.equal[lane_id()] : 0)};
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) to.write(larger[j], equal[j], first + j * kWarp);
}

}  // namespace quatrain::cuda::few_top_k

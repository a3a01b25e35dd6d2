// SPDX-License-Identifier: Apache-2.0
// The top-k of every row's scores: radix select by the digits of an ordered key, then compaction in
// order of index. Exact: the lowest index wins among equals.
//
// A row has a cluster of one to eight blocks, each with a contiguous part of the scores; their
// histograms and counts are summed through shared memory of the cluster, so every block follows the
// same digits. The scores of a short row fit the registers of one block, which has a way of its own
// (few_top_k.cuh), and the others leave at once. How many blocks a row gets does not change the
// result.
#include <cooperative_groups.h>

#include <algorithm>

#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/few_top_k.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/scalar.cuh"
#include "backends/cuda/device/selected_indices.cuh"
#include "backends/cuda/launch/attention.h"
#include "backends/cuda/launch/launch.h"

namespace quatrain::cuda {
namespace {

constexpr int kThreads = few_top_k::kThreads;
constexpr int kWarps = kThreads / kWarp;
constexpr int kDigitBits = 11;  // three digits; the first spreads scores of one magnitude over bins
constexpr int kDigits = 1 << kDigitBits;
constexpr int kMaxBlocks = 8;                            // of a cluster
constexpr int kBlocksAtOnce = 264;                       // two per processor
constexpr int kScoresPerBlock = few_top_k::kMostScores;  // fewer are not worth another block

struct Shared {
  alignas(8) int histogram[2][kDigits];  // by turns: other blocks still read the last one
  int totals[kWarps];
  int digit;
  int remaining;
  int larger[kWarps];  // than the threshold, by warp
  int equal[kWarps];
  int all_larger;
  int all_equal;
  float scores[kScoresPerBlock];  // of the block, where they fit
  few_top_k::Shared few;
};

// The digit of the `remaining`-th largest candidate, and how many of that digit are still wanted.
// Thread t comes with the counts of the digits kDigits − 1 − 2t and kDigits − 2 − 2t. Ends with a
// barrier.
__device__ void find_digit(Shared& shared, int high, int low, int remaining) {
  static_assert(kDigits == 2 * kThreads);
  int before = high + low;  // inclusive prefix sum over lanes
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int other = __shfl_up_sync(kAllLanes, before, offset);
    if (lane_id() >= offset) before += other;
  }
  if (lane_id() == kWarp - 1) shared.totals[warp_id()] = before;
  __syncthreads();
  const int earlier = lane_id() < warp_id() ? shared.totals[lane_id()] : 0;
  before += __reduce_add_sync(kAllLanes, earlier) - high - low;
  const int top = kDigits - 1 - 2 * static_cast<int>(threadIdx.x);
  if (before < remaining && remaining <= before + high) {  // true for one digit of one thread
    shared.digit = top;
    shared.remaining = remaining - before;
  } else if (before + high < remaining && remaining <= before + high + low) {
    shared.digit = top - 1;
    shared.remaining = remaining - before - high;
  }
  __syncthreads();
}

// Counts the digits of the candidates.
__device__ void count_digits(int* histogram, const float* scores, int begin, int end,
                             unsigned known_key, unsigned known, int shift) {
  constexpr int kBatch = 4;
  for (int first = begin + static_cast<int>(threadIdx.x); first < end; first += kBatch * kThreads) {
    float batch[kBatch] = {};
#pragma unroll
    for (int j = 0; j < kBatch; ++j)
      if (first + j * kThreads < end) batch[j] = scores[first + j * kThreads];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const unsigned key = ordered_key(batch[j]);
      if (first + j * kThreads < end && ((key ^ known_key) & known) == 0)
        atomicAdd(histogram + (key >> shift & (kDigits - 1)), 1);
    }
  }
}

struct Threshold {
  unsigned key;  // of the k-th largest score
  int equal;     // how many scores equal to it are selected
};

__device__ Threshold find_threshold(Shared& shared, const float* scores, int blocks, int begin,
                                    int end, int k) {
  auto cluster = cooperative_groups::this_cluster();
  const int t = static_cast<int>(threadIdx.x);
  Threshold found = {0, k};
  unsigned known = 0;  // bits of the key that are settled
  for (int d = t; d < kDigits; d += kThreads) shared.histogram[0][d] = 0;
  for (int turn = 0; turn < 3; ++turn) {
    const int shift = turn == 0 ? 21 : turn == 1 ? 10 : 0;  // the last digits share a settled bit
    int* histogram = shared.histogram[turn % 2];
    __syncthreads();
    count_digits(histogram, scores, begin, end, found.key, known, shift);
    cluster.sync();
    int high = 0, low = 0;  // counts of this thread's digits in all blocks
#pragma unroll
    for (int b = 0; b < kMaxBlocks; ++b)
      if (b < blocks) {
        const int* all = cluster.map_shared_rank(histogram, b);
        const int* from = all + kDigits - 2 - 2 * t;
        const int2 pair = *reinterpret_cast<const int2*>(from);
        high += pair.y;
        low += pair.x;
      }
    for (int d = t; d < kDigits; d += kThreads) shared.histogram[1 - turn % 2][d] = 0;
    find_digit(shared, high, low, found.equal);
    found.key |= static_cast<unsigned>(shared.digit) << shift;
    found.equal = shared.remaining;
    known |= static_cast<unsigned>(kDigits - 1) << shift;
  }
  return found;
}

// selected = indices of all scores above the threshold and of the first ones equal to it,
// ascending. A warp takes a contiguous part, counts it, and writes it once it knows what precedes.
__device__ void compact(Shared& shared, const float* scores, int begin, int end,
                        Threshold threshold, int* selected) {
  auto cluster = cooperative_groups::this_cluster();
  const int rounds = (end - begin + kThreads - 1) / kThreads;
  const int own_begin = begin + warp_id() * rounds * kWarp;
  const int own_end = min(end, own_begin + rounds * kWarp);
  const auto masks = [&](int first, unsigned& larger, unsigned& equal) {
    const int i = first + lane_id();
    const unsigned key = i < own_end ? ordered_key(scores[i]) : 0;
    larger = __ballot_sync(kAllLanes, i < own_end && key > threshold.key);
    equal = __ballot_sync(kAllLanes, i < own_end && key == threshold.key);
  };
  unsigned larger, equal;
  int larger_count = 0, equal_count = 0;
  for (int first = own_begin; first < own_end; first += kWarp) {
    masks(first, larger, equal);
    larger_count += __popc(larger);
    equal_count += __popc(equal);
  }
  if (lane_id() == 0) {
    shared.larger[warp_id()] = larger_count;
    shared.equal[warp_id()] = equal_count;
  }
  __syncthreads();
  static_assert(kWarps == kWarp, "a lane knows a warp's counts");
  const int of_lane_larger = shared.larger[lane_id()], of_lane_equal = shared.equal[lane_id()];
  const bool is_before = lane_id() < warp_id();
  SelectedIndices to{selected, threshold.equal,
                     __reduce_add_sync(kAllLanes, is_before ? of_lane_larger : 0),
                     __reduce_add_sync(kAllLanes, is_before ? of_lane_equal : 0)};
  if (warp_id() == 0) {
    shared.all_larger = __reduce_add_sync(kAllLanes, of_lane_larger);
    shared.all_equal = __reduce_add_sync(kAllLanes, of_lane_equal);
  }
  cluster.sync();
  for (unsigned b = 0; b < cluster.block_rank(); ++b) {
    const Shared& earlier = *cluster.map_shared_rank(&shared, b);
    to.larger_before += earlier.all_larger;
    to.equal_before += earlier.all_equal;
  }
  for (int first = own_begin; first < own_end; first += kWarp) {
    masks(first, larger, equal);
    to.write(larger, equal, first + lane_id());
  }
  cluster.sync();  // nobody leaves while its counts are read
}

__global__ void __launch_bounds__(kThreads) top_k_kernel(IndexSelectArgs args, int first_row) {
  __shared__ Shared shared;
  const int r = first_row + static_cast<int>(blockIdx.y);
  int* selected = args.selected + std::int64_t{r} * args.topk;
  const int visible = args.batch.slots[r] < 0 ? 0 : (args.batch.positions[r] + 1) / args.keys.ratio;
  const int rank = static_cast<int>(blockIdx.x);
  const int blocks = visible <= kScoresPerBlock ? 1 : static_cast<int>(gridDim.x);
  wait_for_previous();
  let_next_start();
  if (rank >= blocks) return;
  if (visible <= args.topk) {
    for (int i = rank * kThreads + static_cast<int>(threadIdx.x); i < args.topk;
         i += blocks * kThreads)
      selected[i] = i < visible ? i : -1;
    return;
  }
  const float* scores = args.scores + std::int64_t{blockIdx.y} * args.score_columns;
  if (visible <= kScoresPerBlock)
    return few_top_k::select(shared.few, scores, visible, args.topk, selected);
  const int part = (visible + blocks - 1) / blocks;
  const int begin = min(visible, rank * part);
  const int end = min(visible, begin + part);
  if (end - begin <= kScoresPerBlock) {
    for (int i = begin + static_cast<int>(threadIdx.x); i < end; i += kThreads)
      shared.scores[i - begin] = scores[i];
    scores = shared.scores - begin;
    __syncthreads();
  }
  const Threshold threshold = find_threshold(shared, scores, blocks, begin, end, args.topk);
  compact(shared, scores, begin, end, threshold, selected);
}

}  // namespace

void top_k(const IndexSelectArgs& args, int first_row, int rows, cudaStream_t stream) {
  int blocks = 1;
  while (blocks < kMaxBlocks && 2 * blocks * rows <= kBlocksAtOnce &&
         blocks * kScoresPerBlock < args.score_columns)
    blocks *= 2;
  launch(top_k_kernel,
         {.grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(rows)),
          .block = kThreads,
          .cluster_x = static_cast<unsigned>(blocks)},
         stream, args, first_row);
}

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// compress: pools closed windows into entries. A block per row of the step; all but those whose
// window closes exit at once, so the grid does not depend on positions.
#include <algorithm>
#include <cmath>

#include "backends/cuda/cuda_check.h"
#include "backends/cuda/device/cache_rows.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/row_math.cuh"
#include "backends/cuda/device/scalar.cuh"
#include "backends/cuda/device/sequence_view.cuh"
#include "backends/cuda/launch/cache.h"
#include "core/codec.h"

namespace quatrain::cuda {
namespace {

constexpr int kBiasThreads = 256;
constexpr int kMaxPoolThreads = 512;

// One pooled channel: softmax over the window's scores, applied to its values (2.6).
struct Pool {
  float largest = -INFINITY;
  float total = 0;
  float sum = 0;

  __device__ void add(float score, float value) {
    if (score > largest) {
      const float rescale = expf(largest - score);
      total *= rescale;
      sum *= rescale;
      largest = score;
    }
    const float weight = expf(score - largest);
    total += weight;
    sum += weight * value;
  }
};

// The position bias depends on the absolute position alone, never on the chunk.
__global__ void add_bias_kernel(CompressArgs args) {
  const int r = static_cast<int>(blockIdx.x);
  if (args.batch.slots[r] < 0) return;
  const int phase = args.batch.positions[r] % args.entries.ratio;
  const float* bias = args.bias + std::int64_t{phase} * args.channels;
  float* scores = args.scores + std::int64_t{r} * args.channels;
  for (int c = static_cast<int>(threadIdx.x); c < args.channels; c += kBiasThreads)
    scores[c] += bias[c];
}

// Adds channel c of the rows of positions [begin, end).
__device__ void add_rows(Pool& pool, const CompressArgs& args, const RecentRows& recent, int begin,
                         int end, int c) {
  for (int p = begin; p < end; ++p) {
    const bool in_step = recent.in_step(p);
    const std::int64_t row = in_step ? recent.step_row(p) : recent.ring_row(p);
    const std::int64_t at = row * args.channels + c;
    pool.add((in_step ? args.scores : args.state_scores)[at],
             (in_step ? args.values : args.state_values)[at]);
  }
}

// Normalises, rotates and rounds the pooled entry in shared memory. Each thread comes with the
// channels that it wrote; ends with a barrier.
__device__ void finish_entry(float* entry, const CompressArgs& args, int start, float* scratch) {
  const int first = static_cast<int>(threadIdx.x);
  const int step = static_cast<int>(blockDim.x);
  float squares = 0;
  for (int c = first; c < args.width; c += step) squares += entry[c] * entry[c];
  const float factor = rms_factor(block_sum(squares, scratch), args.width, args.eps);
  for (int c = first; c < args.width; c += step)
    entry[c] = args.norm_weight[c] * (entry[c] * factor);
  __syncthreads();
  float* tail = entry + args.width - 2 * args.pairs;
  for (int p = first; p < args.pairs; p += step)
    rotate_pair(tail + 2 * p, rotation(start, args.inv_freq[p], false));
  __syncthreads();
  round_row_to_grid(entry, args.width, args.grid, 2 * args.pairs);
}

__global__ void pool_kernel(CompressArgs args) {
  extern __shared__ float entry[];  // [width]
  __shared__ float scratch[kReduceScratch];
  const int r = static_cast<int>(blockIdx.x);
  const int slot = args.batch.slots[r];
  if (slot < 0) return;
  const int ratio = args.entries.ratio;
  const int position = args.batch.positions[r];
  if ((position + 1) % ratio != 0) return;
  const int start = position + 1 - ratio;  // first token of the window
  const RecentRows recent(args.batch, r, args.capacity);
  const bool overlaps = args.channels == 2 * args.width;
  for (int c = static_cast<int>(threadIdx.x); c < args.width; c += blockDim.x) {
    Pool pool;
    // With overlap the previous window contributes the first half of the channels and the current
    // one the second half; the first window of a sequence has no previous one.
    if (overlaps && start > 0) add_rows(pool, args, recent, start - ratio, start, c);
    add_rows(pool, args, recent, start, position + 1, overlaps ? args.width + c : c);
    entry[c] = pool.sum / pool.total;
  }
  finish_entry(entry, args, start, scratch);
  const std::int64_t row = PagedRows(args.batch, args.entries, slot).row(position / ratio);
  store_row(args.entries.rows, row, entry);
}

}  // namespace

void compress(const CompressArgs& args, cudaStream_t stream) {
  if (args.batch.rows == 0) return;
  const auto rows = static_cast<unsigned>(args.batch.rows);
  add_bias_kernel<<<rows, kBiasThreads, 0, stream>>>(args);
  QT_CUDA(cudaGetLastError());
  const int threads = std::min(kMaxPoolThreads, (args.width + kWarp - 1) / kWarp * kWarp);
  const std::size_t shared = static_cast<std::size_t>(args.width) * sizeof(float);
  pool_kernel<<<rows, threads, shared, stream>>>(args);
  QT_CUDA(cudaGetLastError());
  // Only now: the pools of this step read the rows that the state kept from earlier ones.
  const auto keep = [&](const float* step, float* state) {
    store_recent({.batch = args.batch,
                  .step = step,
                  .ring = {.data = state,
                           .format = CacheFormat::kF32,
                           .width = args.channels,
                           .row_bytes = args.channels * static_cast<int>(sizeof(float))},
                  .capacity = args.capacity},
                 stream);
  };
  keep(args.values, args.state_values);
  keep(args.scores, args.state_scores);
}

}  // namespace quatrain::cuda

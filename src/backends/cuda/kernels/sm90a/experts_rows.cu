// SPDX-License-Identifier: Apache-2.0
// What the prefill kernel needs beside itself: inputs as BF16, and the list of its tiles.
#include "backends/cuda/cuda_check.h"
#include "backends/cuda/device/bf16_parts.cuh"
#include "backends/cuda/launch/experts.h"

namespace quatrain::cuda {
namespace {

constexpr int kThreads = 256;

// A thread per four columns.
__global__ void __launch_bounds__(kThreads)
    convert_kernel(const float* x, int rows, int cols, int parts, std::uint16_t* to) {
  const int padded = padded_to(cols, kChunkCols);
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t row = i / (padded / 4);
  const int col = static_cast<int>(i % (padded / 4)) * 4;
  if (row >= rows) return;
  float4 value = {};
  if (col < cols) value = *reinterpret_cast<const float4*>(x + row * cols + col);
  store_parts(to + row * parts * padded + col, parts, padded, value);
}

// Passes over an expert's weights, and the eights of tokens in the widest of them.
struct Passes {
  int count;
  int width;
};

// One block: a thread per expert cuts its slots into passes that are as equal as eights allow, and
// finds their place in the list by looking at all other experts.
__global__ void __launch_bounds__(kThreads)
    list_kernel(const int* offsets, int experts, PassTile* tiles, int* count) {
  extern __shared__ Passes passes[];
  const int thread = static_cast<int>(threadIdx.x);
  for (int e = thread; e < experts; e += kThreads) {
    const int slots = offsets[e + 1] - offsets[e];
    const int n = (slots + kWidestPass - 1) / kWidestPass;
    passes[e] = {n, n > 0 ? ((slots + 7) / 8 + n - 1) / n : 0};
  }
  __syncthreads();  // all passes are known
  for (int e = thread; e < experts; e += kThreads) {
    const Passes mine = passes[e];
    int at = 0, all = 0;
    for (int other = 0; other < experts; ++other) {
      const Passes p = passes[other];
      all += p.count;
      if (p.width > mine.width || (p.width == mine.width && other < e)) at += p.count;
    }
    if (e == 0) *count = all;
    const int first = offsets[e], slots = offsets[e + 1] - first, eights = (slots + 7) / 8;
    for (int i = 0; i < mine.count; ++i) {
      const int begin = eights * i / mine.count * 8;
      const int end = min(eights * (i + 1) / mine.count * 8, slots);
      tiles[at + i] = {e, first + begin, end - begin, mine.width * 8};
    }
  }
}

}  // namespace

void convert_rows(const float* x, int rows, int cols, int parts, std::uint16_t* to,
                  cudaStream_t stream) {
  const std::int64_t threads = std::int64_t{rows} * (padded_to(cols, kChunkCols) / 4);
  convert_kernel<<<static_cast<unsigned>((threads + kThreads - 1) / kThreads), kThreads, 0,
                   stream>>>(x, rows, cols, parts, to);
  QT_CUDA(cudaGetLastError());
}

void list_pass_tiles(const int* offsets, int experts, PassTile* tiles, int* count,
                     cudaStream_t stream) {
  list_kernel<<<1, kThreads, static_cast<std::size_t>(experts) * sizeof(Passes), stream>>>(
      offsets, experts, tiles, count);
  QT_CUDA(cudaGetLastError());
}

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// What the prefill kernel needs beside itself: inputs as BF16, and the list of its tiles.
#include "backends/cuda/cuda_check.h"
#include "backends/cuda/device/bf16_parts.cuh"
#include "backends/cuda/device/reduce.cuh"
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

// One warp: a lane per expert cuts its slots into equal tiles.
__global__ void __launch_bounds__(kWarp)
    list_kernel(const int* offsets, int experts, PassTile* tiles, int* count) {
  int before = 0;
  for (int begin = 0; begin < experts; begin += kWarp) {
    const int e = begin + lane_id();
    const int first = e < experts ? offsets[e] : 0;
    const int slots = e < experts ? offsets[e + 1] - first : 0;
    const int passes = (slots + kWidestPass - 1) / kWidestPass;
    const int up_to = before + warp_scan(passes);
    const int share = passes > 0 ? padded_to((slots + passes - 1) / passes, 8) : 0;
    for (int i = 0; i < passes; ++i)
      tiles[up_to - passes + i] = {e, first + i * share, min(share, slots - i * share)};
    before = __shfl_sync(kAllLanes, up_to, kWarp - 1);
  }
  if (threadIdx.x == 0) *count = before;
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
  list_kernel<<<1, kWarp, 0, stream>>>(offsets, experts, tiles, count);
  QT_CUDA(cudaGetLastError());
}

}  // namespace quatrain::cuda

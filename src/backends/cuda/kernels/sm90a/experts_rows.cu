// SPDX-License-Identifier: Apache-2.0
// What the prefill kernel needs beside itself: inputs as BF16 or FP8, and the list of its tiles.
#include "backends/cuda/cuda_check.h"
#include "backends/cuda/device/bf16_parts.cuh"
#include "backends/cuda/device/fp8_activations.cuh"
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

// A warp per row and 128 columns; a lane has those of one word of a packed atom.
__global__ void __launch_bounds__(kThreads)
    quantise_kernel(const float* x, int rows, int cols, Fp8Rows to) {
  const int blocks = padded_to(cols, kChunkCols) / kFp8ActivationBlock;
  const std::int64_t i = std::int64_t{blockIdx.x} * (kThreads / kWarp) + warp_id();
  const std::int64_t row = i / blocks;
  const int block = static_cast<int>(i % blocks);
  if (row >= rows) return;
  const int atom = block * kFp8ActivationBlock + lane_id() / 4 * 16;
  const int col = atom + lane_id() % 4 * 2;
  float2 low = {}, high = {};
  if (atom < cols) {  // a multiple of 16
    low = *reinterpret_cast<const float2*>(x + row * cols + col);
    high = *reinterpret_cast<const float2*>(x + row * cols + col + 8);
  }
  const float4 word = {low.x, high.x, low.y, high.y};
  const float scale = fp8_scale_of(word);
  reinterpret_cast<std::uint32_t*>(to.codes)[i * kWarp + lane_id()] = fp8_codes(word, scale);
  if (lane_id() == 0) to.scales[i] = scale;
}

// Passes over an expert's weights, and the eights of tokens in the widest of them.
struct Passes {
  int count;
  int width;
};

// One block: a thread per expert cuts its slots into passes that are as equal as eights allow, and
// finds their place in the list by looking at all other experts.
__global__ void __launch_bounds__(kThreads)
    list_kernel(const int* offsets, int experts, int widest, PassTile* tiles, int* count) {
  extern __shared__ Passes passes[];
  const int thread = static_cast<int>(threadIdx.x);
  for (int e = thread; e < experts; e += kThreads) {
    const int slots = offsets[e + 1] - offsets[e];
    const int n = (slots + widest - 1) / widest;
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

void quantise_expert_rows(const float* x, int rows, int cols, const Fp8Rows& to,
                          cudaStream_t stream) {
  const std::int64_t warps =
      std::int64_t{rows} * (padded_to(cols, kChunkCols) / kFp8ActivationBlock);
  constexpr int kWarps = kThreads / kWarp;
  quantise_kernel<<<static_cast<unsigned>((warps + kWarps - 1) / kWarps), kThreads, 0, stream>>>(
      x, rows, cols, to);
  QT_CUDA(cudaGetLastError());
}

void list_pass_tiles(const int* offsets, int experts, int widest, PassTile* tiles, int* count,
                     cudaStream_t stream) {
  // Whole 16 bytes: the compiler reads two at once, the last one, too.
  const auto shared = static_cast<std::size_t>(padded_to(experts, 2)) * sizeof(Passes);
  list_kernel<<<1, kThreads, shared, stream>>>(offsets, experts, widest, tiles, count);
  QT_CUDA(cudaGetLastError());
}

}  // namespace quatrain::cuda

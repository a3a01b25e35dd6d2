// SPDX-License-Identifier: Apache-2.0
#include "attention_probes.h"

#include "backends/cuda/device/cache_rows.cuh"
#include "backends/cuda/device/wgmma_f16.cuh"

namespace quatrain::bench {
namespace {

constexpr int kProducts = 4096;
constexpr int kSharedBytes = 4 * 64 * 128 + 4 * 64 * 128;

// Two warp groups with 64 x 256 sums each, as in the attention kernels.
__global__ void __launch_bounds__(256, 1) multiply_kernel(float* sink) {
  extern __shared__ unsigned char raw[];
  const std::uint32_t base = (cuda::shared_address(raw) + 1023) & ~1023u;
  auto* words = reinterpret_cast<__half*>(raw + (base - cuda::shared_address(raw)));
  std::uint32_t state = threadIdx.x * 2654435761u + blockIdx.x + 1;
  for (int i = static_cast<int>(threadIdx.x); i < kSharedBytes / 2; i += 256) {
    state = state * 1664525u + 1013904223u;
    words[i] = __float2half_rn(static_cast<float>(static_cast<int>(state) >> 16) / 32768.0f);
  }
  cuda::fence_operands();
  __syncthreads();
  float sums[128] = {};
  cuda::wgmma_fence();
  for (int i = 0; i < kProducts; ++i) {
    cuda::wgmma_m64n256_rows(sums, cuda::operand(base + i % 4 * 32, 16, 1024),
                             cuda::operand(base + 32768 + i % 4 * 2048, 8192, 1024), true);
    if (i % 8 == 7) cuda::wgmma_commit();
  }
  cuda::wgmma_wait<0>();
  float all = 0;
#pragma unroll
  for (int i = 0; i < 128; ++i) all += sums[i];
  if (all == 1.5f) *sink = all;
}

}  // namespace

double multiply(int processors, float* sink, cudaStream_t stream) {
  QT_CUDA(cudaFuncSetAttribute(multiply_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               kSharedBytes + 1024));
  multiply_kernel<<<static_cast<unsigned>(processors), 256, kSharedBytes + 1024, stream>>>(sink);
  QT_CUDA(cudaGetLastError());
  return 2.0 * 2 * 64 * 256 * 16 * kProducts * processors;
}

}  // namespace quatrain::bench

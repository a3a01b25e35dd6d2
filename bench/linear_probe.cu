// SPDX-License-Identifier: Apache-2.0
// The read-bandwidth probe of linear_bench: a plain sum over memory.
#include "linear_probe.h"

namespace quatrain::bench {
namespace {

__global__ void __launch_bounds__(512)
    sum_kernel(const uint4* from, std::int64_t count, unsigned* out) {
  unsigned sum = 0;
  const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x;
  std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; i + 7 * step < count; i += 8 * step) {
    uint4 words[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) words[j] = __ldcs(from + i + j * step);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += words[j].x ^ words[j].y ^ words[j].z ^ words[j].w;
  }
  for (; i < count; i += step) sum += from[i].x;
  if (sum == 0x12345678u) *out = sum;  // keeps the loads
}

}  // namespace

void read_all(const void* from, std::int64_t bytes, void* out, cudaStream_t stream) {
  sum_kernel<<<132 * 4, 512, 0, stream>>>(static_cast<const uint4*>(from), bytes / 16,
                                          static_cast<unsigned*>(out));
}

}  // namespace quatrain::bench

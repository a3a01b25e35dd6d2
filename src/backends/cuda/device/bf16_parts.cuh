// SPDX-License-Identifier: Apache-2.0
// FP32 numbers as one BF16, or as two whose sum keeps 16 bits.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace quatrain::cuda {

__device__ inline std::uint32_t bf16_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}
__device__ inline float low_float(std::uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ inline float high_float(std::uint32_t pair) {
  return __uint_as_float(pair & 0xFFFF0000u);
}

/// Two BF16 products, rounded to nearest; subnormals count.
__device__ inline std::uint32_t multiply_bf16x2(std::uint32_t a, std::uint32_t b) {
  std::uint32_t product;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

/// Writes four numbers' parts; their second parts follow `distance` columns after the first.
__device__ inline void store_parts(std::uint16_t* at, int parts, int distance, float4 x) {
  const std::uint32_t first = bf16_pair(x.x, x.y), second = bf16_pair(x.z, x.w);
  *reinterpret_cast<uint2*>(at) = {first, second};
  if (parts == 2)
    *reinterpret_cast<uint2*>(at + distance) = {
        bf16_pair(x.x - low_float(first), x.y - high_float(first)),
        bf16_pair(x.z - low_float(second), x.w - high_float(second))};
}

__device__ inline void store_parts(std::uint16_t* at, int parts, int distance, float x) {
  const __nv_bfloat16 high = __float2bfloat16_rn(x);
  at[0] = __bfloat16_as_ushort(high);
  if (parts == 2)
    at[distance] = __bfloat16_as_ushort(__float2bfloat16_rn(x - __bfloat162float(high)));
}

}  // namespace quatrain::cuda

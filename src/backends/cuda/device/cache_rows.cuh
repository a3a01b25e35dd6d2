// SPDX-License-Identifier: Apache-2.0
// Reads and writes of rows that are BF16 or FP32. Which is uniform over a launch.
#pragma once

#include <cstdint>

#include "backends/cuda/launch/batch.h"
#include "core/codec.h"

namespace quatrain::cuda {

/// Elements at … at + 7 to FP32; `at` is a multiple of 8.
__device__ inline void load8(const CacheRows& rows, std::int64_t at, float (&out)[8]) {
  if (rows.is_bf16) {
    const uint4 packed =
        *reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(rows.data) + at);
    const std::uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      out[2 * j] = __uint_as_float(words[j] << 16);
      out[2 * j + 1] = __uint_as_float(words[j] & 0xFFFF0000u);
    }
    return;
  }
  const auto* from = reinterpret_cast<const float4*>(static_cast<const float*>(rows.data) + at);
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const float4 four = from[j];
    out[4 * j] = four.x;
    out[4 * j + 1] = four.y;
    out[4 * j + 2] = four.z;
    out[4 * j + 3] = four.w;
  }
}

__device__ inline void store(const CacheRows& rows, std::int64_t at, float value) {
  if (rows.is_bf16)
    static_cast<std::uint16_t*>(rows.data)[at] = bf16_encode(value);
  else
    static_cast<float*>(rows.data)[at] = value;
}

/// The value that store() and load8() would give back.
__device__ inline float as_stored(const CacheRows& rows, float value) {
  return rows.is_bf16 ? bf16_round(value) : value;
}

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// Values as pairs of F16, which tensor cores multiply.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace quatrain::cuda {

__device__ inline std::uint32_t f16_pair(float a, float b) {
  const __half2 pair = __floats2half2_rn(a, b);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}

__device__ inline uint4 bf16_to_f16(uint4 raw) {
  const std::uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
  std::uint32_t out[4];
#pragma unroll
  for (int j = 0; j < 4; ++j)
    out[j] = f16_pair(__uint_as_float(words[j] << 16), __uint_as_float(words[j] & 0xFFFF0000u));
  return {out[0], out[1], out[2], out[3]};
}

}  // namespace quatrain::cuda

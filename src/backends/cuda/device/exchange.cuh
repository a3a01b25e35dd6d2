// SPDX-License-Identifier: Apache-2.0
// Exchanges among the lanes of a warp that turn the results of tensor cores into whole sectors of
// memory. Lane l of a result has elements 2 (l % 4) and the next one of row l / 4.
#pragma once

#include <cstdint>

#include "backends/cuda/device/reduce.cuh"

namespace quatrain::cuda {

/// The transpose of an 8 x 8 matrix of 16-bit values, of which a lane has two neighbours in a row.
__device__ inline std::uint32_t transposed(std::uint32_t pair) {
  std::uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
  return result;
}

/// Lane i of every four gets words[i] of all of them, in order.
__device__ inline uint4 quad_transposed(const std::uint32_t (&words)[4]) {
  const bool odd = lane_id() % 2 != 0, high = lane_id() % 4 >= 2;
  const std::uint32_t a = __shfl_xor_sync(kAllLanes, odd ? words[0] : words[1], 1);
  const std::uint32_t b = __shfl_xor_sync(kAllLanes, odd ? words[2] : words[3], 1);
  const uint2 low_pair = odd ? uint2{a, words[1]} : uint2{words[0], a};
  const uint2 high_pair = odd ? uint2{b, words[3]} : uint2{words[2], b};
  const std::uint32_t x = __shfl_xor_sync(kAllLanes, high ? low_pair.x : high_pair.x, 2);
  const std::uint32_t y = __shfl_xor_sync(kAllLanes, high ? low_pair.y : high_pair.y, 2);
  return high ? uint4{x, y, high_pair.x, high_pair.y} : uint4{low_pair.x, low_pair.y, x, y};
}

/// Of eight values in every lane the maxima over the lanes that have lane % 4 in common: lane l
/// gets that of values[l / 4].
__device__ inline unsigned eight_maxima(const unsigned (&values)[8]) {
  const int lane = lane_id();
  unsigned four[4], two[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool high = (lane & 16) != 0;
    const unsigned given = high ? values[i] : values[i + 4];
    four[i] = max(high ? values[i + 4] : values[i], __shfl_xor_sync(kAllLanes, given, 16));
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool high = (lane & 8) != 0;
    const unsigned given = high ? four[i] : four[i + 2];
    two[i] = max(high ? four[i + 2] : four[i], __shfl_xor_sync(kAllLanes, given, 8));
  }
  const bool high = (lane & 4) != 0;
  const unsigned given = high ? two[0] : two[1];
  return max(high ? two[1] : two[0], __shfl_xor_sync(kAllLanes, given, 4));
}

/// Of two rows of eight, of which a lane has elements 2 (lane % 4) and the next one of each: even
/// lanes get four neighbours of the first row, odd ones of the second, from 4 (lane % 4 / 2) on.
__device__ inline float4 four_neighbours(float2 first, float2 second) {
  const bool odd = lane_id() % 2 != 0;
  const float2 given = odd ? first : second;
  const float2 taken = {__shfl_xor_sync(kAllLanes, given.x, 1),
                        __shfl_xor_sync(kAllLanes, given.y, 1)};
  return odd ? float4{taken.x, taken.y, second.x, second.y}
             : float4{first.x, first.y, taken.x, taken.y};
}

}  // namespace quatrain::cuda

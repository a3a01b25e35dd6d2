// SPDX-License-Identifier: Apache-2.0
// Rotation and grid rounding of a row in shared memory by all threads of a block.
//
// The rounding gives the same bits as backends/cpu/norm.cpp: every step is one correctly rounded
// operation and no product feeds a sum, so nothing is contracted.
#pragma once

#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/launch/elementwise.h"
#include "core/codec.h"

namespace quatrain::cuda {

/// cos and sin of position·inv_freq. The angle is one FP32 product; sincosf reduces any range.
__device__ inline float2 rotation(int position, float inv_freq, bool inverse) {
  float s, c;
  sincosf(__fmul_rn(static_cast<float>(position), inv_freq), &s, &c);
  return {c, inverse ? -s : s};
}

/// Rotates the pair at `pair` by (cos, sin), to the same bits wherever it is inlined.
__device__ inline void rotate_pair(float* pair, float2 turn) {
  const float a = pair[0];
  const float b = pair[1];
  pair[0] = fmaf(a, turn.x, -__fmul_rn(b, turn.y));
  pair[1] = fmaf(a, turn.y, __fmul_rn(b, turn.x));
}

/// FP8-sim of x[0, n): a warp per 64 columns.
__device__ inline void fp8_grid(float* x, int n) {
  constexpr int kBlock = 64;
  for (int begin = warp_id() * kBlock; begin < n; begin += warps_in_block() * kBlock) {
    const int first = begin + lane_id();
    const int second = first + kWarp;
    const float a = first < n ? x[first] : 0.0f;
    const float b = second < n ? x[second] : 0.0f;
    const float amax = warp_max(fmaxf(1e-4f, fmaxf(fabsf(a), fabsf(b))));
    const float scale = ue8m0_decode(ue8m0_encode_up(__fdiv_rn(amax, kE4M3Max)));
    if (first < n) x[first] = e4m3_decode(e4m3_encode(__fdiv_rn(a, scale))) * scale;
    if (second < n) x[second] = e4m3_decode(e4m3_encode(__fdiv_rn(b, scale))) * scale;
  }
}

/// FP4-sim of x[0, n): a warp per 32 columns.
__device__ inline void fp4_grid(float* x, int n) {
  constexpr float kSmallest = 6.0f * 1.1754943508222875e-38f;  // 6 · 2^-126
  for (int begin = warp_id() * kWarp; begin < n; begin += warps_in_block() * kWarp) {
    const int i = begin + lane_id();
    const float a = i < n ? x[i] : 0.0f;
    const float amax = warp_max(fmaxf(kSmallest, fabsf(a)));
    const float scale = ue8m0_decode(ue8m0_encode_up(__fdiv_rn(amax, kE2M1Max)));
    if (i < n) x[i] = e2m1_decode(e2m1_encode(__fdiv_rn(a, scale))) * scale;
  }
}

/// Sylvester–Hadamard transform times n^-½; n is a power of two. Ends with a barrier.
__device__ inline void hadamard(float* x, int n) {
  for (int half = 1; half < n; half *= 2) {
    for (int pair = static_cast<int>(threadIdx.x); pair < n / 2; pair += blockDim.x) {
      const int i = pair / half * 2 * half + pair % half;
      const float a = x[i];
      const float b = x[i + half];
      x[i] = a + b;
      x[i + half] = a - b;
    }
    __syncthreads();
  }
  const float scale = __fdiv_rn(1.0f, __fsqrt_rn(static_cast<float>(n)));
  for (int i = static_cast<int>(threadIdx.x); i < n; i += blockDim.x) x[i] *= scale;
  __syncthreads();
}

/// All threads call it, after a barrier that follows the writes of x; it ends with a barrier.
__device__ inline void round_row_to_grid(float* x, int n, Grid grid, int rope_dim) {
  if (grid == Grid::kFp8) fp8_grid(x, n - rope_dim);
  if (grid == Grid::kHadamardFp4) {
    hadamard(x, n);
    fp4_grid(x, n);
  }
  __syncthreads();
}

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// Sums and maxima over a warp and a block, with one fixed order and the same bits in every thread.
#pragma once

namespace quatrain::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xFFFFFFFFu;
/// Floats of shared memory that the block-wide functions need.
inline constexpr int kReduceScratch = 32;

// Divided without a sign, which takes one instruction instead of three.
__device__ inline int lane_id() { return static_cast<int>(threadIdx.x % kWarp); }
__device__ inline int warp_id() { return static_cast<int>(threadIdx.x / kWarp); }
/// warp_id() as the first lane has it: so the compiler knows that all lanes have the same, and
/// keeps what follows from it in uniform registers. All lanes of the warp.
__device__ inline int uniform_warp_id() { return __shfl_sync(kAllLanes, warp_id(), 0); }
__device__ inline int warps_in_block() { return static_cast<int>(blockDim.x / kWarp); }

/// Both halves of a butterfly add the same two numbers, so all lanes agree bit for bit.
__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

/// Inclusive sum over the lanes of a warp.
__device__ inline int warp_scan(int value) {
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int other = __shfl_up_sync(kAllLanes, value, offset);
    if (lane_id() >= offset) value += other;
  }
  return value;
}

/// Over groups of `kGroup` consecutive lanes; NaN is ignored.
template <int kGroup = kWarp>
__device__ inline float warp_max(float value) {
#pragma unroll
  for (int offset = kGroup / 2; offset > 0; offset /= 2)
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, offset));
  return value;
}

/// All threads of a one-dimensional block of whole warps must call it. Whatever the threads wrote
/// to shared memory before is visible to all of them after.
__device__ inline float block_sum(float value, float* scratch) {
  value = warp_sum(value);
  __syncthreads();  // an earlier use of the scratch is over
  if (lane_id() == 0) scratch[warp_id()] = value;
  __syncthreads();
  return warp_sum(lane_id() < warps_in_block() ? scratch[lane_id()] : 0.0f);
}

/// As block_sum; for values ≥ 0.
__device__ inline float block_max(float value, float* scratch) {
  value = warp_max(value);
  __syncthreads();
  if (lane_id() == 0) scratch[warp_id()] = value;
  __syncthreads();
  return warp_max(lane_id() < warps_in_block() ? scratch[lane_id()] : 0.0f);
}

}  // namespace quatrain::cuda

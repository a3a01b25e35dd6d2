// SPDX-License-Identifier: Apache-2.0
// Where the sums of a strip of 16 weight rows go that a warp has as operands' order has them.
#pragma once

#include <cstdint>

#include "backends/cuda/device/linear_strip.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/weight_decode.cuh"

namespace quatrain::cuda {

/// A lane's: two rows, 8 apart, by two tokens of every 8.
class StripTarget {
 public:
  /// Of `w`, whose products are `out` [tokens, rows]. The lane's first row is `lane_row` of the
  /// strip; its tokens are counted from `token0` on, and there are `tokens` of them.
  __device__ StripTarget(const Matrix& w, float* out, const Strip& strip, int lane_row, int token0,
                         int tokens)
      : stride_(w.rows), global_scale_(w.global_scale) {
    const int row = strip.row + lane_row, token = lane_id() % 4 * 2;
    to_ = out + std::int64_t{token0 + token} * w.rows + row;
    tokens_ = tokens - token;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      is_there_[half] = row + 8 * half < strip.end;
      scale_[half] = is_there_[half] ? row_scale(w, row + 8 * half) : 0.0f;
    }
  }
  /// Sums of tokens 8 n on, as mma_bf16's d.
  __device__ void write(int n, const float4& sum) const {
    const float values[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (8 * n + i >= tokens_) continue;
      float* at = to_ + (8 * n + i) * stride_;
#pragma unroll
      for (int half = 0; half < 2; ++half)
        if (is_there_[half]) at[8 * half] = values[2 * half + i] * scale_[half] * global_scale_;
    }
  }

 private:
  float* to_;  // of the first row and the lane's first token
  std::int64_t stride_;
  float scale_[2];
  float global_scale_;
  bool is_there_[2];
  int tokens_;  // from the lane's first on
};

}  // namespace quatrain::cuda

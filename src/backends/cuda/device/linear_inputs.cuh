// SPDX-License-Identifier: Apache-2.0
// Inputs of a warp's block of 128 columns as operand B, both parts, straight from memory to
// registers.
#pragma once

#include <cstdint>

#include "backends/cuda/device/linear_tile.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/scalar.cuh"

namespace quatrain::cuda {

/// Where inputs lie: [tokens, groups, cols], of which `tokens` from `token0` on and one group are
/// wanted.
struct InputRows {
  const float* x = nullptr;
  const float* up = nullptr;  // the input is swiglu(x, up); null for x itself
  float limit = 0;
  int token0 = 0;
  int tokens = 0;
  int group = 0;
  int groups = 1;
  int cols = 0;

  /// Four columns of one token, of x or up; zeros outside.
  __device__ float4 load(const float* from, int token, int column) const {
    if (token >= tokens || column >= cols) return {0, 0, 0, 0};
    return *reinterpret_cast<const float4*>(
        from + (std::int64_t{token0 + token} * groups + group) * cols + column);
  }
};

/// Operand B of a block of columns and 8 tokens. Lane l has token l / 4; word j of a pair is
/// register j % 2 of step j / 2.
struct InputBlock {
  uint4 part[2][kSteps / 2];
};

/// The column of a block from which a lane's load `q` of 8 starts; place_of_column() inverted.
template <LinearKind kKind>
__device__ inline int input_column(int q, int quarter) {
  if constexpr (kKind == LinearKind::kFp8) return 64 * (q / 4) + 16 * quarter + 4 * (q % 4);
  if constexpr (kKind == LinearKind::kBf16) return 32 * (q / 2) + 8 * quarter + 4 * (q % 2);
  return 32 * quarter + 4 * q;
}

/// A lane's inputs of a block, as they are asked for.
using LaneInputs = float4[kSteps];

template <LinearKind kKind>
__device__ inline void load_inputs(const InputRows& rows, int token, int first_column,
                                   LaneInputs& v) {
  const auto column = [&](int q) { return first_column + input_column<kKind>(q, lane_id() % 4); };
#pragma unroll
  for (int q = 0; q < kSteps; ++q) v[q] = rows.load(rows.x, token, column(q));
  if (rows.up == nullptr) return;
#pragma unroll
  for (int q = 0; q < kSteps; ++q) {
    const float4 up = rows.load(rows.up, token, column(q));
    v[q] = {swiglu_value(v[q].x, up.x, rows.limit), swiglu_value(v[q].y, up.y, rows.limit),
            swiglu_value(v[q].z, up.z, rows.limit), swiglu_value(v[q].w, up.w, rows.limit)};
  }
}

/// Returns the factor that sums of the lane's token need.
template <LinearKind kKind>
__device__ inline float split_inputs(const LaneInputs& v, InputBlock& out) {
  float amax = 0;
  if constexpr (kKind == LinearKind::kFp8) {
#pragma unroll
    for (int q = 0; q < kSteps; ++q)
      amax = fmaxf(amax,
                   fmaxf(fmaxf(fabsf(v[q].x), fabsf(v[q].y)), fmaxf(fabsf(v[q].z), fabsf(v[q].w))));
    amax = warp_max<4>(amax);  // the lanes of a token
  }
  const InputRange range = input_range<kKind>(amax);
#pragma unroll
  for (int pair = 0; pair < kSteps / 2; ++pair) {
    const float4 a = v[2 * pair], b = v[2 * pair + 1];
    std::uint32_t word[4][2];
    if constexpr (kIsFp4<kKind>) {  // codes four apart stand side by side
      split_pair<kKind>(a.x, b.x, range.up, word[0]);
      split_pair<kKind>(a.y, b.y, range.up, word[1]);
      split_pair<kKind>(a.z, b.z, range.up, word[2]);
      split_pair<kKind>(a.w, b.w, range.up, word[3]);
    } else {
      split_pair<kKind>(a.x, a.y, range.up, word[0]);
      split_pair<kKind>(a.z, a.w, range.up, word[1]);
      split_pair<kKind>(b.x, b.y, range.up, word[2]);
      split_pair<kKind>(b.z, b.w, range.up, word[3]);
    }
#pragma unroll
    for (int part = 0; part < 2; ++part)
      out.part[part][pair] = {word[0][part], word[1][part], word[2][part], word[3][part]};
  }
  return range.factor;
}

}  // namespace quatrain::cuda

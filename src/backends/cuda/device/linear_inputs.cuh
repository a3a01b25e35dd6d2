// SPDX-License-Identifier: Apache-2.0
// Inputs of a slice of columns as operand B, both 16-bit parts, in shared memory.
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

/// [kSliceBlocks][kSteps][kTokens][4 lanes of a token]: what a lane gives to one step, the first
/// part in x and y, the second in z and w.
template <int kTokens>
struct SplitInputs {
  static constexpr int kBytes = kSliceBlocks * kSteps * kTokens * 64;
  static constexpr int kFactors = kSliceBlocks * kTokens;
  uint4* parts;
  float* factors;  // [kSliceBlocks][kTokens]: what sums of a token and block need

  __device__ uint4& at(int block, int step, int token, int quarter) const {
    return parts[((block * kSteps + step) * kTokens + token) * 4 + quarter];
  }
};

/// Eight columns of a token, which are a lane's share of two steps.
struct InputOctet {
  float4 low, high;

  __device__ void load(const InputRows& rows, int token, int column) {
    low = rows.load(rows.x, token, column);
    high = rows.load(rows.x, token, column + 4);
    if (rows.up == nullptr) return;
    low = gated(low, rows.load(rows.up, token, column), rows.limit);
    high = gated(high, rows.load(rows.up, token, column + 4), rows.limit);
  }
  __device__ float amax() const {
    return fmaxf(fmaxf(fmaxf(fabsf(low.x), fabsf(low.y)), fmaxf(fabsf(low.z), fabsf(low.w))),
                 fmaxf(fmaxf(fabsf(high.x), fabsf(high.y)), fmaxf(fabsf(high.z), fabsf(high.w))));
  }
  __device__ static float4 gated(const float4& x, const float4& up, float limit) {
    return {swiglu_value<close_sigmoid>(x.x, up.x, limit),
            swiglu_value<close_sigmoid>(x.y, up.y, limit),
            swiglu_value<close_sigmoid>(x.z, up.z, limit),
            swiglu_value<close_sigmoid>(x.w, up.w, limit)};
  }
};

/// Splits one octet of a block into its two steps; all lanes of a warp, 16 in a row have a token's
/// block, whose columns from 8 (lane % 16) on are theirs. There may be no room for the token.
template <LinearKind kKind, int kTokens>
__device__ inline void split_octet(const InputOctet& v, const SplitInputs<kTokens>& out, int block,
                                   int token) {
  const int octet = lane_id() % 16;
  InputRange range;
  if constexpr (kKind == LinearKind::kFp8) {
    range = input_range<kKind>(warp_max<16>(v.amax()));
    if (octet == 0 && token < kTokens) out.factors[block * kTokens + token] = range.factor;
  }
  if (token >= kTokens) return;
  // place_of_column() of the first of the eight columns; codes of FP4 four apart stand side by side
  int step, quarter;
  std::uint32_t word[4][2];
  if constexpr (kIsFp4<kKind>) {
    step = octet % 4 * 2, quarter = octet / 4;
    split_pair<kKind>(v.low.x, v.high.x, range.up, word[0]);
    split_pair<kKind>(v.low.y, v.high.y, range.up, word[1]);
    split_pair<kKind>(v.low.z, v.high.z, range.up, word[2]);
    split_pair<kKind>(v.low.w, v.high.w, range.up, word[3]);
  } else {
    if constexpr (kKind == LinearKind::kFp8)
      step = octet / 8 * 4 + octet % 2 * 2, quarter = octet / 2 % 4;
    else
      step = octet / 4 * 2, quarter = octet % 4;
    split_pair<kKind>(v.low.x, v.low.y, range.up, word[0]);
    split_pair<kKind>(v.low.z, v.low.w, range.up, word[1]);
    split_pair<kKind>(v.high.x, v.high.y, range.up, word[2]);
    split_pair<kKind>(v.high.z, v.high.w, range.up, word[3]);
  }
  out.at(block, step, token, quarter) = {word[0][0], word[1][0], word[0][1], word[1][1]};
  out.at(block, step + 1, token, quarter) = {word[2][0], word[3][0], word[2][1], word[3][1]};
}

/// Splits the `blocks` blocks of a slice, `rows.tokens` tokens; all threads of a block of
/// `kThreads`. A barrier makes the parts known to all.
template <LinearKind kKind, int kTokens, int kThreads>
__device__ inline void split_inputs(const InputRows& rows, int slice, int blocks,
                                    const SplitInputs<kTokens>& out) {
  constexpr int kPitch = kThreads / 16;
  constexpr int kOfThread = kTokens * kSliceBlocks / kPitch;
  const int first = static_cast<int>(threadIdx.x) / 16;
  const int column = slice * kSliceBlocks * kLinearBlock + lane_id() % 16 * 8;
  InputOctet v[kOfThread];
#pragma unroll
  for (int i = 0; i < kOfThread; ++i) {
    const int item = i * kPitch + first;
    v[i].load(rows, item / blocks, column + item % blocks * kLinearBlock);
  }
#pragma unroll
  for (int i = 0; i < kOfThread; ++i) {
    const int item = i * kPitch + first;
    if (i * kPitch < rows.tokens * blocks)  // all of a warp or none, which compare
      split_octet<kKind>(v[i], out, item % blocks, item / blocks);
  }
}

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// Inputs of some blocks of columns as operand B, as 16-bit parts, in shared memory.
#pragma once

#include <cstdint>
#include <type_traits>

#include "backends/cuda/device/linear_tile.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/scalar.cuh"

namespace quatrain::cuda {

/// Where inputs lie: [tokens, groups, cols], of which `tokens` from `token0` on and one group are
/// wanted.
struct LinearRows {
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

/// [blocks][kSteps][kTokens][4 lanes of a token]: what a lane gives to one step, the first part in
/// x and y, the second, where there is one, in z and w.
template <int kTokens, int kParts>
struct SplitInputs {
  using Share = std::conditional_t<kParts == 2, uint4, uint2>;
  static constexpr int kBlockShares = kSteps * kTokens * 4;
  static constexpr int kBlockBytes = static_cast<int>(sizeof(Share)) * kBlockShares + 4 * kTokens;
  Share* shares;
  float* factors;  // [blocks][kTokens]: what sums of a token and block need

  struct Part {
    std::uint32_t x, y;
  };
  __device__ static Part part_of(const Share& share, int part) {
    if constexpr (kParts == 2)
      if (part == 1) return {share.z, share.w};
    return {share.x, share.y};
  }
  __device__ Share& at(int block, int step, int token, int quarter) const {
    return shares[((block * kSteps + step) * kTokens + token) * 4 + quarter];
  }
};

/// Eight columns of a token, which are a lane's share of two steps.
struct InputOctet {
  float4 low, high;

  __device__ void load(const LinearRows& rows, const float* from, int token, int column) {
    low = rows.load(from, token, column);
    high = rows.load(from, token, column + 4);
  }
  __device__ float amax() const {
    return fmaxf(fmaxf(fmaxf(fabsf(low.x), fabsf(low.y)), fmaxf(fabsf(low.z), fabsf(low.w))),
                 fmaxf(fmaxf(fabsf(high.x), fabsf(high.y)), fmaxf(fabsf(high.z), fabsf(high.w))));
  }
  __device__ void gate(const InputOctet& up, float limit) {
    low = swiglu_inputs(low, up.low, limit);
    high = swiglu_inputs(high, up.high, limit);
  }
};

/// Splits one octet of a block into its two steps; all lanes of a warp, 16 in a row have a token's
/// block, whose columns from 8 (lane % 16) on are theirs. There may be no room for the token.
template <LinearKind kKind, int kTokens>
__device__ inline void split_octet(const InputOctet& v,
                                   const SplitInputs<kTokens, kParts<kKind>>& out, int block,
                                   int token) {
  const int octet = lane_id() % 16;
  F16ActivationRange range;
  if constexpr (kIsFp8<kKind>) {
    range = input_range<kKind>(warp_max<16>(v.amax()));
    if (octet == 0 && token < kTokens) out.factors[block * kTokens + token] = range.down;
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
    if constexpr (kIsFp8<kKind>)
      step = octet / 8 * 4 + octet % 2 * 2, quarter = octet / 2 % 4;
    else
      step = octet / 4 * 2, quarter = octet % 4;
    split_pair<kKind>(v.low.x, v.low.y, range.up, word[0]);
    split_pair<kKind>(v.low.z, v.low.w, range.up, word[1]);
    split_pair<kKind>(v.high.x, v.high.y, range.up, word[2]);
    split_pair<kKind>(v.high.z, v.high.w, range.up, word[3]);
  }
  if constexpr (kParts<kKind> == 1) {
    out.at(block, step, token, quarter) = {word[0][0], word[1][0]};
    out.at(block, step + 1, token, quarter) = {word[2][0], word[3][0]};
  } else {
    out.at(block, step, token, quarter) = {word[0][0], word[1][0], word[0][1], word[1][1]};
    out.at(block, step + 1, token, quarter) = {word[2][0], word[3][0], word[2][1], word[3][1]};
  }
}

/// Splits `blocks` blocks of columns from `first_column` on, `rows.tokens` tokens; all threads of a
/// block of `kThreads`. A barrier makes the parts known to all.
template <LinearKind kKind, int kThreads, int kTokens>
__device__ inline void split_inputs(const LinearRows& rows, int first_column, int blocks,
                                    const SplitInputs<kTokens, kParts<kKind>>& out) {
  constexpr int kPitch = kThreads / 16;
  const int column = first_column + lane_id() % 16 * 8;
  const int items = rows.tokens * blocks;
  // Item i is block i % blocks of token i / blocks, counted rather than divided.
  int token = 0, block = static_cast<int>(threadIdx.x) / 16;
  const auto settle = [&] {
    while (block >= blocks) {
      block -= blocks;
      ++token;
    }
  };
  settle();
  InputOctet next, next_up;
  const auto load_next = [&] {
    const int at = column + block * kLinearBlock;
    next.load(rows, rows.x, token, at);
    if (rows.up != nullptr) next_up.load(rows, rows.up, token, at);
  };
  load_next();
#pragma unroll 1
  for (int i = 0; i < items; i += kPitch) {  // all of a warp or none, whose lanes compare
    InputOctet v = next;
    if (rows.up != nullptr) v.gate(next_up, rows.limit);
    const int loaded_token = token, loaded_block = block;
    block += kPitch;
    settle();
    if (i + kPitch < items) load_next();
    split_octet<kKind, kTokens>(v, out, loaded_block, loaded_token);
  }
}

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// Inputs of some blocks of columns as operand B, as 16-bit parts, in shared memory.
#pragma once

#include <cstdint>

#include "backends/cuda/device/linear_tile.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/scalar.cuh"
#include "backends/cuda/launch/divisor.h"

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

  /// Of one token, in x or up.
  __device__ const float* row(const float* from, int token) const {
    return from + (std::int64_t{token0 + token} * groups + group) * cols;
  }
};

/// A lane's share of a pair of steps, 16 bytes: its two words for the first step, then for the
/// second. [blocks][pairs of steps][kParts][kTokens][4 lanes of a token]; in every second pair the
/// tokens 2i and 2i + 1 have changed places, so that lanes that write or read together do not meet
/// in a bank.
template <int kTokens, int kParts>
struct SplitInputs {
  static constexpr int kPairs = kSteps / 2;
  static constexpr int kBlockShares = kPairs * kParts * kTokens * 4;
  static constexpr int kBlockBytes = static_cast<int>(sizeof(uint4)) * kBlockShares + 4 * kTokens;
  static_assert(kTokens % 2 == 0);
  uint4* shares;   // aligned to 128 bytes
  float* factors;  // [blocks][kTokens]: what sums of a token and block need

  /// A lane's share of a token and pair, part 0; pairs of one parity are equally far apart.
  __device__ uint4* at(int block, int pair, int token, int quarter) const {
    return shares + block * kBlockShares + pair * kParts * kTokens * 4 + (token ^ (pair & 1)) * 4 +
           quarter;
  }
};

/// Eight columns of a token, which are a lane's share of a pair of steps. Rows are whole octets.
struct InputOctet {
  float4 low = {0, 0, 0, 0}, high = {0, 0, 0, 0};

  __device__ void load(const float* from) {
    low = reinterpret_cast<const float4*>(from)[0];
    high = reinterpret_cast<const float4*>(from)[1];
  }
  __device__ float amax() const {
    return fmaxf(fmaxf(fmaxf(fabsf(low.x), fabsf(low.y)), fmaxf(fabsf(low.z), fabsf(low.w))),
                 fmaxf(fmaxf(fabsf(high.x), fabsf(high.y)), fmaxf(fabsf(high.z), fabsf(high.w))));
  }
  __device__ void gate(const InputOctet& up, float limit) {
    low = swiglu_inputs(low, up.low, limit);
    high = swiglu_inputs(high, up.high, limit);
  }

  /// Writes its parts, `kTokens` tokens apart. Codes of FP4 four apart stand side by side.
  template <LinearKind kKind, int kTokens>
  __device__ void split(float up, uint4* to) const {
    std::uint32_t word[4][2];
    if constexpr (kIsFp4<kKind>) {
      split_pair<kKind>(low.x, high.x, up, word[0]);
      split_pair<kKind>(low.y, high.y, up, word[1]);
      split_pair<kKind>(low.z, high.z, up, word[2]);
      split_pair<kKind>(low.w, high.w, up, word[3]);
    } else {
      split_pair<kKind>(low.x, low.y, up, word[0]);
      split_pair<kKind>(low.z, low.w, up, word[1]);
      split_pair<kKind>(high.x, high.y, up, word[2]);
      split_pair<kKind>(high.z, high.w, up, word[3]);
    }
#pragma unroll
    for (int part = 0; part < kParts<kKind>; ++part)
      to[part * kTokens * 4] = {word[0][part], word[1][part], word[2][part], word[3][part]};
  }
};

/// place_of_column() of the first column of an octet: whose pair of steps and lane's share it is.
struct OctetPlace {
  int pair, quarter;
};
template <LinearKind kKind>
__device__ constexpr OctetPlace place_of_octet(int octet) {
  if constexpr (kIsFp8<kKind>) return {octet / 8 * 2 + octet % 2, octet / 2 % 4};
  if constexpr (kKind == LinearKind::kBf16) return {octet / 4, octet % 4};
  return {octet % 4, octet / 4};
}

/// Splits the columns from `first_column` on of `rows.tokens` tokens, `slices` of them, into blocks
/// counted from 0; all threads of a block of `kThreads`. Four blocks of a token to a warp, eight
/// lanes to each, which have its octets i and i + 8. Calls `meanwhile` when the first inputs are on
/// their way. A barrier makes the parts known to all.
template <LinearKind kKind, int kThreads, int kTokens, class F>
__device__ inline void split_inputs(const LinearRows& rows, int first_column, const Divisor& slices,
                                    const SplitInputs<kTokens, kParts<kKind>>& out,
                                    const F& meanwhile) {
  constexpr int kOctets = 2, kLanes = kLinearBlock / 8 / kOctets;  // of a block
  const int lane = lane_id() % kLanes, block_of_four = lane_id() / kLanes;
  const int items = rows.tokens * slices.value() * 2;
  struct Item {
    int token, block;
    InputOctet x[kOctets];
  };
  const auto load = [&](int i, const float* from, Item& item) {
    item.token = slices.quotient(i / 2);
    item.block = (i - item.token * slices.value() * 2) * 4 + block_of_four;
    const float* row = rows.row(from, item.token);
#pragma unroll
    for (int o = 0; o < kOctets; ++o) {
      const int column = first_column + item.block * kLinearBlock + (lane + o * kLanes) * 8;
      item.x[o] = {};
      if (column < rows.cols) item.x[o].load(row + column);
    }
  };
  Item next;
  int i = warp_id();
  if (i < items) load(i, rows.x, next);
  meanwhile();
#pragma unroll 1
  while (i < items) {
    Item item = next;
    const int now = i;
    i += kThreads / kWarp;
    if (i < items) load(i, rows.x, next);
    if (rows.up != nullptr) {
      Item up;
      load(now, rows.up, up);
#pragma unroll
      for (int o = 0; o < kOctets; ++o) item.x[o].gate(up.x[o], rows.limit);
    }
    F16ActivationRange range;
    if constexpr (kIsFp8<kKind>) {
      range = input_range<kKind>(warp_max<kLanes>(fmaxf(item.x[0].amax(), item.x[1].amax())));
      if (lane == 0) out.factors[item.block * kTokens + item.token] = range.down;
    }
#pragma unroll
    for (int o = 0; o < kOctets; ++o) {
      const OctetPlace place = place_of_octet<kKind>(lane + o * kLanes);
      item.x[o].template split<kKind, kTokens>(
          range.up, out.at(item.block, place.pair, item.token, place.quarter));
    }
  }
}

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// One hyper-connection site at the model's four streams: what the kernels for few and for many
// tokens share, down to the order of every sum.
//
// The channels are cut into `ranks` slices of `slice` channels, and a slice into units of 32, a
// channel per lane. A unit sums its mixes over the lanes; a slice adds its units up in order, and
// the slices are added up in order. The norm's squares are summed per unit and then over all units.
// Slices are functions of the width alone, and so is the order.
#pragma once

#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/scalar.cuh"
#include "backends/cuda/launch/hyper_connections.h"

namespace quatrain::cuda::hc {

inline constexpr int kHc = 4;                   // streams
inline constexpr int kMixes = (2 + kHc) * kHc;  // 24
inline constexpr int kValues = kMixes + 1;      // mixes, and the squares of the streams
inline constexpr int kGroup = 8;                // mixes that are summed over a warp together
inline constexpr int kMaxRanks = 16;
inline constexpr int kMaxUnits = 14;  // of a slice
static_assert(kMixes == 3 * kGroup && kValues <= kWarp);

inline int ranks_for(int width) { return width >= 2048 ? kMaxRanks : 4; }
inline int slice_of(int width) { return (width + ranks_for(width) - 1) / ranks_for(width); }

__device__ inline float load_weight(const float* from) {
  float value;
  asm volatile("ld.global.nc.L1::no_allocate.f32 %0, [%1];" : "=f"(value) : "l"(from));
  return value;
}

__device__ inline float reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// ---- of a channel ----

/// The weights of a unit's channels in shared memory. Loads into registers, each with an address of
/// its own, are four times the instructions, which come slowly the first time.
using UnitWeights = float[kMixes * kHc][kWarp];

/// Starts the copy of the unit of this warp, the 32 channels from `first` on; width and `first` are
/// multiples of 4.
__device__ inline void fetch_unit(const HcPreArgs& site, int first, UnitWeights& to) {
  constexpr int kChunks = kWarp / 4, kRows = kWarp / kChunks;  // of 16 bytes, at a time
  const int row = lane_id() / kChunks, column = lane_id() % kChunks * 4;
  const bool is_there = first + column < site.width;
  const float* from = site.fn + std::int64_t{row} * site.width + first + column;
  std::uint32_t place = shared_address(&to[row][column]);
#pragma unroll 4
  for (int i = 0; i < kMixes * kHc; i += kRows) {
    copy16_or_zeros(place, from, is_there);
    from += kRows * site.width;
    place += kRows * sizeof(to[0]);
  }
  commit_copies();
}
/// Waits for fetch_unit().
__device__ inline void await_unit() {
  wait_copies<0>();
  __syncwarp();
}

/// A lane's channel of them.
struct SharedChannel {
  static constexpr int kGroupsAtOnce = 1;  // little code
  static constexpr bool kInOwnOrder = false;
  const UnitWeights& fn;
  __device__ float weight(int mix, int stream) const { return fn[mix * kHc + stream][lane_id()]; }
};

/// The weights of a channel, for as long as a thread lives.
struct Channel {
  static constexpr int kGroupsAtOnce = kMixes / kGroup;
  static constexpr bool kInOwnOrder = false;
  float fn[kMixes][kHc];

  /// Zeros for index −1.
  __device__ Channel(const HcPreArgs& site, int index) {
#pragma unroll
    for (int i = 0; i < kMixes; ++i)
#pragma unroll
      for (int s = 0; s < kHc; ++s)
        fn[i][s] = index < 0
                       ? 0.0f
                       : load_weight(site.fn + std::int64_t{i * kHc + s} * site.width + index);
  }
  __device__ float weight(int mix, int stream) const { return fn[mix][stream]; }
};

/// The same for many tokens: in every group, mix i ^ (lane % kGroup) stands in place i. So lanes
/// that exchange halves of a group in sum_group() have what they keep in the same places.
struct OrderedChannel : Channel {
  static constexpr bool kInOwnOrder = true;

  __device__ OrderedChannel(const HcPreArgs& site, int index) : Channel(site, index) {
#pragma unroll
    for (int half = kGroup / 2; half > 0; half /= 2) {
      const bool swaps = (lane_id() & half) != 0;
#pragma unroll
      for (int i = 0; i < kMixes; ++i) {
        if ((i & half) != 0) continue;
#pragma unroll
        for (int s = 0; s < kHc; ++s) {
          const float low = fn[i][s], high = fn[i + half][s];
          fn[i][s] = swaps ? high : low;
          fn[i + half][s] = swaps ? low : high;
        }
      }
    }
  }
};

/// A channel of all streams once the update has been applied; `comb` holds the matrix's rows.
__device__ inline void update_channel(float f, const float4& post, const float4 (&comb)[kHc],
                                      const float (&old)[kHc], float (&v)[kHc]) {
  v[0] = post.x * f;
  v[1] = post.y * f;
  v[2] = post.z * f;
  v[3] = post.w * f;
#pragma unroll
  for (int j = 0; j < kHc; ++j) {
    v[0] = fmaf(comb[j].x, old[j], v[0]);
    v[1] = fmaf(comb[j].y, old[j], v[1]);
    v[2] = fmaf(comb[j].z, old[j], v[2]);
    v[3] = fmaf(comb[j].w, old[j], v[3]);
  }
}

// ---- of a unit: a warp, a channel per lane ----

/// Sums each value of a group over the warp; lane l returns the sum of value l % kGroup. Value i is
/// x[i], or in a lane's own order x[i ^ (lane % kGroup)].
template <bool kInOwnOrder>
__device__ inline float sum_group(float (&x)[kGroup]) {
#pragma unroll
  for (int half = kGroup / 2; half > 0; half /= 2) {
    // Keeps the upper half, and gives the lower away.
    const bool upper = !kInOwnOrder && (lane_id() & half) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float kept = upper ? x[i + half] : x[i];
      const float given = upper ? x[i] : x[i + half];
      x[i] = kept + __shfl_xor_sync(kAllLanes, given, half);
    }
  }
  float sum = x[0];
  sum += __shfl_xor_sync(kAllLanes, sum, kGroup);
  return sum + __shfl_xor_sync(kAllLanes, sum, 2 * kGroup);
}

/// The unit's part of a token's values; lane i returns value i, those from kValues on nothing of
/// use.
template <class AnyChannel>
__device__ inline float unit_values(const AnyChannel& channel, const float (&v)[kHc]) {
  float mine =
      warp_sum(fmaf(v[3], v[3], fmaf(v[2], v[2], fmaf(v[1], v[1], __fmul_rn(v[0], v[0])))));
#pragma unroll AnyChannel::kGroupsAtOnce
  for (int g = 0; g < kMixes; g += kGroup) {
    float sums[kGroup];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      sums[i] = __fmul_rn(channel.weight(g + i, 0), v[0]);
#pragma unroll
      for (int s = 1; s < kHc; ++s) sums[i] = fmaf(channel.weight(g + i, s), v[s], sums[i]);
    }
    const float total = sum_group<AnyChannel::kInOwnOrder>(sums);
    if (lane_id() / kGroup == g / kGroup) mine = total;
  }
  return mine;
}

/// The collapsed channel; lane s of `pre` holds the weight of stream s.
__device__ inline float collapse(float pre, const float (&v)[kHc]) {
  float y = 0;
#pragma unroll
  for (int s = 0; s < kHc; ++s) y = fmaf(__shfl_sync(kAllLanes, pre, s), v[s], y);
  return y;
}

/// The unit's part of the norm's squares.
__device__ inline float unit_squares(float y) { return warp_sum(__fmul_rn(y, y)); }

// ---- of a token: any warp ----

/// The mixes' weights and biases, a lane per mix.
struct MixScales {
  float base = 0, scale = 0;
  __device__ explicit MixScales(const HcPreArgs& site) {
    if (lane_id() >= kMixes) return;
    base = load_weight(site.base + lane_id());
    scale = load_weight(site.scale + (lane_id() < kHc ? 0 : lane_id() < 2 * kHc ? 1 : 2));
  }
};

/// A token's mixes from the slices' values, biased; lane i returns mix i.
__device__ inline float mix_of(const float (&slices)[kMaxRanks][kWarp], const HcPreArgs& site,
                               int ranks, const MixScales& scales) {
  float sum = 0;
#pragma unroll 4
  for (int r = 0; r < ranks; ++r) sum += slices[r][lane_id()];
  const float squares = __shfl_sync(kAllLanes, sum, kMixes);
  const float factor = rms_factor(squares, kHc * site.width, site.norm_eps);
  return fmaf(__fmul_rn(sum, factor), scales.scale, scales.base);
}

/// The factor of the norm after the collapse, from the squares of all units.
__device__ inline float norm_factor(const float* squares, int units, int width, float eps) {
  float sum = 0;
  for (int i = lane_id(); i < units; i += kWarp) sum += squares[i];
  return rms_factor(warp_sum(sum), width, eps);
}

/// Logits to a nearly doubly stochastic matrix (2.2); lane j of each four holds row j.
__device__ inline void sinkhorn(float (&row)[kHc], int iterations, float eps) {
  const auto scale_row = [&](float part) {
#pragma unroll
    for (int k = 0; k < kHc; ++k) row[k] = __fmul_rn(row[k], part);
  };
  const float largest = fmaxf(fmaxf(row[0], row[1]), fmaxf(row[2], row[3]));
#pragma unroll
  for (int k = 0; k < kHc; ++k) row[k] = expf(row[k] - largest);
  scale_row(1.0f / ((row[0] + row[1]) + (row[2] + row[3])));
#pragma unroll
  for (int k = 0; k < kHc; ++k) row[k] += eps;
  for (int i = 0; i < iterations; ++i) {
    if (i > 0) scale_row(reciprocal(((row[0] + row[1]) + (row[2] + row[3])) + eps));
    float column[kHc];
#pragma unroll
    for (int k = 0; k < kHc; ++k) column[k] = row[k] + __shfl_xor_sync(kAllLanes, row[k], 1);
#pragma unroll
    for (int k = 0; k < kHc; ++k) {
      column[k] += __shfl_xor_sync(kAllLanes, column[k], 2);
      row[k] = __fmul_rn(row[k], reciprocal(column[k] + eps));
    }
  }
}

/// post and comb of token t of the step from its mixes.
__device__ inline void balance(const HcPreArgs& site, std::int64_t t, float mix) {
  const int lane = lane_id();
  if (lane / kHc == 1) site.post[t * kHc + lane % kHc] = 2.0f * sigmoid(mix);
  float row[kHc];
#pragma unroll
  for (int k = 0; k < kHc; ++k)
    row[k] = __shfl_sync(kAllLanes, mix, 2 * kHc + lane % kHc * kHc + k);
  sinkhorn(row, site.sinkhorn_iters, site.hc_eps);
  if (lane < kHc)
    *reinterpret_cast<float4*>(site.comb + (t * kHc + lane) * kHc) = {row[0], row[1], row[2],
                                                                      row[3]};
}

}  // namespace quatrain::cuda::hc

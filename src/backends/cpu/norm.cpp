// SPDX-License-Identifier: Apache-2.0
// rms_norm, rope, round_to_grid.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/row_math.h"
#include "core/codec.h"

namespace quatrain {

void rms_norm_row(const float* x, const float* weight, std::int64_t n, float eps, float* out) {
  const float factor = 1.0f / std::sqrt(dot(x, x, n) / static_cast<float>(n) + eps);
  for (std::int64_t i = 0; i < n; ++i) {
    const float y = x[i] * factor;
    out[i] = weight != nullptr ? weight[i] * y : y;
  }
}

void RopeAngles::set(const float* inv_freq, std::int64_t pairs, float position) {
  QT_CHECK(pairs <= kMaxPairs, "{} rotary pairs are above {}", pairs, kMaxPairs);
  // A decode step rotates several vectors by the same angles.
  if (pairs == pairs_ && position == position_ &&
      std::memcmp(inv_freq, frequencies_.data(), static_cast<std::size_t>(pairs) * 4) == 0)
    return;
  pairs_ = pairs;
  position_ = position;
  std::copy_n(inv_freq, pairs, frequencies_.begin());
  for (std::size_t p = 0; p < static_cast<std::size_t>(pairs); ++p) {
    const float angle = position * inv_freq[p];
    cos_[p] = std::cos(angle);
    sin_[p] = std::sin(angle);
  }
}

void RopeAngles::rotate(float* x, bool inverse) const {
  for (std::size_t p = 0; p < static_cast<std::size_t>(pairs_); ++p) {
    const float c = cos_[p];
    const float s = inverse ? -sin_[p] : sin_[p];
    const float a = x[2 * p];
    const float b = x[2 * p + 1];
    x[2 * p] = a * c - b * s;
    x[2 * p + 1] = a * s + b * c;
  }
}

void rope_row(float* x, std::int64_t n, const float* inv_freq, std::int64_t pairs, float position,
              bool inverse) {
  RopeAngles angles;
  angles.set(inv_freq, pairs, position);
  angles.rotate(x + n - 2 * pairs, inverse);
}

void fp8_grid(float* x, std::int64_t n) {
  constexpr std::int64_t kBlock = 64;
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    const std::int64_t end = std::min(n, begin + kBlock);
    float amax = 1e-4f;
    for (std::int64_t i = begin; i < end; ++i) amax = std::max(amax, std::abs(x[i]));
    const float scale = ue8m0_decode(ue8m0_encode_up(amax / kE4M3Max));
    for (std::int64_t i = begin; i < end; ++i)
      x[i] = e4m3_decode(e4m3_encode(x[i] / scale)) * scale;
  }
}

void fp4_grid(float* x, std::int64_t n) {
  constexpr float kSmallest = 6.0f * 1.1754943508222875e-38f;  // 6 · 2^-126
  for (std::int64_t begin = 0; begin < n; begin += kMxfp4Block) {
    const std::int64_t end = std::min(n, begin + kMxfp4Block);
    float amax = kSmallest;
    for (std::int64_t i = begin; i < end; ++i) amax = std::max(amax, std::abs(x[i]));
    const float scale = ue8m0_decode(ue8m0_encode_up(amax / kE2M1Max));
    for (std::int64_t i = begin; i < end; ++i)
      x[i] = e2m1_decode(e2m1_encode(x[i] / scale)) * scale;
  }
}

void hadamard(float* x, std::int64_t n) {
  for (std::int64_t half = 1; half < n; half *= 2)
    for (std::int64_t i = 0; i < n; i += 2 * half)
      for (std::int64_t j = i; j < i + half; ++j) {
        const float a = x[j];
        const float b = x[j + half];
        x[j] = a + b;
        x[j + half] = a - b;
      }
  const float scale = 1.0f / std::sqrt(static_cast<float>(n));
  for (std::int64_t i = 0; i < n; ++i) x[i] *= scale;
}

void round_row_to_grid(float* x, std::int64_t n, CacheGrid grid, std::int64_t rope_dim) {
  if (grid == CacheGrid::kLatent) fp8_grid(x, n - rope_dim);
  if (grid == CacheGrid::kIndex) {
    hadamard(x, n);
    fp4_grid(x, n);
  }
}

void CpuOps::rms_norm(const op::RmsNorm& args) {
  const std::int64_t n = args.x.dim(args.x.rank() - 1);
  const std::int64_t rows = args.x.elements() / n;
  const float* x = args.x.f32();
  const float* weight = args.weight ? args.weight.f32() : nullptr;
  float* out = args.out.f32();
  parallel_for(rows, 4, rows * n, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t r = begin; r < end; ++r)
      kernels_.rms_norm(x + r * n, weight, n, args.eps, out + r * n);
  });
}

// The angles of a token are the same for all of its heads.
void CpuOps::rope(const op::Rope& args) {
  const std::int64_t n = args.x.dim(args.x.rank() - 1);
  const std::int64_t tokens = args.x.dim(0);
  const std::int64_t heads = tokens == 0 ? 0 : args.x.elements() / (n * tokens);
  const std::int64_t pairs = args.inv_freq.dim(0);
  float* x = args.x.f32();
  parallel_for(tokens, 1, tokens * (heads + 8) * pairs,
               [&](std::int64_t begin, std::int64_t end, int thread) {
                 RopeAngles& angles = thread_angles_[static_cast<std::size_t>(thread)];
                 for (std::int64_t t = begin; t < end; ++t) {
                   angles.set(args.inv_freq.f32(), pairs,
                              static_cast<float>(args.positions.i32()[t]));
                   for (std::int64_t h = 0; h < heads; ++h)
                     angles.rotate(x + (t * heads + h + 1) * n - 2 * pairs, args.inverse);
                 }
               });
}

void CpuOps::round_to_grid(const op::RoundToGrid& args) {
  const std::int64_t n = args.x.dim(args.x.rank() - 1);
  float* x = args.x.f32();
  pool_.parallel_for(args.x.elements() / n, 4, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t r = begin; r < end; ++r)
      round_row_to_grid(x + r * n, n, args.grid, args.rope_dim);
  });
}

}  // namespace quatrain

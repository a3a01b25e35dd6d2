// SPDX-License-Identifier: Apache-2.0
// Operations on one row of FP32 values, shared by the reference bodies (norm.cpp).
#pragma once

#include <array>
#include <cstdint>

#include "ops/op_args.h"

namespace quatrain {

/// out = x / sqrt(mean(x²) + eps), times weight when it is not null. out may be x.
void rms_norm_row(const float* x, const float* weight, std::int64_t n, float eps, float* out);

/// cos and sin of the rotary angles of one position. The angle is one FP32 product, and sin and cos
/// reduce it properly (positions reach 10⁶).
class RopeAngles {
 public:
  static constexpr std::int64_t kMaxPairs = 256;
  void set(const float* inv_freq, std::int64_t pairs, float position);
  /// Rotates interleaved pairs in place.
  void rotate(float* x, bool inverse) const;

 private:
  std::int64_t pairs_ = -1;
  float position_ = 0;
  std::array<float, kMaxPairs> frequencies_, cos_, sin_;
};

/// Rotates the last `pairs` interleaved pairs of x[0, n) by ±position·inv_freq.
void rope_row(float* x, std::int64_t n, const float* inv_freq, std::int64_t pairs, float position,
              bool inverse);

/// FP8-sim (2.0): E4M3 with a power-of-two scale per 64 values.
void fp8_grid(float* x, std::int64_t n);

/// FP4-sim (2.0): E2M1 with a power-of-two scale per 32 values.
void fp4_grid(float* x, std::int64_t n);

/// Sylvester–Hadamard transform times n^-½; n is a power of two.
void hadamard(float* x, std::int64_t n);

void round_row_to_grid(float* x, std::int64_t n, CacheGrid grid, std::int64_t rope_dim);

}  // namespace quatrain

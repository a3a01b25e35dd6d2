// SPDX-License-Identifier: Apache-2.0
// Scalar functions that several reference bodies share.
#pragma once

#include <algorithm>
#include <cmath>

namespace quatrain {

inline float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

/// silu(min(gate, limit)) · clamp(up, ±limit); the gate has no lower clamp; limit 0 clamps nothing.
inline float swiglu_value(float gate, float up, float limit) {
  if (limit > 0) {
    gate = std::min(gate, limit);
    up = std::clamp(up, -limit, limit);
  }
  return gate * sigmoid(gate) * up;
}

/// sqrt(log(1 + e^x)) without overflow.
inline float sqrt_softplus(float x) {
  return std::sqrt(std::max(x, 0.0f) + std::log1p(std::exp(-std::abs(x))));
}

}  // namespace quatrain

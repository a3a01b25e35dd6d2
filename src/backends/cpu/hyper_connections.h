// SPDX-License-Identifier: Apache-2.0
// The Sinkhorn normalisation of the reference backend, apart so that its golden value can be
// tested.
#pragma once

#include <cstdint>

namespace quatrain {

/// Residual streams that the reference bodies have room for.
inline constexpr std::int64_t kMaxStreams = 8;

/// Turns logits c [hc, hc] into a nearly doubly stochastic matrix, in place (2.2): row softmax +
/// eps, column normalise, then iterations − 1 rounds of row and column normalise, each with eps
/// added to the divisor.
void sinkhorn(float* c, std::int64_t hc, int iterations, float eps);

}  // namespace quatrain

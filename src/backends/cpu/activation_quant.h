// SPDX-License-Identifier: Apache-2.0
// NVFP4 rounding of activations: the exact twin of what FP4 tensor cores would be given.
#pragma once

#include <cstdint>

namespace quatrain {

/// max|x| / (6 · 448): the global scale that uses the whole range of the block scales.
float nvfp4_row_scale(const float* x, std::int64_t n);

/// out = x rounded to NVFP4 with global scale g: per 16 columns s = e4m3(max|x_b| / 6 / g),
/// saturating at 448, and out = e2m1(x / (s·g)) · (s·g). A block whose s rounds to zero becomes
/// zeros. n is a multiple of 16. out may be x.
void nvfp4_round_row(const float* x, std::int64_t n, float g, float* out);

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// Rounding of activations. NVFP4: the exact twin of what FP4 tensor cores would be given. Int8: the
// operand of 8-bit dot products. FP8: the operand of 8-bit tensor cores.
#pragma once

#include <cstdint>

#include "backends/cpu/kernels/kernels.h"

namespace quatrain {

/// max|x| / (6 · 448): the global scale that uses the whole range of the block scales.
float nvfp4_row_scale(const float* x, std::int64_t n);

/// out = x rounded to NVFP4 with global scale g: per 16 columns s = e4m3(max|x_b| / 6 / g),
/// saturating at 448, and out = e2m1(x / (s·g)) · (s·g). A block whose s rounds to zero becomes
/// zeros. n is a multiple of 16. out may be x.
void nvfp4_round_row(const float* x, std::int64_t n, float g, float* out);

/// Int8 with one power-of-two scale per 32 columns: x[c] ≈ values[c] · scale, where the scale is
/// that of 2^⌊log2 max|x_c|⌋ / 64, but no less than 2^-24 of the row's; values to nearest, ties to
/// even, at most ±127. What is far below 2^-100 becomes zero; a row with a NaN or infinity, NaN.
/// out[n / 128 rounded up]; n is a multiple of 16.
void int8_quantise_row(const float* x, std::int64_t n, Int8Activations* out);

/// out = x rounded to that grid. n is a multiple of 16, or any number whose last block is short.
/// out may be x.
void int8_round_row(const float* x, std::int64_t n, float* out);

/// out = x rounded to FP8 with a power of two per 128 columns (core/fp8_activations.h). out may be
/// x.
void fp8_round_row(const float* x, std::int64_t n, float* out);

/// out = x rounded to F16 with a power of two per 128 columns (core/f16_activations.h). out may be
/// x.
void f16_round_row(const float* x, std::int64_t n, float* out);

}  // namespace quatrain

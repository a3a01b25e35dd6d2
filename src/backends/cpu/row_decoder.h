// SPDX-License-Identifier: Apache-2.0
// Decodes one row of a packed weight to FP32 by table lookup, and the dot product that consumes it.
// Same values, bit for bit, as the reference decode_row() of core/quant_matrix.h.
#pragma once

#include <cstdint>

#include "core/quant_matrix.h"

namespace quatrain {

/// out[c] = W[row][c] for all columns.
void decode_weight_row(const QuantMatrix& matrix, std::int64_t row, float* out);

/// Σ a[i] b[i] with one fixed order of summation for a given n: 16 running sums, then a tree.
float dot(const float* a, const float* b, std::int64_t n);

}  // namespace quatrain

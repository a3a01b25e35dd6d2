// SPDX-License-Identifier: Apache-2.0
// Which 4-bit weights become FP8 without change: the scale of a block goes into the exponents of
// its codes.
//
// An E2M1 value times 2^d is an E4M3 value for every d from −8 to 6, and for no other. So a row
// qualifies whose scales are powers of two within 15 binades of each other, apart from one power of
// two for the whole row. Losslessly cast MXFP4 has such scales, equal in both blocks of each 32
// columns; true MXFP4 has them by its format.
#pragma once

#include <vector>

#include "core/quant_matrix.h"

namespace quatrain {

/// Binades of scales that a row may have.
inline constexpr int kFp8WindowBinades = 15;

/// For each row the exponent t so that the scales of its blocks, without the global scale, are 2^k
/// with t − 14 ≤ k ≤ t; blocks of zeros do not count. Throws Error naming matrix, row and columns
/// where scales are no powers of two, differ within 32 columns, or are further apart, and for other
/// formats than NVFP4 and MXFP4.
std::vector<int> fp8_row_tops(const QuantMatrix& w);

}  // namespace quatrain

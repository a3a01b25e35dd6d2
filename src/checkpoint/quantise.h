// SPDX-License-Identifier: Apache-2.0
// Quantisers: matrices of any format to NVFP4, and to MXFP4 and FP8 blocks.
//
// Sources are QuantMatrix views, decoded row by row, so any stored format can be converted. Values
// must be finite; Error names the matrix, row and column otherwise. Reference code: one thread.
#pragma once

#include <cstdint>

#include "checkpoint/checkpoint.h"
#include "core/quant_matrix.h"

namespace quatrain {

/// Largest magnitude in the matrix.
float max_magnitude(const QuantMatrix& source);

/// NVFP4's multiplier for a tensor (or several that share one) of largest magnitude `amax`:
/// amax / (6 * 448), so that the largest block scale is 448. 1 for an all-zero tensor.
float nvfp4_global_scale(float amax);

/// NVFP4 with block scales e4m3(amax(block) / (6 g)), at least 2^-9, and codes e2m1(x / (s g)).
/// A block of zeros gets scale 1. `global_scale` must be that of the larger of all tensors that
/// share it, else large blocks saturate. Columns must be a multiple of 16.
LoadedLinear quantize_nvfp4(const QuantMatrix& source, float global_scale);

/// MXFP4 with the smallest power-of-two scale that does not saturate, per 32 columns.
LoadedLinear quantize_mxfp4(const QuantMatrix& source);

/// E4M3 with one scale amax/448 per 128x128 block: kF8E8M0 (rounded up to a power of two), kF32.
LoadedLinear quantize_fp8_block(const QuantMatrix& source, DType scale_dtype = DType::kF8E8M0);

/// Largest scale exponent among the blocks of an MXFP4 matrix that hold a nonzero value; -127 if
/// there is none. Two matrices can share a global scale by taking the larger.
int max_exponent(const QuantMatrix& mxfp4);

struct CastResult {
  LoadedLinear linear;
  std::int64_t blocks = 0;          ///< MXFP4 blocks
  std::int64_t inexact_blocks = 0;  ///< of these, requantised because their scale does not fit
};

/// MXFP4 → NVFP4 without change of value: g = 2^(k_max - 8), codes unchanged, each block's scale
/// written twice as 2^(k - k_max + 8). Exact while k_max - k ≤ 17; other blocks get scales from
/// their data and are counted. `k_max` is at least max_exponent(mxfp4).
CastResult cast_mxfp4_to_nvfp4(const QuantMatrix& mxfp4, int k_max);

/// Whether an NVFP4 matrix is a cast MXFP4 one: a power of two as global scale and as every block
/// scale, and equal scales in each pair of blocks. Such a matrix can be run as MXFP4, exactly.
bool is_pow2_paired(const QuantMatrix& nvfp4);

/// ‖a - b‖₂ and ‖b‖₂, squared, for matrices of one shape; sums over several matrices add up.
struct SquaredError {
  double difference = 0.0;
  double reference = 0.0;

  double relative() const;
  SquaredError& operator+=(const SquaredError& other);
};
SquaredError squared_error(const QuantMatrix& matrix, const QuantMatrix& reference);

}  // namespace quatrain

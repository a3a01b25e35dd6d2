// SPDX-License-Identifier: Apache-2.0
// Products of FP8 activations with FP8 weights in 128x128 blocks, on FP8 tensor cores.
//
// THE ORDER OF A SUM. Tensor cores sum the products of 128 columns, with about 14 bits; these sums
// are scaled by activation and weight and added in FP32, in the order of columns.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backends/cuda/launch/linear.h"

namespace quatrain::cuda {

/// From here on FP8 tensor cores multiply FP8 activations; shorter steps must give a row the same
/// bits in any company.
inline constexpr int kFp8TileTokens = 129;

/// out_i[t, n] = Σ_k x'[t, g(n), k] W_i[n, k], x' being x, or swiglu(x, up), on the grid of
/// core/fp8_activations.h. fits_row_pairs() holds for every W_i; the scratch has room for
/// fp8_scratch_bytes().
void multiply_fp8(const LinearsArgs& args, const LinearScratch& scratch, cudaStream_t stream);
/// Scratch for the inputs of as many tokens as go together at least.
std::int64_t fp8_scratch_bytes(int cols, int groups);

}  // namespace quatrain::cuda

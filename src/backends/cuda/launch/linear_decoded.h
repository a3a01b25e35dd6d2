// SPDX-License-Identifier: Apache-2.0
// Products of FP8 weights in 128x128 blocks with F16 inputs by very many tokens: weights are
// decoded to F16 once, so that tensor cores read both operands from shared memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backends/cuda/launch/linear_tiles.h"

namespace quatrain::cuda {

/// From here on decoding beforehand may pay …
inline constexpr int kDecodedTokens = 768;
/// … and does where every block has so many tiles: its last round is short of some, and two kernels
/// come before.
inline constexpr int kDecodedRounds = 5;

/// Whether multiply_decoded() takes the products: rounded inputs, and fits_row_pairs().
bool takes_decoded(const LinearTiles& args);
/// Whether it is faster than tiles that decode as they go. takes_decoded() holds.
bool prefers_decoded(const LinearTiles& args);

/// Sums are those of linears() in the same order, and have the same bits. takes_decoded() holds,
/// and the scratch has room for decoded_scratch_bytes().
void multiply_decoded(const LinearTiles& args, const LinearScratch& scratch, cudaStream_t stream);
/// Scratch for the smallest share of weights and inputs.
std::int64_t decoded_scratch_bytes(int cols, int groups);

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// Descriptions of matrices for the tensor memory accelerator.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "backends/cuda/launch/matrix.h"

namespace quatrain::cuda {

/// A row-major matrix of bytes, copied in boxes of `box_rows` by 128 bytes that shared memory holds
/// in the 128-byte swizzle. `bytes` is the length of a row, a multiple of 16 as the address is. The
/// second-level cache fetches `promotion` at once.
CUtensorMap byte_matrix_map(const void* address, std::int64_t rows, std::int64_t bytes,
                            int box_rows,
                            CUtensorMapL2promotion promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_256B);

/// The values of a weight that is read once, in such boxes.
CUtensorMap weight_map(const Matrix& w, int box_rows);

}  // namespace quatrain::cuda

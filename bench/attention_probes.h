// SPDX-License-Identifier: Apache-2.0
// What the chip can do at most, measured: reading memory, and F16 products with FP32 sums.
#pragma once

#include <cstdint>

#include "backends/cuda/cuda_check.h"

namespace quatrain::bench {

/// Reads `bytes` (a multiple of 16) once.
void read_all(const void* data, std::int64_t bytes, float* sink, cudaStream_t stream);

/// Products of random F16 data in shared memory on every processor; returns their flops.
double multiply(int processors, float* sink, cudaStream_t stream);

}  // namespace quatrain::bench

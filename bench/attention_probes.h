// SPDX-License-Identifier: Apache-2.0
// What the tensor cores can do at most: F16 products with FP32 sums.
#pragma once

#include <cstdint>

#include "backends/cuda/cuda_check.h"

namespace quatrain::bench {

/// Products of random F16 data in shared memory on every processor; returns their flops.
double multiply(int processors, float* sink, cudaStream_t stream);

}  // namespace quatrain::bench

// SPDX-License-Identifier: Apache-2.0
// What this GPU can do at best. Knows nothing of CUDA's headers, so that anyone may include it.
#pragma once

#include "ops/device_limits.h"

namespace quatrain {

class CudaOps;

/// Reads 1 GiB of random data from device memory; multiplies random BF16 and FP8 matrices in shared
/// memory on the tensor cores for about 50 ms each, long enough for the clock to settle at what the
/// power limit allows. The best of a few runs. Throws Error when 1 GiB is not free.
DeviceLimits measure_cuda_limits(CudaOps& ops);

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// What this machine's cores and memory can do at best.
#pragma once

#include "core/thread_pool.h"
#include "ops/device_limits.h"

namespace quatrain {

/// Reads a buffer larger than the caches with plain loads; multiplies and adds in registers in
/// FP32, and in INT8 where there is VNNI; on all threads of the pool. Takes about a second.
DeviceLimits measure_cpu_limits(ThreadPool& pool);

}  // namespace quatrain

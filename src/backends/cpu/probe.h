// SPDX-License-Identifier: Apache-2.0
// What this machine's cores and memory can do at best.
#pragma once

#include "backends/cpu/kernels/isa.h"
#include "core/thread_pool.h"
#include "ops/device_limits.h"

namespace quatrain {

/// Reads a buffer of uncached_bytes() with plain loads; multiplies and adds in registers in FP32,
/// in INT8 where there is VNNI, and in BF16 on tiles where there is AMX; on all threads of the
/// pool. With kernels that multiply FP32 inputs as two BF16 parts on tiles (kAmxLinears), `flops`
/// are half of the tiles'. Takes about a second.
DeviceLimits measure_cpu_limits(ThreadPool& pool, CpuIsa isa);

/// Bytes that go through the caches before what was read first comes again: four times the last
/// cache's size, 512 MB at least and 2 GB at most.
std::int64_t uncached_bytes();

}  // namespace quatrain

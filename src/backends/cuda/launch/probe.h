// SPDX-License-Identifier: Apache-2.0
// Loops that do nothing but read, or nothing but multiply: what the device can do at best.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace quatrain::cuda {

/// Fills `bytes` (a multiple of 16) with random bits.
void fill_random(void* data, std::int64_t bytes, cudaStream_t stream);

/// Reads `bytes` (a multiple of 16) once; `sink` [1] is written only if all bits are zero.
void probe_read(const void* data, std::int64_t bytes, unsigned* sink, cudaStream_t stream);

enum class ProbeType { kBf16, kFp8 };

/// Products on the tensor cores of `sms` multiprocessors from random operands in shared memory, in
/// FP32 sums. `sink` [sms * 256] keeps the sums alive. Returns the multiply-adds times two.
double probe_products(ProbeType type, int sms, int rounds, float* sink, cudaStream_t stream);

}  // namespace quatrain::cuda

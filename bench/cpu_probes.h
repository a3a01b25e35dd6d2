// SPDX-License-Identifier: Apache-2.0
// What the machine can do at most, measured: reading memory and multiplying.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backends/cpu/kernels/isa.h"
#include "core/thread_pool.h"

namespace quatrain::bench {

/// CPU time of all threads of the process. Rates are per CPU second of a thread: time that other
/// programs take does not count, time that a thread spins in wait for others does.
double cpu_seconds();

/// Reads [data, data + bytes) once, each thread its own consecutive parts; returns cpu_seconds()
/// per thread.
double read_seconds(ThreadPool& pool, const std::byte* data, std::int64_t bytes);

/// Multiply-adds per second of all threads in registers: 8-bit dot products (VPDPBUSD, or
/// VPMADDUBSW with its additions on AVX2), and FP32 FMA.
double int8_macs_per_second(ThreadPool& pool, CpuIsa isa);
double fma_macs_per_second(ThreadPool& pool, CpuIsa isa);

}  // namespace quatrain::bench

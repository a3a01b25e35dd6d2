// SPDX-License-Identifier: Apache-2.0
// What the machine can do at most: plain reads of memory, multiply-adds in registers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backends/cpu/kernels/isa.h"
#include "core/thread_pool.h"

namespace quatrain::bench {

/// Time since construction: of the wall, and of all threads of this process on processors.
class Stopwatch {
 public:
  Stopwatch();
  double wall_seconds() const;
  double cpu_seconds() const;

 private:
  double wall_, cpu_;
};

/// Of all threads together, per second of the wall and per second that a thread was running. The
/// second is the one to compare while other work shares the processors, as long as no thread waits
/// asleep.
struct Rate {
  double wall = 0;
  double cpu = 0;
};

Rate read_bytes_per_second(ThreadPool& pool, const std::byte* data, std::int64_t bytes);

/// Multiply-adds per second of 8-bit dot products.
Rate int8_macs_per_second(ThreadPool& pool, CpuIsa isa);

/// The same in FP32.
Rate fma_macs_per_second(ThreadPool& pool, CpuIsa isa);

/// The same of TDPBF16PS. The machine must have CpuIsa::kAmx.
Rate tile_macs_per_second(ThreadPool& pool);

}  // namespace quatrain::bench

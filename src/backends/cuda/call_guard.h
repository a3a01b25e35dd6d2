// SPDX-License-Identifier: Apache-2.0
// What the process asks of the CUDA runtime, counted; and no waiting or allocating inside a step.
//
// call_guard.cpp stands between the program and the runtime: the linker sends every call to it
// (--wrap). Under a StepGuard, a call that allocates, frees or waits ends the process with the
// operation's name. Linked into the command and the tests, never into the library; a binary without
// it counts nothing and has guards that see no CUDA call.
#pragma once

#include <atomic>
#include <cstdint>

namespace quatrain::cuda {

struct CallCounts {
  std::atomic<std::int64_t> graph_launches{0};
  std::atomic<std::int64_t> kernel_launches{0};
  std::atomic<std::int64_t> copies{0};       ///< asynchronous copies and fills
  std::atomic<std::int64_t> waits{0};        ///< of the host for the device, blocking copies too
  std::atomic<std::int64_t> allocations{0};  ///< of device or pinned memory

  void clear() { graph_launches = kernel_launches = copies = waits = allocations = 0; }
};

inline CallCounts call_counts;

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// The only place that knows all backends.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ops/device_limits.h"
#include "ops/ops.h"

namespace quatrain::apps {

struct Backend {
  std::unique_ptr<Ops> ops;
  std::string description;  ///< which one, on what, and why it was chosen
  std::string device;       ///< "NVIDIA H200", "8 threads"
  std::function<DeviceLimits()> measure_limits;
  std::int64_t cycle_bytes = 256 << 20;  ///< reading this much leaves nothing in a cache
};

/// How the CPU backend runs.
struct CpuFlags {
  int threads = 0;             ///< 0: one per entry of `cpus`, or per core
  std::vector<int> cpus = {};  ///< processors to pin threads to; empty: no pinning
  std::string isa = "auto";    ///< see parse_isa()
};

/// "cpu", "cuda", or "auto": cuda where the build has it and a usable GPU is there, otherwise cpu.
/// `kv_cache_dtype` is "auto", "fp16", "bf16", "fp32" or "fp8"; a backend refuses what it does not
/// have.
Backend make_backend(const std::string& name, const CpuFlags& cpu,
                     const std::string& kv_cache_dtype);

}  // namespace quatrain::apps

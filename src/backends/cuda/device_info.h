// SPDX-License-Identifier: Apache-2.0
// What GPUs there are, without starting a backend on one. Free of CUDA's headers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace quatrain {

struct CudaDeviceInfo {
  std::string name;
  int major = 0, minor = 0;  ///< compute capability
  int multiprocessors = 0;
  std::int64_t total_bytes = 0;
  std::int64_t free_bytes = 0;
  std::int64_t l2_bytes = 0;
  int clock_mhz = 0;         ///< highest of the multiprocessors
  int memory_clock_mhz = 0;  ///< highest
  bool ecc = false;
};

struct CudaSystemInfo {
  int driver_version =
      0;  ///< the newest CUDA that the driver serves, 13000 for 13.0; 0 without one
  int runtime_version = 0;  ///< that this program was built with
  std::string problem;      ///< why there is no usable device; empty when there is one
  std::vector<CudaDeviceInfo> devices;
};

CudaSystemInfo cuda_system_info();

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
#include "backends/cuda/device_info.h"

#include <cuda_runtime.h>

namespace quatrain {
namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  return cudaDeviceGetAttribute(&value, which, device) == cudaSuccess ? value : 0;
}

CudaDeviceInfo device_info(int device) {
  CudaDeviceInfo info;
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) return info;
  info.name = properties.name;
  info.major = properties.major;
  info.minor = properties.minor;
  info.multiprocessors = properties.multiProcessorCount;
  info.l2_bytes = properties.l2CacheSize;
  info.total_bytes = static_cast<std::int64_t>(properties.totalGlobalMem);
  info.clock_mhz = attribute(cudaDevAttrClockRate, device) / 1000;
  info.memory_clock_mhz = attribute(cudaDevAttrMemoryClockRate, device) / 1000;
  info.ecc = attribute(cudaDevAttrEccEnabled, device) != 0;
  std::size_t free = 0, total = 0;
  if (cudaSetDevice(device) == cudaSuccess && cudaMemGetInfo(&free, &total) == cudaSuccess)
    info.free_bytes = static_cast<std::int64_t>(free);
  return info;
}

}  // namespace

CudaSystemInfo cuda_system_info() {
  CudaSystemInfo info;
  cudaDriverGetVersion(&info.driver_version);
  cudaRuntimeGetVersion(&info.runtime_version);
  int count = 0;
  if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess) {
    info.problem = cudaGetErrorString(status);
    return info;
  }
  if (count == 0) info.problem = "the machine has no CUDA device";
  for (int device = 0; device < count; ++device) info.devices.push_back(device_info(device));
  return info;
}

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// Launches of kernels that may start while the kernel before them on the stream still runs
// (programmatic dependent launch; the edge survives stream capture into a graph).
//
// The rule: EVERY thread of a kernel launched this way calls wait_for_previous()
// (device/dependent.cuh) before it touches anything that an earlier kernel writes, and before it
// writes anything that an earlier kernel reads. So weights and the arrays of a batch, which only
// copies write, may be read before; a copy on the stream waits for every kernel in front of it, and
// the kernel behind it for the copy. Since all kernels keep the rule, the end of a kernel implies
// the end of everything before it. Kernels launched with <<<>>> may stand anywhere between: they
// start when the kernel before has ended.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <type_traits>

#include "backends/cuda/cuda_check.h"

namespace quatrain::cuda {

struct LaunchShape {
  dim3 grid = 1;
  dim3 block = 1;
  std::size_t shared = 0;  ///< dynamic shared memory; above 48 KB needs allow_shared()
  unsigned cluster_x = 1;  ///< blocks along x that share their shared memory
};

/// What the runtime takes, with the attributes it points to.
class LaunchConfig {
 public:
  LaunchConfig(const LaunchShape& shape, cudaStream_t stream) {
    attributes_[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes_[0].val.programmaticStreamSerializationAllowed = 1;
    attributes_[1].id = cudaLaunchAttributeClusterDimension;
    attributes_[1].val.clusterDim.x = shape.cluster_x;
    attributes_[1].val.clusterDim.y = 1;
    attributes_[1].val.clusterDim.z = 1;
    config_.gridDim = shape.grid;
    config_.blockDim = shape.block;
    config_.dynamicSmemBytes = shape.shared;
    config_.stream = stream;
    config_.attrs = attributes_;
    config_.numAttrs = shape.cluster_x > 1 ? 2 : 1;
  }
  LaunchConfig(const LaunchConfig&) = delete;
  LaunchConfig& operator=(const LaunchConfig&) = delete;

  const cudaLaunchConfig_t* get() const { return &config_; }

 private:
  cudaLaunchAttribute attributes_[2] = {};
  cudaLaunchConfig_t config_ = {};
};

/// Enqueues kernel(args…).
template <class... Params>
void launch(void (*kernel)(Params...), const LaunchShape& shape, cudaStream_t stream,
            std::type_identity_t<Params>... args) {
  QT_CUDA(cudaLaunchKernelEx(LaunchConfig(shape, stream).get(), kernel, args...));
}

/// Clusters of this shape that the chip holds at once, at least 1.
template <class... Params>
int resident_clusters(void (*kernel)(Params...), const LaunchShape& shape) {
  int clusters = 0;
  if (shape.cluster_x > 1) {
    QT_CUDA(cudaOccupancyMaxActiveClusters(&clusters, kernel, LaunchConfig(shape, nullptr).get()));
  } else {
    int device = 0, multiprocessors = 0;
    QT_CUDA(cudaGetDevice(&device));
    QT_CUDA(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
    QT_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
        &clusters, kernel, static_cast<int>(shape.block.x), shape.shared));
    clusters *= multiprocessors;
  }
  return clusters > 0 ? clusters : 1;
}

/// Lets `kernel` have up to `bytes` of dynamic shared memory. Not within a capture.
template <class... Params>
void allow_shared(void (*kernel)(Params...), std::size_t bytes) {
  QT_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes)));
}

}  // namespace quatrain::cuda

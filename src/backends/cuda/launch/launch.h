// SPDX-License-Identifier: Apache-2.0
// Launches of kernels that may start while the kernel before them on the stream still runs
// (programmatic dependent launch; the edge survives stream capture into a graph).
//
// The rule: EVERY thread of a kernel launched this way calls wait_for_previous()
// (device/dependent.cuh) before it touches anything that an earlier kernel writes OR reads. Since
// all kernels keep it, the end of a kernel implies the end of everything before it. Kernels
// launched with <<<>>> may stand anywhere between: they start when the kernel before has ended.
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

/// Enqueues kernel(args…).
template <class... Params>
void launch(void (*kernel)(Params...), const LaunchShape& shape, cudaStream_t stream,
            std::type_identity_t<Params>... args) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = shape.cluster_x;
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = shape.cluster_x > 1 ? 2 : 1;
  QT_CUDA(cudaLaunchKernelEx(&config, kernel, args...));
}

/// Lets `kernel` have up to `bytes` of dynamic shared memory. Not within a capture.
template <class... Params>
void allow_shared(void (*kernel)(Params...), std::size_t bytes) {
  QT_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes)));
}

}  // namespace quatrain::cuda

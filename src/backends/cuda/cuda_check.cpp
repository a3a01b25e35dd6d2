// SPDX-License-Identifier: Apache-2.0
#include "backends/cuda/cuda_check.h"

#include "core/error.h"
#include "core/step_guard.h"

namespace quatrain::cuda {

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) [[likely]]
    return;
  const char* operation = step_operation;
  fail("CUDA: {} failed{}{}: {}", call, operation != nullptr ? " in operation " : "",
       operation != nullptr ? operation : "", cudaGetErrorString(status));
}

}  // namespace quatrain::cuda

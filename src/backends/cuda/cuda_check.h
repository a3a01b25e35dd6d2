// SPDX-License-Identifier: Apache-2.0
// CUDA runtime errors as Error, with the call and the operation that made it. Device code includes
// this, so it stays clear of fmt.
#pragma once

#include <cuda_runtime.h>

namespace quatrain::cuda {

/// Throws Error naming `call` and the running operation unless `status` is success.
void check(cudaError_t status, const char* call);

}  // namespace quatrain::cuda

#define QT_CUDA(call) ::quatrain::cuda::check((call), #call)

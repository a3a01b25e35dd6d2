// SPDX-License-Identifier: Apache-2.0
// The functions that the linker puts in place of the CUDA runtime's. See the header.
#include "backends/cuda/call_guard.h"

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>

#include "core/step_guard.h"

namespace {

using quatrain::cuda::call_counts;

void refuse_in_step(const char* call) {
  const char* operation = quatrain::step_operation;
  if (operation == nullptr) return;
  quatrain::step_operation = nullptr;
  std::fprintf(stderr, "quatrain: operation '%s' called %s inside a step\n", operation, call);
  std::abort();
}

}  // namespace

// PARAMETERS and ARGUMENTS are in parentheses.
#define QT_WRAP(name, PARAMETERS, ARGUMENTS, before) \
  extern "C" cudaError_t __real_##name PARAMETERS;   \
  extern "C" cudaError_t __wrap_##name PARAMETERS {  \
    before;                                          \
    return __real_##name ARGUMENTS;                  \
  }
#define QT_COUNTED(name, counter, PARAMETERS, ARGUMENTS) \
  QT_WRAP(name, PARAMETERS, ARGUMENTS, ++call_counts.counter)
#define QT_GUARDED(name, PARAMETERS, ARGUMENTS) \
  QT_WRAP(name, PARAMETERS, ARGUMENTS, refuse_in_step(#name))
#define QT_GUARDED_AND_COUNTED(name, counter, PARAMETERS, ARGUMENTS) \
  QT_WRAP(name, PARAMETERS, ARGUMENTS, (refuse_in_step(#name), ++call_counts.counter))

QT_GUARDED_AND_COUNTED(cudaMalloc, allocations, (void** p, size_t n), (p, n))
QT_GUARDED_AND_COUNTED(cudaMallocHost, allocations, (void** p, size_t n), (p, n))
QT_GUARDED_AND_COUNTED(cudaHostAlloc, allocations, (void** p, size_t n, unsigned flags),
                       (p, n, flags))
QT_GUARDED_AND_COUNTED(cudaMallocAsync, allocations, (void** p, size_t n, cudaStream_t s),
                       (p, n, s))
QT_GUARDED(cudaFree, (void* p), (p))
QT_GUARDED(cudaFreeHost, (void* p), (p))
QT_GUARDED(cudaFreeAsync, (void* p, cudaStream_t s), (p, s))
QT_GUARDED_AND_COUNTED(cudaDeviceSynchronize, waits, (), ())
QT_GUARDED_AND_COUNTED(cudaStreamSynchronize, waits, (cudaStream_t s), (s))
QT_GUARDED_AND_COUNTED(cudaEventSynchronize, waits, (cudaEvent_t e), (e))
QT_GUARDED_AND_COUNTED(cudaMemcpy, waits,
                       (void* to, const void* from, size_t n, cudaMemcpyKind kind),
                       (to, from, n, kind))
QT_GUARDED_AND_COUNTED(cudaMemset, waits, (void* to, int value, size_t n), (to, value, n))
QT_COUNTED(cudaMemcpyAsync, copies,
           (void* to, const void* from, size_t n, cudaMemcpyKind kind, cudaStream_t s),
           (to, from, n, kind, s))
QT_COUNTED(cudaMemsetAsync, copies, (void* to, int value, size_t n, cudaStream_t s),
           (to, value, n, s))
QT_COUNTED(cudaGraphLaunch, graph_launches, (cudaGraphExec_t graph, cudaStream_t s), (graph, s))
QT_COUNTED(cudaLaunchKernel, kernel_launches,
           (const void* f, dim3 grid, dim3 block, void** args, size_t shared, cudaStream_t s),
           (f, grid, block, args, shared, s))
QT_COUNTED(cudaLaunchKernelExC, kernel_launches,
           (const cudaLaunchConfig_t* config, const void* f, void** args), (config, f, args))

// SPDX-License-Identifier: Apache-2.0
// No CUDA call that allocates, frees or waits gets past an armed guard. Needs no device: the guard
// ends the process before the runtime is asked.
#include <gtest/gtest.h>

#include "backends/cuda/call_guard.h"
#include "backends/cuda/cuda_check.h"
#include "core/step_guard.h"

namespace quatrain::testing {
namespace {

// Runs `call` inside a step; expects the end of the process, with `name` in the message.
template <class Call>
void expect_refused(const char* name, Call call) {
  EXPECT_DEATH(
      {
        const StepGuard guard("attend");
        call();
      },
      std::string("operation 'attend' called ") + name + " inside a step");
}

TEST(CudaGuard, AllocationsAreRefusedInAStep) {
  void* p = nullptr;
  expect_refused("cudaMalloc", [&] { cudaMalloc(&p, 16); });
  expect_refused("cudaMallocHost", [&] { cudaMallocHost(&p, 16); });
  expect_refused("cudaHostAlloc", [&] { cudaHostAlloc(&p, 16, cudaHostAllocDefault); });
  expect_refused("cudaMallocAsync", [&] { cudaMallocAsync(&p, 16, nullptr); });
  expect_refused("cudaFree", [&] { cudaFree(p); });
  expect_refused("cudaFreeHost", [&] { cudaFreeHost(p); });
  expect_refused("cudaFreeAsync", [&] { cudaFreeAsync(p, nullptr); });
}

TEST(CudaGuard, WaitsAreRefusedInAStep) {
  int value = 0;
  expect_refused("cudaDeviceSynchronize", [] { cudaDeviceSynchronize(); });
  expect_refused("cudaStreamSynchronize", [] { cudaStreamSynchronize(nullptr); });
  expect_refused("cudaEventSynchronize", [] { cudaEventSynchronize(nullptr); });
  expect_refused("cudaMemcpy", [&] { cudaMemcpy(&value, &value, 4, cudaMemcpyDefault); });
  expect_refused("cudaMemset", [&] { cudaMemset(&value, 0, 4); });
}

TEST(CudaGuard, CallsOutsideAStepAreCountedAndGoThrough) {
  cuda::call_counts.clear();
  EXPECT_NE(cudaEventSynchronize(nullptr), cudaSuccess);  // the runtime's own answer
  EXPECT_EQ(cuda::call_counts.waits, 1);
  const StepGuard guard("attend");
  const StepGuardPause pause(nullptr);
  EXPECT_NE(cudaEventSynchronize(nullptr), cudaSuccess);
  EXPECT_EQ(cuda::call_counts.waits, 2);
  cudaGetLastError();  // the runtime remembers the two errors; the next test must not see them
  EXPECT_EQ(cuda::call_counts.allocations, 0);
}

}  // namespace
}  // namespace quatrain::testing

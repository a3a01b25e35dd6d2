// SPDX-License-Identifier: Apache-2.0
#include "neighbour_probes.h"

#include <utility>

#include "backends/cuda/cuda_check.h"
#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/wgmma.cuh"
#include "backends/cuda/device/wgmma_fp8.cuh"

namespace quatrain::bench {
namespace {

constexpr int kGroup = 128;  // threads
constexpr int kSharedBytes = 32 << 10;
constexpr int kRegisters = 16;  // that the instruction takes turns with
constexpr int kRepeats = 128;   // between two looks at the others

__device__ void multiply(std::uint32_t shared, Times& times, std::uint32_t* sink) {
  const std::uint64_t b = cuda::swizzled_operand(shared);
  float sums[kColumns / 2] = {};
  const std::uint32_t a[4] = {0x38303438u, 0x30383430u, 0x34383038u, 0x38343830u};
  const long long start = clock64();
#pragma unroll 1
  for (int chain = 0; chain < kChains; ++chain) {
    cuda::wgmma_fence();
#pragma unroll
    for (int i = 0; i < kProducts; ++i)
      cuda::wgmma_e4m3<kColumns>(sums, a, cuda::operand_behind(b, i % 4 * 32), i > 0);
    cuda::wgmma_commit();
    cuda::wgmma_wait<0>();
    cuda::wgmma_results(sums);
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) times.products = clock64() - start;
  float all = 0;  // or nobody wants the products
  for (const float one : sums) all += one;
  if (all == 0.12345F) *sink = __float_as_uint(all);
}

template <Neighbour kWhat>
__device__ void issue(std::uint32_t& r, std::uint32_t x, std::uint32_t y) {
  if constexpr (kWhat == Neighbour::kFfma)
    asm volatile("fma.rn.f32 %0, %1, %2, %0;" : "+r"(r) : "r"(x), "r"(y));
  else if constexpr (kWhat == Neighbour::kFadd)
    asm volatile("add.rn.f32 %0, %0, %1;" : "+r"(r) : "r"(x));
  else if constexpr (kWhat == Neighbour::kImad)
    asm volatile("mad.lo.u32 %0, %0, %1, %2;" : "+r"(r) : "r"(x), "r"(y));
  else if constexpr (kWhat == Neighbour::kHfma2)
    asm volatile("fma.rn.f16x2 %0, %0, %1, %2;" : "+r"(r) : "r"(x), "r"(y));
  else if constexpr (kWhat == Neighbour::kLop3)
    asm volatile("lop3.b32 %0, %0, %1, %2, 0x96;" : "+r"(r) : "r"(x), "r"(y));
  else if constexpr (kWhat == Neighbour::kPrmt)
    asm volatile("prmt.b32 %0, %0, %1, %2;" : "+r"(r) : "r"(x), "r"(y & 0x7777u));
  else if constexpr (kWhat == Neighbour::kShf)
    asm volatile("shf.r.clamp.b32 %0, %0, %1, 8;" : "+r"(r) : "r"(x));
}

template <Neighbour kWhat>
__device__ void repeat(const volatile int& ended, Times& times, std::uint32_t* sink) {
  std::uint32_t r[kRegisters];
  for (int i = 0; i < kRegisters; ++i) r[i] = threadIdx.x + static_cast<unsigned>(i);
  const std::uint32_t x = threadIdx.x * 33u, y = threadIdx.x * 13u;
  const long long start = clock64();
  long long issued = 0;
  while (ended < kProducers * kGroup) {
#pragma unroll
    for (int i = 0; i < kRepeats; ++i) issue<kWhat>(r[i % kRegisters], x, y);
    issued += kRepeats;
  }
  if (blockIdx.x == 0 && threadIdx.x == kProducers * kGroup) {
    times.neighbours = issued;
    times.cycles = clock64() - start;
  }
  std::uint32_t all = 0;
  for (const std::uint32_t one : r) all ^= one;
  if (all == 0x12345678u) *sink = all;
}

template <Neighbour kWhat>
__global__ void __launch_bounds__((kProducers + 1) * kGroup, 1)
    neighbour_kernel(Times* times, std::uint32_t* sink) {
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ int ended;
  for (unsigned i = threadIdx.x; i < kSharedBytes / 4; i += blockDim.x)
    reinterpret_cast<std::uint32_t*>(memory)[i] = 0x38303438u * (i & 1u);
  if (threadIdx.x == 0) ended = 0;
  cuda::fence_operands();
  __syncthreads();
  const std::uint32_t shared = cuda::shared_address(memory);
  if (threadIdx.x < kProducers * kGroup) {
    multiply(shared, *times, sink);
    atomicAdd(&ended, 1);
  } else if constexpr (kWhat != Neighbour::kNone) {
    repeat<kWhat>(ended, *times, sink);
  }
}

template <Neighbour kWhat>
Times measure_one() {
  Times* times = nullptr;
  QT_CUDA(cudaMallocManaged(&times, sizeof(Times) + sizeof(std::uint32_t)));
  auto* sink = reinterpret_cast<std::uint32_t*>(times + 1);
  *times = {};
  int device = 0, blocks = 0;
  QT_CUDA(cudaGetDevice(&device));
  QT_CUDA(cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, device));
  for (int i = 0; i < 2; ++i) {  // the first one brings the code
    neighbour_kernel<kWhat>
        <<<static_cast<unsigned>(blocks), (kProducers + 1) * kGroup, kSharedBytes>>>(times, sink);
    QT_CUDA(cudaGetLastError());
    QT_CUDA(cudaDeviceSynchronize());
  }
  const Times result = *times;
  QT_CUDA(cudaFree(times));
  return result;
}

}  // namespace

Times measure(Neighbour what) {
  Times times{};
  const auto among = [&]<int... kWhat>(std::integer_sequence<int, kWhat...>) {
    ((what == static_cast<Neighbour>(kWhat) &&
      (times = measure_one<static_cast<Neighbour>(kWhat)>(), true)) ||
     ...);
  };
  among(std::make_integer_sequence<int, kNeighbours>());
  return times;
}

}  // namespace quatrain::bench

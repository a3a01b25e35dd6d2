// SPDX-License-Identifier: Apache-2.0
// Read and tensor-core probes. Not on the path of any model.
#include "backends/cuda/cuda_check.h"
#include "backends/cuda/launch/probe.h"

namespace quatrain::cuda {
namespace {

constexpr int kThreads = 256;

__device__ unsigned hash32(unsigned x) {
  x = (x ^ (x >> 16)) * 0x7FEB352Du;
  x = (x ^ (x >> 15)) * 0x846CA68Bu;
  return x ^ (x >> 16);
}

__global__ void fill_kernel(uint4* data, std::int64_t count) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    const auto seed = static_cast<unsigned>(i) * 4;
    data[i] = make_uint4(hash32(seed), hash32(seed + 1), hash32(seed + 2), hash32(seed + 3));
  }
}

// Eight independent 16-byte loads a thread: enough in flight to hide the latency of memory.
__global__ void __launch_bounds__(kThreads)
    read_kernel(const uint4* data, std::int64_t count, unsigned* sink) {
  constexpr int kUnroll = 8;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  unsigned any = 0;
  for (; i + (kUnroll - 1) * stride < count; i += kUnroll * stride) {
    uint4 v[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) v[u] = __ldcs(data + i + u * stride);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) any |= v[u].x | v[u].y | v[u].z | v[u].w;
  }
  for (; i < count; i += stride) any |= data[i].x;
  if (any == 0) *sink = 1;
}

// Shared-memory matrix descriptor of a K-major tile with rows of 128 bytes, swizzled by 128 bytes:
// groups of 8 rows lie 1024 bytes apart.
__device__ std::uint64_t tile_descriptor(const void* tile) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(tile));
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  constexpr std::uint64_t kGroupStride = std::uint64_t{1024 >> 4} << 32;
  constexpr std::uint64_t kUnused = std::uint64_t{1} << 16;
  return kSwizzle128 | kGroupStride | kUnused | ((address & 0x3FFFF) >> 4);
}

#define QT_ACC4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define QT_ACC16(d, i) QT_ACC4(d, i), QT_ACC4(d, i + 4), QT_ACC4(d, i + 8), QT_ACC4(d, i + 12)
#define QT_ACC64(d, i) QT_ACC16(d, i), QT_ACC16(d, i + 16), QT_ACC16(d, i + 32), QT_ACC16(d, i + 48)
#define QT_ACC128(d) QT_ACC64(d, 0), QT_ACC64(d, 64)

#define QT_REGS_128                                                                              \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"  \
  "%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70," \
  "%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93," \
  "%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,"    \
  "%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}"

__device__ void multiply_bf16(float (&d)[128], std::uint64_t a, std::uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 " QT_REGS_128
               ", %128, %129, 1, 1, 1, 0, 0;\n"
               : QT_ACC128(d)
               : "l"(a), "l"(b));
}

__device__ void multiply_fp8(float (&d)[128], std::uint64_t a, std::uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3.e4m3 " QT_REGS_128
               ", %128, %129, 1, 1, 1;\n"
               : QT_ACC128(d)
               : "l"(a), "l"(b));
}

constexpr int kTileRowBytes = 128;
constexpr int kStepBytes = 32;  // of a row, that one instruction takes
constexpr int kStepsPerTile = kTileRowBytes / kStepBytes;
constexpr int kTileRepeats = 4;

// Two warpgroups, each 64 x 256 of a product whose operands stay in shared memory.
template <ProbeType kType>
__global__ void __launch_bounds__(kThreads, 1) product_kernel(int rounds, float* sink) {
  constexpr int kWords = (2 * 64 + 256) * kTileRowBytes / 4;
  __shared__ alignas(1024) unsigned tiles[kWords];
  // Numbers of either sign between 1/8 and 2, so that sums stay finite.
  for (int i = threadIdx.x; i < kWords; i += kThreads) {
    const unsigned bits = hash32(static_cast<unsigned>(i) + blockIdx.x * kWords);
    tiles[i] = kType == ProbeType::kBf16 ? (bits & 0x81FF81FFu) | 0x3E003E00u
                                         : (bits & 0x97979797u) | 0x28282828u;
  }
  __syncthreads();
  asm volatile("fence.proxy.async;\n" ::: "memory");
  const unsigned* own = tiles + static_cast<int>(threadIdx.x / 128) * 64 * kTileRowBytes / 4;
  const std::uint64_t a = tile_descriptor(own);
  const std::uint64_t b = tile_descriptor(tiles + 2 * 64 * kTileRowBytes / 4);
  float d[128] = {};
  for (int round = 0; round < rounds; ++round) {
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
#pragma unroll
    for (int i = 0; i < kTileRepeats * kStepsPerTile; ++i) {
      const std::uint64_t step = static_cast<std::uint64_t>(i % kStepsPerTile * kStepBytes) >> 4;
      if constexpr (kType == ProbeType::kBf16)
        multiply_bf16(d, a + step, b + step);
      else
        multiply_fp8(d, a + step, b + step);
    }
    asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n" ::
                     : "memory");
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 128; ++i) sum += d[i];
  sink[blockIdx.x * kThreads + threadIdx.x] = sum;
}

}  // namespace

void fill_random(void* data, std::int64_t bytes, cudaStream_t stream) {
  fill_kernel<<<1024, kThreads, 0, stream>>>(static_cast<uint4*>(data), bytes / 16);
  QT_CUDA(cudaGetLastError());
}

void probe_read(const void* data, std::int64_t bytes, unsigned* sink, cudaStream_t stream) {
  read_kernel<<<132 * 8, kThreads, 0, stream>>>(static_cast<const uint4*>(data), bytes / 16, sink);
  QT_CUDA(cudaGetLastError());
}

double probe_products(ProbeType type, int sms, int rounds, float* sink, cudaStream_t stream) {
  const bool bf16 = type == ProbeType::kBf16;
  if (bf16)
    product_kernel<ProbeType::kBf16><<<sms, kThreads, 0, stream>>>(rounds, sink);
  else
    product_kernel<ProbeType::kFp8><<<sms, kThreads, 0, stream>>>(rounds, sink);
  QT_CUDA(cudaGetLastError());
  const double per_instruction = 2.0 * 64 * 256 * (bf16 ? 16 : 32);
  return per_instruction * kTileRepeats * kStepsPerTile * 2 * rounds * sms;
}

}  // namespace quatrain::cuda

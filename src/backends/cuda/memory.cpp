// SPDX-License-Identifier: Apache-2.0
// The device and its memory.
#include <algorithm>
#include <cstring>

#include "backends/cuda/cuda_check.h"
#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/launch/attention.h"
#include "backends/cuda/launch/sample.h"
#include "core/step_guard.h"

namespace quatrain {
namespace {

// Pinned memory that small uploads are staged in; a step takes a few kilobytes of it, and ends with
// a download, so a part is free again long before the ring comes round.
constexpr std::int64_t kStagingBytes = std::int64_t{8} << 20;
constexpr std::int64_t kLargestStaged = std::int64_t{1} << 20;

// Device memory that weights pass through on their way to a packed layout.
constexpr std::int64_t kLoadStagingBytes = std::int64_t{64} << 20;

class EventFence final : public Ops::Fence {
 public:
  explicit EventFence(cudaStream_t stream) {
    QT_CUDA(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
    QT_CUDA(cudaEventRecord(event_, stream));
  }
  ~EventFence() override { cudaEventDestroy(event_); }
  EventFence(const EventFence&) = delete;
  EventFence& operator=(const EventFence&) = delete;

  bool reached() override {
    const cudaError_t status = cudaEventQuery(event_);
    if (status == cudaErrorNotReady) return false;
    cuda::check(status, "cudaEventQuery");
    return true;
  }
  void wait() override { QT_CUDA(cudaEventSynchronize(event_)); }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace

CudaOps::CudaOps(int ordinal, DType cache_dtype) : ordinal_(ordinal), cache_dtype_(cache_dtype) {
  if (cache_dtype != DType::kF16 && cache_dtype != DType::kBF16 && cache_dtype != DType::kF32 &&
      cache_dtype != DType::kU8)
    fail("CUDA: caches are F16, BF16, F32 or U8 (packed), found {}", name_of(cache_dtype));
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) fail("CUDA: no usable device: {}", cudaGetErrorString(status));
  if (ordinal < 0 || ordinal >= count)
    fail("CUDA: device {} was asked for, the machine has {}", ordinal, count);
  QT_CUDA(cudaSetDevice(ordinal));
  QT_CUDA(cudaGetDeviceProperties(&properties_, ordinal));
  if (properties_.major != 9)
    fail("CUDA: {} has compute capability {}.{}; this build has kernels for 9.0", properties_.name,
         properties_.major, properties_.minor);
  QT_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  staging_ = allocate_host(kStagingBytes);
}

CudaOps::~CudaOps() {
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

void CudaOps::synchronize() {
  QT_CUDA(cudaStreamSynchronize(stream_));
  staging_used_ = 0;  // every copy out of it is over
}

MemoryInfo CudaOps::memory() {
  std::size_t free_bytes = 0, total_bytes = 0;
  QT_CUDA(cudaMemGetInfo(&free_bytes, &total_bytes));
  return {static_cast<std::int64_t>(free_bytes), static_cast<std::int64_t>(total_bytes)};
}

Buffer CudaOps::allocate(std::int64_t bytes) {
  if (measured_ != nullptr) {
    *measured_ += bytes;
    bytes = 0;
  }
  QT_CHECK(step_operation == nullptr, "{} bytes of device memory asked for inside a step", bytes);
  void* data = nullptr;
  const auto size = static_cast<std::size_t>(std::max<std::int64_t>(bytes, 256));
  if (const cudaError_t status = cudaMalloc(&data, size); status != cudaSuccess) {
    std::size_t free_bytes = 0, total_bytes = 0;
    cudaMemGetInfo(&free_bytes, &total_bytes);
    fail("CUDA: cannot allocate {} bytes of device memory ({} of {} bytes are free): {}", size,
         free_bytes, total_bytes, cudaGetErrorString(status));
  }
  return Buffer(data, static_cast<std::int64_t>(size), [](void* p) { cudaFree(p); });
}

void CudaOps::upload(const Tensor& device, const void* host) {
  QT_CHECK(device.contiguous(), "upload to the strided view {}", device.describe());
  const std::int64_t bytes = device.bytes();
  if (bytes > kLargestStaged) {
    QT_CUDA(cudaMemcpyAsync(device.data(), host, static_cast<std::size_t>(bytes),
                            cudaMemcpyHostToDevice, stream_));
    synchronize();
    return;
  }
  // Between steps the ring fills to one half only, so that a step never has to wait for room.
  const std::int64_t room = step_operation == nullptr ? kStagingBytes / 2 : kStagingBytes;
  if (staging_used_ + bytes > room) synchronize();
  char* staged = static_cast<char*>(staging_.data()) + staging_used_;
  staging_used_ += (bytes + 255) / 256 * 256;
  std::memcpy(staged, host, static_cast<std::size_t>(bytes));
  QT_CUDA(cudaMemcpyAsync(device.data(), staged, static_cast<std::size_t>(bytes),
                          cudaMemcpyHostToDevice, stream_));
}

void CudaOps::download(void* host, const Tensor& device) {
  start_download(host, device);
  synchronize();
}

Buffer CudaOps::allocate_zeros(std::int64_t bytes) {
  Buffer buffer = allocate(bytes);
  zero(Tensor(buffer.data(), DType::kU8, {buffer.bytes()}));
  return buffer;
}

Buffer CudaOps::allocate_host(std::int64_t bytes) {
  void* data = nullptr;
  const auto size = static_cast<std::size_t>(std::max<std::int64_t>(bytes, 256));
  QT_CUDA(cudaHostAlloc(&data, size, cudaHostAllocDefault));
  return Buffer(data, static_cast<std::int64_t>(size), [](void* p) { cudaFreeHost(p); });
}

void CudaOps::start_download(void* host, const Tensor& device) {
  QT_CHECK(device.contiguous(), "download from the strided view {}", device.describe());
  QT_CUDA(cudaMemcpyAsync(host, device.data(), static_cast<std::size_t>(device.bytes()),
                          cudaMemcpyDeviceToHost, stream_));
}

std::unique_ptr<Ops::Fence> CudaOps::fence() { return std::make_unique<EventFence>(stream_); }

void CudaOps::zero(const Tensor& device) {
  QT_CHECK(device.contiguous(), "zeroing the strided view {}", device.describe());
  QT_CUDA(cudaMemsetAsync(device.data(), 0, static_cast<std::size_t>(device.bytes()), stream_));
}

void CudaOps::copy(const Tensor& to, const Tensor& from) {
  QT_CHECK(to.contiguous() && from.contiguous() && to.bytes() == from.bytes(), "copying {} to {}",
           from.describe(), to.describe());
  QT_CUDA(cudaMemcpyAsync(to.data(), from.data(), static_cast<std::size_t>(to.bytes()),
                          cudaMemcpyDeviceToDevice, stream_));
}

void CudaOps::upload_bytes(void* device, const void* host, std::int64_t bytes) {
  if (bytes == 0) return;
  cudaPointerAttributes attributes{};
  QT_CUDA(cudaPointerGetAttributes(&attributes, host));
  if (attributes.type != cudaMemoryTypeHost) {
    upload(Tensor(device, DType::kU8, {bytes}), host);
    return;
  }
  QT_CUDA(cudaMemcpyAsync(device, host, static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice,
                          stream_));
}

const void* CudaOps::stage(const void* host, std::int64_t bytes) {
  const std::int64_t size = (bytes + 255) / 256 * 256;
  if (size > load_staging_.bytes()) {
    synchronize();
    load_staging_ = Buffer();
    load_staging_ = allocate(std::max(size, kLoadStagingBytes));
    load_staging_used_ = 0;
  }
  if (load_staging_used_ + size > load_staging_.bytes()) load_staging_used_ = 0;
  char* device = static_cast<char*>(load_staging_.data()) + load_staging_used_;
  load_staging_used_ += size;
  upload_bytes(device, host, bytes);
  return device;
}

std::int64_t CudaOps::reserve_bytes(const StepLimits& limits) {
  std::int64_t bytes = 0;
  measured_ = &bytes;
  try {
    reserve(limits);
  } catch (...) {
    measured_ = nullptr;
    throw;
  }
  measured_ = nullptr;
  return bytes;
}

void CudaOps::reserve(const StepLimits& limits) {
  limits_ = limits;
  synchronize();
  load_staging_ = Buffer();
  load_tops_ = Buffer();
  // Index scores of as many rows as fit 64 MB, at least one; longer steps take several passes.
  const std::int64_t row_bytes = (limits.context / 4 + 1) * 4;
  index_score_rows_ = std::clamp<std::int64_t>((std::int64_t{64} << 20) / row_bytes, 1,
                                               std::max<std::int64_t>(1, limits.rows));
  index_scores_ = allocate(index_score_rows_ * row_bytes);
  step_latents_ = allocate(limits.rows * cuda::kLatentWidth * bytes_of(DType::kF16));
  // Those of parts without keys are read with the others, though not used.
  parked_sums_ = allocate_zeros(cuda::attend_parked_bytes());
  reserve_experts();
  reserve_linears();
  if (limits.vocab_size > cuda::kMaxVocab)
    fail("CUDA: vocab_size: the sampler takes at most {}, found {}", cuda::kMaxVocab,
         limits.vocab_size);
  cuda::prepare_sampling(limits.vocab_size);
}

}  // namespace quatrain

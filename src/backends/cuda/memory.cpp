// SPDX-License-Identifier: Apache-2.0
// The device, its memory and load-time packing.
#include <algorithm>
#include <cstring>

#include "backends/cuda/cuda_check.h"
#include "backends/cuda/cuda_ops.h"
#include "core/step_guard.h"

namespace quatrain {
namespace {

// Pinned memory that small uploads are staged in; a step takes a few kilobytes of it, and ends with
// a download, so a part is free again long before the ring comes round.
constexpr std::int64_t kStagingBytes = std::int64_t{8} << 20;
constexpr std::int64_t kLargestStaged = std::int64_t{1} << 20;

}  // namespace

CudaOps::CudaOps(int ordinal, DType cache_dtype) : ordinal_(ordinal), cache_dtype_(cache_dtype) {
  if (cache_dtype != DType::kBF16 && cache_dtype != DType::kF32)
    fail("CUDA: caches are BF16 or F32, found {}", name_of(cache_dtype));
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
  void* staging = nullptr;
  QT_CUDA(cudaHostAlloc(&staging, kStagingBytes, cudaHostAllocDefault));
  staging_ = Buffer(staging, kStagingBytes, [](void* p) { cudaFreeHost(p); });
}

CudaOps::~CudaOps() {
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

void CudaOps::synchronize() { QT_CUDA(cudaStreamSynchronize(stream_)); }

Buffer CudaOps::allocate(std::int64_t bytes) {
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
  if (staging_used_ + bytes > kStagingBytes) {
    synchronize();
    staging_used_ = 0;
  }
  char* staged = static_cast<char*>(staging_.data()) + staging_used_;
  staging_used_ += (bytes + 255) / 256 * 256;
  std::memcpy(staged, host, static_cast<std::size_t>(bytes));
  QT_CUDA(cudaMemcpyAsync(device.data(), staged, static_cast<std::size_t>(bytes),
                          cudaMemcpyHostToDevice, stream_));
}

void CudaOps::download(void* host, const Tensor& device) {
  QT_CHECK(device.contiguous(), "download from the strided view {}", device.describe());
  QT_CUDA(cudaMemcpyAsync(host, device.data(), static_cast<std::size_t>(device.bytes()),
                          cudaMemcpyDeviceToHost, stream_));
  synchronize();
}

void CudaOps::zero(const Tensor& device) {
  QT_CHECK(device.contiguous(), "zeroing the strided view {}", device.describe());
  QT_CUDA(cudaMemsetAsync(device.data(), 0, static_cast<std::size_t>(device.bytes()), stream_));
}

void CudaOps::upload_bytes(void* device, const void* host, std::int64_t bytes) {
  if (bytes > 0) upload(Tensor(device, DType::kU8, {bytes}), host);
}

std::unique_ptr<PackedLinear> CudaOps::pack_linear(const QuantMatrix& w) {
  auto packed = std::make_unique<CudaLinear>();
  packed->name = std::string(w.name);
  packed->format = w.format;
  packed->rows = w.rows;
  packed->cols = w.cols;
  packed->bytes = w.bytes();
  const std::int64_t value_bytes = w.rows * w.row_bytes();
  const std::int64_t scale_offset = (value_bytes + 255) / 256 * 256;
  packed->memory = allocate(scale_offset + w.scale_count() * bytes_of(w.scale_dtype));
  char* base = static_cast<char*>(packed->memory.data());
  upload_bytes(base, w.values, value_bytes);
  upload_bytes(base + scale_offset, w.scales, w.scale_count() * bytes_of(w.scale_dtype));
  packed->matrix = {.format = w.format,
                    .dtype = w.dtype,
                    .scale_dtype = w.scale_dtype,
                    .values = base,
                    .scales = base + scale_offset,
                    .global_scale = w.global_scale,
                    .rows = static_cast<int>(w.rows),
                    .cols = static_cast<int>(w.cols)};
  return packed;
}

std::unique_ptr<PackedExperts> CudaOps::make_experts(std::string name, std::int64_t count,
                                                     std::int64_t hidden,
                                                     std::int64_t intermediate) {
  auto experts = std::make_unique<CudaExperts>();
  experts->name = std::move(name);
  experts->count = count;
  experts->hidden = hidden;
  experts->intermediate = intermediate;
  return experts;
}

void CudaOps::pack_projection(CudaExperts& experts, CudaExperts::Projection& p, std::int64_t e,
                              const QuantMatrix& w) {
  const std::int64_t value_bytes = w.rows * w.row_bytes();
  const std::int64_t scale_bytes = w.scale_count() * bytes_of(w.scale_dtype);
  if (!p.is_set) {
    p.is_set = true;
    p.values = allocate(experts.count * value_bytes);
    p.scales = allocate(experts.count * scale_bytes);
    p.global_scales = allocate(experts.count * 4);
    p.input_scales = allocate(experts.count * 4);
    p.matrix = {.format = w.format,
                .dtype = w.dtype,
                .scale_dtype = w.scale_dtype,
                .values = p.values.data(),
                .scales = p.scales.data(),
                .rows = static_cast<int>(w.rows),
                .cols = static_cast<int>(w.cols)};
  }
  if (p.matrix.format != w.format || p.matrix.dtype != w.dtype ||
      p.matrix.scale_dtype != w.scale_dtype)
    fail("{}: the experts of a layer must share one format; expert 0 is {}, this one {}", w.name,
         name_of(p.matrix.format), name_of(w.format));
  upload_bytes(static_cast<char*>(p.values.data()) + e * value_bytes, w.values, value_bytes);
  upload_bytes(static_cast<char*>(p.scales.data()) + e * scale_bytes, w.scales, scale_bytes);
  upload_bytes(static_cast<float*>(p.global_scales.data()) + e, &w.global_scale, 4);
  upload_bytes(static_cast<float*>(p.input_scales.data()) + e, &w.input_scale, 4);
  experts.bytes += w.bytes();
  experts.has_input_scales = experts.has_input_scales && w.input_scale > 0;
}

void CudaOps::pack_expert(PackedExperts& experts, std::int64_t e, const QuantMatrix& w1,
                          const QuantMatrix& w3, const QuantMatrix& w2) {
  auto& all = static_cast<CudaExperts&>(experts);
  pack_projection(all, all.w1, e, w1);
  pack_projection(all, all.w3, e, w3);
  pack_projection(all, all.w2, e, w2);
}

void CudaOps::reserve(const StepLimits& limits) {
  limits_ = limits;
  // Index scores of as many rows as fit 64 MB, at least one; longer steps take several passes.
  const std::int64_t row_bytes = (limits.context / 4 + 1) * 4;
  index_score_rows_ = std::clamp<std::int64_t>((std::int64_t{64} << 20) / row_bytes, 1,
                                               std::max<std::int64_t>(1, limits.rows));
  index_scores_ = allocate(index_score_rows_ * row_bytes);

  const std::int64_t slots = limits.rows * limits.experts_per_token;
  experts_.offsets = allocate((limits.num_experts + 1) * 4);
  experts_.sorted = allocate(slots * 4);
  experts_.row_map = allocate(slots * 4);
  experts_.row_scales = allocate(slots * 4);
  experts_.inputs = allocate(slots * limits.hidden_size * 4);
  experts_.hidden = allocate(slots * limits.intermediate_size * 4);
  experts_.outputs = allocate(slots * limits.hidden_size * 4);
}

}  // namespace quatrain

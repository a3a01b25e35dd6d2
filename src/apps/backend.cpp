// SPDX-License-Identifier: Apache-2.0
#include "apps/backend.h"

#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/probe.h"
#if defined(QUATRAIN_HAS_CUDA)
#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/probe.h"
#endif

namespace quatrain::apps {
namespace {

Backend make_cpu(int threads, const std::string& kv_cache_dtype, const std::string& reason) {
  if (kv_cache_dtype == "bf16")
    fail("--kv-cache-dtype bf16: the cpu backend{} keeps its caches in fp32", reason);
  auto ops = std::make_unique<CpuOps>(threads);
  std::string description = fmt::format("cpu backend, {} threads{}", ops->pool().threads(), reason);
  std::string device = fmt::format("{} threads", ops->pool().threads());
  ThreadPool& pool = ops->pool();
  return {.ops = std::move(ops),
          .description = std::move(description),
          .device = std::move(device),
          .measure_limits = [&pool] { return measure_cpu_limits(pool); }};
}

Backend make_cuda([[maybe_unused]] const std::string& kv_cache_dtype) {
#if defined(QUATRAIN_HAS_CUDA)
  auto ops = std::make_unique<CudaOps>(0, kv_cache_dtype == "fp32" ? DType::kF32 : DType::kBF16);
  std::string description = fmt::format("cuda backend on {}", ops->properties().name);
  CudaOps* cuda = ops.get();
  return {.ops = std::move(ops),
          .description = std::move(description),
          .device = cuda->properties().name,
          .measure_limits = [cuda] { return measure_cuda_limits(*cuda); }};
#else
  fail("this build has no CUDA backend");
#endif
}

}  // namespace

Backend make_backend(const std::string& name, int threads, const std::string& kv_cache_dtype) {
  if (name == "cpu") return make_cpu(threads, kv_cache_dtype, "");
  if (name == "cuda") return make_cuda(kv_cache_dtype);
  if (name != "auto") fail("--backend: expected auto, cpu or cuda, found '{}'", name);
  try {
    return make_cuda(kv_cache_dtype);
  } catch (const Error& error) {
    return make_cpu(threads, kv_cache_dtype, fmt::format(" (chosen because {})", error.what()));
  }
}

}  // namespace quatrain::apps

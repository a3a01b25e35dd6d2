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

Backend make_cpu(const CpuFlags& cpu, const std::string& kv_cache_dtype,
                 const std::string& reason) {
  if (kv_cache_dtype != "auto" && kv_cache_dtype != "fp32")
    fail("--kv-cache-dtype {}: the cpu backend{} keeps its caches in fp32", kv_cache_dtype, reason);
  auto ops = std::make_unique<CpuOps>(cpu.threads, parse_isa(cpu.isa), cpu.cpus);
  ThreadPool& pool = ops->pool();
  const CpuIsa ops_isa = ops->isa();
  const std::string_view isa = name_of(ops_isa);
  return {.ops = std::move(ops),
          .description = fmt::format(
              "cpu backend, {} threads{}, {} kernels{}", pool.threads(),
              pool.groups() > 1 ? fmt::format(" on {} nodes", pool.groups()) : "", isa, reason),
          .device = fmt::format("{} threads, {}", pool.threads(), isa),
          .measure_limits = [&pool, kind = ops_isa] { return measure_cpu_limits(pool, kind); },
          .cycle_bytes = uncached_bytes()};
}

#if defined(QUATRAIN_HAS_CUDA)
DType cuda_cache_dtype(const std::string& name) {
  if (name == "fp32") return DType::kF32;
  if (name == "bf16") return DType::kBF16;
  if (name == "fp8") return DType::kU8;
  return DType::kF16;
}
#endif

Backend make_cuda([[maybe_unused]] const std::string& kv_cache_dtype) {
#if defined(QUATRAIN_HAS_CUDA)
  auto ops = std::make_unique<CudaOps>(0, cuda_cache_dtype(kv_cache_dtype));
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

Backend make_backend(const std::string& name, const CpuFlags& cpu,
                     const std::string& kv_cache_dtype) {
  if (name == "cpu") return make_cpu(cpu, kv_cache_dtype, "");
  if (name == "cuda") return make_cuda(kv_cache_dtype);
  if (name != "auto") fail("--backend: expected auto, cpu or cuda, found '{}'", name);
  try {
    return make_cuda(kv_cache_dtype);
  } catch (const Error& error) {
    return make_cpu(cpu, kv_cache_dtype, fmt::format(" (chosen because {})", error.what()));
  }
}

}  // namespace quatrain::apps

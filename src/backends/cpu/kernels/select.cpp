// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/kernels/tables.h"

namespace quatrain {
namespace {

CpuKernels table(void (*fill)(CpuKernels&)) {
  CpuKernels kernels;
  fill(kernels);
  return kernels;
}

std::int64_t far_prefetch_bytes() {
#if defined(QUATRAIN_X86_KERNELS)
  if (__builtin_cpu_is("intel")) return 16384;
#endif
  return 2304;
}

}  // namespace

const std::int64_t kFarPrefetchBytes = far_prefetch_bytes();

const CpuKernels& select_kernels(CpuIsa isa) {
  static const CpuKernels plain = table(fill_plain_kernels);
#if defined(QUATRAIN_X86_KERNELS)
  static const CpuKernels avx2 = table(fill_avx2_kernels);
  static const CpuKernels avx512 = table(fill_avx512_kernels);
  static const CpuKernels vbmi = table(fill_vbmi_kernels);
  static const CpuKernels amx = table([](CpuKernels& kernels) {
    fill_vbmi_kernels(kernels);
    fill_amx_kernels(kernels);
  });
  static const CpuKernels amx_linears = table([](CpuKernels& kernels) {
    kernels = amx;
    fill_amx_linear_kernels(kernels);
  });
  if (isa == CpuIsa::kAmxLinears) return amx_linears;
  if (isa == CpuIsa::kAmx) return amx;
  if (isa == CpuIsa::kVbmi) return vbmi;
  if (isa == CpuIsa::kAvx512) return avx512;
  if (isa == CpuIsa::kAvx2) return avx2;
#endif
  return plain;
}

}  // namespace quatrain

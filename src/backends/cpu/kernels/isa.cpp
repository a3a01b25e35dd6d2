// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/kernels/isa.h"

#include "core/error.h"

namespace quatrain {

std::string_view name_of(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kPlain:
      return "plain";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512:
      return "avx512";
  }
  return "?";
}

CpuIsa best_isa() {
#if defined(QUATRAIN_X86_KERNELS)
  // The builtin also asks the operating system whether it saves the registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (!avx2) return CpuIsa::kPlain;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni");
  return avx512 ? CpuIsa::kAvx512 : CpuIsa::kAvx2;
#else
  return CpuIsa::kPlain;
#endif
}

std::vector<CpuIsa> usable_isas() {
  std::vector<CpuIsa> all;
  for (const CpuIsa isa : {CpuIsa::kPlain, CpuIsa::kAvx2, CpuIsa::kAvx512})
    if (isa <= best_isa()) all.push_back(isa);
  return all;
}

CpuIsa parse_isa(const std::string& name) {
  if (name == "auto") return best_isa();
  for (const CpuIsa isa : {CpuIsa::kPlain, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (name != name_of(isa)) continue;
    if (isa > best_isa())
      fail("--cpu-isa {}: the best that this build and machine have is {}", name,
           name_of(best_isa()));
    return isa;
  }
  fail("--cpu-isa: expected auto, plain, avx2 or avx512, found '{}'", name);
}

}  // namespace quatrain

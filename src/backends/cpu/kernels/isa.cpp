// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/kernels/isa.h"

#if defined(QUATRAIN_X86_KERNELS)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "core/error.h"

namespace quatrain {
namespace {

constexpr CpuIsa kAll[] = {CpuIsa::kPlain, CpuIsa::kAvx2, CpuIsa::kAvx512,
                           CpuIsa::kVbmi,  CpuIsa::kAmx,  CpuIsa::kAmxLinears};

#if defined(QUATRAIN_X86_KERNELS)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

// AMX-TILE, AMX-BF16 and AVX-512 FP16 of leaf 7, AVX-512 BF16 of its first subleaf.
bool has_amx() {
  constexpr unsigned kAmxBf16 = 1u << 22, kFp16 = 1u << 23, kAmxTile = 1u << 24;
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned kNeeded = kAmxBf16 | kFp16 | kAmxTile;
  if ((edx & kNeeded) != kNeeded) return false;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & (1u << 5)) != 0;
}

// Linux gives a process the 8 KB of tile registers only when it asks.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

CpuIsa detect() {
  // The builtin also asks whether the operating system saves the registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (!avx2) return CpuIsa::kPlain;
  if (!has_avx512()) return CpuIsa::kAvx2;
  if (!__builtin_cpu_supports("avx512vbmi")) return CpuIsa::kAvx512;
  return has_amx() && may_use_tiles() ? CpuIsa::kAmx : CpuIsa::kVbmi;
}
#else
CpuIsa detect() { return CpuIsa::kPlain; }
#endif

}  // namespace

std::string_view name_of(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kPlain:
      return "plain";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512:
      return "avx512";
    case CpuIsa::kVbmi:
      return "vbmi";
    case CpuIsa::kAmx:
      return "amx";
    case CpuIsa::kAmxLinears:
      return "amx-linears";
  }
  return "?";
}

CpuIsa best_isa() {
  static const CpuIsa best = detect();
  return best;
}

namespace {

bool runs(CpuIsa isa) {
  return isa <= (best_isa() == CpuIsa::kAmx ? CpuIsa::kAmxLinears : best_isa());
}

}  // namespace

std::vector<CpuIsa> usable_isas() {
  std::vector<CpuIsa> all;
  for (const CpuIsa isa : kAll)
    if (runs(isa)) all.push_back(isa);
  return all;
}

CpuIsa parse_isa(const std::string& name) {
  if (name == "auto") return best_isa();
  for (const CpuIsa isa : kAll) {
    if (name != name_of(isa)) continue;
    if (!runs(isa))
      fail("--cpu-isa {}: the best that this build and machine have is {}", name,
           name_of(best_isa()));
    return isa;
  }
  fail("--cpu-isa: expected auto, plain, avx2, avx512, vbmi, amx or amx-linears, found '{}'", name);
}

}  // namespace quatrain

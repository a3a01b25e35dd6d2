// SPDX-License-Identifier: Apache-2.0
// Which instruction set the CPU backend's kernels use.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace quatrain {

/// Each level needs all of the levels before it.
enum class CpuIsa {
  kPlain,   ///< the reference bodies: portable C++, weights as the checkpoint stores them
  kAvx2,    ///< AVX2, FMA, F16C
  kAvx512,  ///< AVX-512 F, BW, DQ, VL and VNNI
  kVbmi,    ///< AVX-512 with VBMI, too
  kAmx,     ///< AMX-BF16, and AVX-512 BF16 and FP16: experts with many tokens on matrix tiles
  /// The same, and all FP8 and BF16 linears on matrix tiles, with inputs of 16 bits: faster with
  /// many tokens, slower with one, and so never chosen unasked.
  kAmxLinears,
};

std::string_view name_of(CpuIsa isa);

/// The best level for all purposes that this build has and this machine runs.
CpuIsa best_isa();

/// All levels that it runs.
std::vector<CpuIsa> usable_isas();

/// "auto", "plain", "avx2", "avx512", "vbmi", "amx", "amx-linears"; throws when the name is unknown
/// or the machine lacks it.
CpuIsa parse_isa(const std::string& name);

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// What each instruction set's translation unit exports.
#pragma once

#include <cstdint>

#include "backends/cpu/kernels/kernels.h"

namespace quatrain {

/// How far ahead of the weights in use the next ones are fetched into the L2 cache. An Intel core
/// has 48 such reads under way but only 16 into its L1 cache, too few for its share of the memory:
/// 16 KB, then. On others the shorter distance of the reads into the L1 cache, which says nothing
/// new.
extern const std::int64_t kFarPrefetchBytes;

void fill_plain_kernels(CpuKernels& kernels);
void fill_avx2_kernels(CpuKernels& kernels);
void fill_avx512_kernels(CpuKernels& kernels);
void fill_vbmi_kernels(CpuKernels& kernels);
/// What matrix tiles add to the kernels of kVbmi, and what they add to those for linears.
void fill_amx_kernels(CpuKernels& kernels);
void fill_amx_linear_kernels(CpuKernels& kernels);

}  // namespace quatrain

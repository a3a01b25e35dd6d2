// SPDX-License-Identifier: Apache-2.0
// What each instruction set's translation unit exports.
#pragma once

#include "backends/cpu/kernels/kernels.h"

namespace quatrain {

void fill_plain_kernels(CpuKernels& kernels);
void fill_avx2_kernels(CpuKernels& kernels);
void fill_avx512_kernels(CpuKernels& kernels);
void fill_vbmi_kernels(CpuKernels& kernels);
/// What matrix tiles add to the kernels of kVbmi, and what they add to those for linears.
void fill_amx_kernels(CpuKernels& kernels);
void fill_amx_linear_kernels(CpuKernels& kernels);

}  // namespace quatrain

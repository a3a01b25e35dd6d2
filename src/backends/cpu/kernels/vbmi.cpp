// SPDX-License-Identifier: Apache-2.0
// The AVX-512 kernels with VBMI. Compiled with those instruction sets enabled, so it must not be
// entered, nor share an inline function with other files, before best_isa() has been asked.
#include "backends/cpu/kernels/simd_avx512.h"

#include "backends/cpu/kernels/panel_products.h"
#include "backends/cpu/kernels/row_kernels.h"
#include "backends/cpu/kernels/tables.h"

namespace quatrain {

void fill_vbmi_kernels(CpuKernels& kernels) {
  kernels.isa = CpuIsa::kVbmi;
  fill_products(kernels, std::make_integer_sequence<int, CpuKernels::kMaxTile>{});
  fill_row_kernels(kernels);
}

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// A weight matrix in device memory, as kernels see it.
#pragma once

#include <cstdint>

#include "core/codec.h"
#include "core/dtype.h"
#include "core/quant_matrix.h"

namespace quatrain::cuda {

QT_HOST_DEVICE constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

/// Layout of the checkpoint: `values` and `scales` row-major as QuantMatrix describes them.
struct Matrix {
  WeightFormat format = WeightFormat::kDense;
  DType dtype = DType::kBF16;  // of dense values
  DType scale_dtype = DType::kF32;
  const void* values = nullptr;
  const void* scales = nullptr;
  float global_scale = 1.0f;
  int rows = 0;
  int cols = 0;
};

}  // namespace quatrain::cuda

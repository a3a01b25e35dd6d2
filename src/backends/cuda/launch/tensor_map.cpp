// SPDX-License-Identifier: Apache-2.0
#include "backends/cuda/launch/tensor_map.h"

#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include "backends/cuda/cuda_check.h"
#include "core/error.h"

namespace quatrain::cuda {
namespace {

// The one function of the driver that is needed, without linking its library.
PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  static const auto found = [] {
    constexpr unsigned kVersion = 12000;
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
    QT_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kVersion,
                                             cudaEnableDefault, &result));
    if (result != cudaDriverEntryPointSuccess)
      fail("the CUDA driver has no cuTensorMapEncodeTiled; 12.0 or later is needed");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  return found;
}

}  // namespace

CUtensorMap byte_matrix_map(const void* address, std::int64_t rows, std::int64_t bytes,
                            int box_rows, CUtensorMapL2promotion promotion) {
  CUtensorMap map;
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(bytes), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(bytes)};
  const cuuint32_t box[] = {128, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1};
  const CUresult result =
      encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<void*>(address), extents,
                strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    fail("a matrix of {} rows of {} bytes cannot be described to the GPU: driver error {}", rows,
         bytes, static_cast<int>(result));
  return map;
}

CUtensorMap weight_map(const Matrix& w, int box_rows) {
  QuantMatrix same;
  same.format = w.format;
  same.dtype = w.dtype;
  same.cols = w.cols;
  return byte_matrix_map(w.values, w.rows, same.row_bytes(), box_rows,
                         CU_TENSOR_MAP_L2_PROMOTION_L2_128B);
}

}  // namespace quatrain::cuda

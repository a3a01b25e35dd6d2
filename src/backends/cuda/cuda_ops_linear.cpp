// SPDX-License-Identifier: Apache-2.0
// linear and grouped_linear: packing of their weights, and from tensors to launches.
#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/launch/matmul.h"

namespace quatrain {

std::unique_ptr<PackedLinear> CudaOps::pack_linear(const QuantMatrix& w) {
  auto packed = std::make_unique<CudaLinear>();
  packed->name = std::string(w.name);
  packed->format = w.format;
  packed->rows = w.rows;
  packed->cols = w.cols;
  packed->bytes = w.bytes();
  const std::int64_t value_bytes = w.rows * w.row_bytes();
  const std::int64_t scale_offset = (value_bytes + 255) / 256 * 256;
  packed->memory = allocate(scale_offset + w.scale_count() * bytes_of(w.scale_dtype));
  char* base = static_cast<char*>(packed->memory.data());
  upload_bytes(base, w.values, value_bytes);
  upload_bytes(base + scale_offset, w.scales, w.scale_count() * bytes_of(w.scale_dtype));
  packed->matrix = {.format = w.format,
                    .dtype = w.dtype,
                    .scale_dtype = w.scale_dtype,
                    .values = base,
                    .scales = base + scale_offset,
                    .global_scale = w.global_scale,
                    .rows = static_cast<int>(w.rows),
                    .cols = static_cast<int>(w.cols)};
  return packed;
}

void CudaOps::linear(const op::Linear& args) {
  QT_CHECK(args.x.contiguous() && args.out.contiguous(), "linear: x and out must be contiguous");
  cuda::linear(
      static_cast<const CudaLinear*>(args.w)->matrix,
      {.x = args.x.f32(), .out = args.out.f32(), .tokens = static_cast<int>(args.x.dim(0))},
      stream_);
}

void CudaOps::grouped_linear(const op::GroupedLinear& args) {
  QT_CHECK(args.x.contiguous() && args.out.contiguous(),
           "grouped_linear: x and out must be contiguous");
  cuda::linear(static_cast<const CudaLinear*>(args.w)->matrix,
               {.x = args.x.f32(),
                .out = args.out.f32(),
                .tokens = static_cast<int>(args.x.dim(0)),
                .groups = static_cast<int>(args.x.dim(1))},
               stream_);
}

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// linear, grouped_linear, embed, gather_rows, swiglu, add_to_streams.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/scalar.h"
#include "core/codec.h"

namespace quatrain {
namespace {

// Weight rows that one task decodes; small enough to balance, large enough to amortise the loop.
constexpr std::int64_t kRowsPerTask = 16;

}  // namespace

void CpuOps::linear(const op::Linear& args) {
  const QuantMatrix& w = static_cast<const CpuLinear*>(args.w)->matrix;
  const std::int64_t tokens = args.x.dim(0);
  const float* x = args.x.f32();
  float* out = args.out.f32();
  const std::int64_t x_stride = args.x.stride(0);
  const std::int64_t out_stride = args.out.stride(0);
  pool_.parallel_for(w.rows, kRowsPerTask, [&](std::int64_t begin, std::int64_t end, int thread) {
    float* row = thread_row(thread);
    for (std::int64_t n = begin; n < end; ++n) {
      decode_weight_row(w, n, row);
      for (std::int64_t t = 0; t < tokens; ++t)
        out[t * out_stride + n] = dot(x + t * x_stride, row, w.cols);
    }
  });
}

void CpuOps::grouped_linear(const op::GroupedLinear& args) {
  const QuantMatrix& w = static_cast<const CpuLinear*>(args.w)->matrix;
  const std::int64_t tokens = args.x.dim(0);
  const std::int64_t groups = args.x.dim(1);
  const std::int64_t rows_per_group = w.rows / groups;
  const float* x = args.x.f32();
  float* out = args.out.f32();
  pool_.parallel_for(w.rows, kRowsPerTask, [&](std::int64_t begin, std::int64_t end, int thread) {
    float* row = thread_row(thread);
    for (std::int64_t n = begin; n < end; ++n) {
      decode_weight_row(w, n, row);
      const std::int64_t g = n / rows_per_group;
      for (std::int64_t t = 0; t < tokens; ++t)
        out[t * w.rows + n] = dot(x + (t * groups + g) * w.cols, row, w.cols);
    }
  });
}

void CpuOps::embed(const op::Embed& args) {
  const std::int64_t copies = args.streams.dim(1);
  const std::int64_t width = args.streams.dim(2);
  const std::int32_t* ids = args.ids.i32();
  float* out = args.streams.f32();
  pool_.parallel_for(args.streams.dim(0), 8, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      float* first = out + t * copies * width;
      const std::int64_t id = ids[t];
      if (args.table.dtype() == DType::kBF16) {
        const std::uint16_t* row = args.table.as<std::uint16_t>() + id * width;
        for (std::int64_t d = 0; d < width; ++d) first[d] = bf16_decode(row[d]);
      } else {
        std::copy_n(args.table.f32() + id * width, width, first);
      }
      for (std::int64_t s = 1; s < copies; ++s) std::copy_n(first, width, first + s * width);
    }
  });
}

void CpuOps::gather_rows(const op::GatherRows& args) {
  const std::int64_t n = args.rows.dim(0);
  if (n == 0) return;
  const auto bytes = static_cast<std::size_t>(args.out.bytes() / n);
  const std::int32_t* rows = args.rows.i32();
  const char* x = static_cast<const char*>(args.x.data());
  char* out = static_cast<char*>(args.out.data());
  for (std::int64_t i = 0; i < n; ++i)
    std::memcpy(out + static_cast<std::size_t>(i) * bytes,
                x + static_cast<std::size_t>(rows[i]) * bytes, bytes);
}

void CpuOps::swiglu(const op::SwiGlu& args) {
  const float* gate = args.gate.f32();
  const float* up = args.up.f32();
  float* out = args.out.f32();
  pool_.parallel_for(args.out.elements(), 4096, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) out[i] = swiglu_value(gate[i], up[i], args.limit);
  });
}

void CpuOps::add_to_streams(const op::AddToStreams& args) {
  const std::int64_t copies = args.streams.dim(1);
  const std::int64_t width = args.streams.dim(2);
  const float* e = args.e.f32();
  float* out = args.streams.f32();
  pool_.parallel_for(args.streams.dim(0), 8, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t)
      for (std::int64_t s = 0; s < copies; ++s)
        for (std::int64_t d = 0; d < width; ++d)
          out[(t * copies + s) * width + d] += e[t * width + d];
  });
}

}  // namespace quatrain

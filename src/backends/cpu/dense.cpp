// SPDX-License-Identifier: Apache-2.0
// embed, gather_rows, swiglu, add_to_streams.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "backends/cpu/cpu_ops.h"
#include "core/codec.h"

namespace quatrain {
void CpuOps::embed(const op::Embed& args) {
  const std::int64_t copies = args.streams.dim(1);
  const std::int64_t width = args.streams.dim(2);
  const std::int32_t* ids = args.ids.i32();
  float* out = args.streams.f32();
  parallel_for(args.streams.dim(0), 8, args.streams.elements(),
               [&](std::int64_t begin, std::int64_t end, int) {
                 for (std::int64_t t = begin; t < end; ++t) {
                   float* first = out + t * copies * width;
                   const std::int64_t id = ids[t];
                   if (args.table.dtype() == DType::kBF16) {
                     const std::uint16_t* row = args.table.as<std::uint16_t>() + id * width;
                     for (std::int64_t d = 0; d < width; ++d) first[d] = bf16_decode(row[d]);
                   } else {
                     std::copy_n(args.table.f32() + id * width, width, first);
                   }
                   for (std::int64_t s = 1; s < copies; ++s)
                     std::copy_n(first, width, first + s * width);
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
  constexpr std::int64_t kGrain = 4096;  // a multiple of every vector
  pool_.parallel_for(args.out.elements(), kGrain, [&](std::int64_t begin, std::int64_t end, int) {
    kernels_.swiglu(gate + begin, up + begin, end - begin, args.limit, out + begin);
  });
}

void CpuOps::add_to_streams(const op::AddToStreams& args) {
  const std::int64_t copies = args.streams.dim(1);
  const std::int64_t width = args.streams.dim(2);
  const float* e = args.e.f32();
  float* out = args.streams.f32();
  parallel_for(args.streams.dim(0), 8, args.streams.elements(),
               [&](std::int64_t begin, std::int64_t end, int) {
                 for (std::int64_t t = begin; t < end; ++t)
                   for (std::int64_t s = 0; s < copies; ++s)
                     for (std::int64_t d = 0; d < width; ++d)
                       out[(t * copies + s) * width + d] += e[t * width + d];
               });
}

}  // namespace quatrain

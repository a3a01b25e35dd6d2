// SPDX-License-Identifier: Apache-2.0
// Operations on single rows, from tensors to launches: embed, hyper-connections, norms, rotations,
// grids, swiglu, copies.
#include <algorithm>

#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/launch/elementwise.h"
#include "backends/cuda/launch/hyper_connections.h"
#include "backends/cuda/tensor_args.h"

namespace quatrain {
namespace {

void check_streams(const Tensor& streams) {
  QT_CHECK(streams.dim(1) <= cuda::kMaxStreams, "hc_mult {} is above {}", streams.dim(1),
           cuda::kMaxStreams);
  QT_CHECK(streams.dim(2) % 4 == 0, "hidden size {} is no multiple of 4", streams.dim(2));
}

cuda::HcPreArgs site_args(const op::HcPre& args) {
  return {.streams = f32(args.streams),
          .fn = f32(args.weights.fn),
          .base = f32(args.weights.base),
          .scale = f32(args.weights.scale),
          .rows = extent(args.streams, 0),
          .hc = extent(args.streams, 1),
          .width = extent(args.streams, 2),
          .sinkhorn_iters = args.sinkhorn_iters,
          .hc_eps = args.hc_eps,
          .norm_eps = args.norm_eps,
          .out = f32(args.out),
          .post = f32(args.post),
          .comb = f32(args.comb)};
}

cuda::HcPostArgs update_args(const op::HcPost& args) {
  return {.f = f32(args.f),
          .post = f32(args.post),
          .comb = f32(args.comb),
          .rows = extent(args.streams, 0),
          .hc = extent(args.streams, 1),
          .width = extent(args.streams, 2),
          .streams = f32(args.streams)};
}

}  // namespace

void CudaOps::embed(const op::Embed& args) {
  const bool is_bf16 = args.table.dtype() == DType::kBF16;
  QT_CHECK(is_bf16 || args.table.dtype() == DType::kF32, "embedding table of {}",
           name_of(args.table.dtype()));
  cuda::embed({.ids = i32(args.ids),
               .table = contiguous(args.table).data(),
               .table_is_bf16 = is_bf16,
               .rows = extent(args.streams, 0),
               .copies = extent(args.streams, 1),
               .width = extent(args.streams, 2),
               .streams = f32(args.streams)},
              stream_);
}

void CudaOps::hc_pre(const op::HcPre& args) {
  check_streams(args.streams);
  cuda::hc_pre(site_args(args), stream_);
}

void CudaOps::hc_pre_norm(const op::HcPreNorm& args) {
  const Tensor& streams = args.pre.streams;
  check_streams(streams);
  if (!cuda::has_hc_pre_norm(extent(streams, 1), extent(streams, 2))) return Ops::hc_pre_norm(args);
  cuda::hc_pre_norm({.pre = site_args(args.pre),
                     .norm_weight = f32(args.norm_weight),
                     .eps = args.eps,
                     .update = {}},
                    stream_);
}

void CudaOps::hc_post_pre_norm(const op::HcPostPreNorm& args) {
  const Tensor& streams = args.post.streams;
  check_streams(streams);
  if (!cuda::has_hc_pre_norm(extent(streams, 1), extent(streams, 2)))
    return Ops::hc_post_pre_norm(args);
  cuda::hc_pre_norm({.pre = site_args(args.next.pre),
                     .norm_weight = f32(args.next.norm_weight),
                     .eps = args.next.eps,
                     .update = update_args(args.post)},
                    stream_);
}

void CudaOps::hc_post(const op::HcPost& args) {
  check_streams(args.streams);
  cuda::hc_post(update_args(args), stream_);
}

void CudaOps::hc_head(const op::HcHead& args) {
  check_streams(args.streams);
  cuda::hc_head({.streams = f32(args.streams),
                 .fn = f32(args.weights.fn),
                 .base = f32(args.weights.base),
                 .scale = f32(args.weights.scale),
                 .rows = extent(args.streams, 0),
                 .hc = extent(args.streams, 1),
                 .width = extent(args.streams, 2),
                 .hc_eps = args.hc_eps,
                 .norm_eps = args.norm_eps,
                 .out = f32(args.out)},
                stream_);
}

void CudaOps::rms_norm(const op::RmsNorm& args) {
  const int width = width_of(args.x);
  cuda::rms_norm({.x = f32(args.x),
                  .weight = args.weight ? f32(args.weight) : nullptr,
                  .rows = args.x.elements() / width,
                  .width = width,
                  .eps = args.eps,
                  .out = f32(args.out)},
                 stream_);
}

void CudaOps::rope(const op::Rope& args) {
  cuda::rope({.x = f32(args.x),
              .positions = i32(args.positions),
              .inv_freq = f32(args.inv_freq),
              .rows = extent(args.x, 0),
              .heads = args.x.rank() == 3 ? extent(args.x, 1) : 1,
              .width = width_of(args.x),
              .pairs = extent(args.inv_freq, 0),
              .inverse = args.inverse},
             stream_);
}

void CudaOps::round_to_grid(const op::RoundToGrid& args) {
  const int width = width_of(args.x);
  QT_CHECK(args.grid != CacheGrid::kIndex || (width & (width - 1)) == 0,
           "a Hadamard transform of {} columns", width);
  cuda::round_to_grid({.x = f32(args.x),
                       .rows = args.x.elements() / width,
                       .width = width,
                       .grid = kernel_grid(args.grid),
                       .rope_dim = as_int(args.rope_dim)},
                      stream_);
}

bool CudaOps::has_norm_rope(const op::NormRope& args) {
  return std::all_of(args.rows.begin(), args.rows.begin() + args.count, [](const auto& r) {
    return width_of(r.x) % 2 == 0 && width_of(r.x) <= cuda::kMaxNormRopeWidth;
  });
}

cuda::NormRopeArgs CudaOps::kernel_args(const op::NormRope& args) {
  cuda::NormRopeArgs all{.arrays = {},
                         .count = args.count,
                         .positions = i32(args.positions),
                         .rows = extent(args.positions, 0),
                         .eps = args.eps};
  for (int i = 0; i < args.count; ++i) {
    const auto& r = args.rows[static_cast<std::size_t>(i)];
    all.arrays[i] = {.x = f32(r.x),
                     .norm = r.norm,
                     .weight = r.weight ? f32(r.weight) : nullptr,
                     .inv_freq = r.inv_freq ? f32(r.inv_freq) : nullptr,
                     .heads = r.x.rank() == 3 ? extent(r.x, 1) : 1,
                     .width = width_of(r.x),
                     .pairs = r.inv_freq ? extent(r.inv_freq, 0) : 0};
  }
  return all;
}

void CudaOps::norm_rope(const op::NormRope& args) {
  if (!has_norm_rope(args)) return Ops::norm_rope(args);
  cuda::norm_rope(kernel_args(args), stream_);
  round_to_grids(args);
}

void CudaOps::round_to_grids(const op::NormRope& args) {
  for (int i = 0; i < args.count; ++i) {
    const auto& r = args.rows[static_cast<std::size_t>(i)];
    if (r.grid != CacheGrid::kNone)
      round_to_grid({.x = r.x, .grid = r.grid, .rope_dim = r.rope_dim});
  }
}

void CudaOps::swiglu(const op::SwiGlu& args) {
  cuda::swiglu({.gate = f32(args.gate),
                .up = f32(args.up),
                .count = args.out.elements(),
                .limit = args.limit,
                .out = f32(args.out)},
               stream_);
}

void CudaOps::gather_rows(const op::GatherRows& args) {
  const std::int64_t count = args.rows.dim(0);
  if (count == 0) return;
  const std::int64_t bytes = args.out.bytes() / count;
  QT_CHECK(bytes % 4 == 0, "rows of {} bytes are no whole 32-bit words", bytes);
  cuda::gather_rows({.x = static_cast<const std::uint32_t*>(contiguous(args.x).data()),
                     .rows = i32(args.rows),
                     .count = as_int(count),
                     .words = bytes / 4,
                     .out = static_cast<std::uint32_t*>(contiguous(args.out).data())},
                    stream_);
}

void CudaOps::add_to_streams(const op::AddToStreams& args) {
  cuda::add_to_streams({.e = f32(args.e),
                        .rows = extent(args.streams, 0),
                        .copies = extent(args.streams, 1),
                        .width = extent(args.streams, 2),
                        .streams = f32(args.streams)},
                       stream_);
}

}  // namespace quatrain

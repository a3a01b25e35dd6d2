// SPDX-License-Identifier: Apache-2.0
// linear, grouped_linear.
#include <algorithm>

#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/kernels/panel_multiply.h"

namespace quatrain {
namespace {

// Weight rows that one task of the plain body decodes.
constexpr std::int64_t kRowsPerTask = 16;
// With many tokens a task takes this many panels, so that a tile of inputs is read once for all.
constexpr std::int64_t kManyTokens = 16;
constexpr std::int64_t kPanelsPerTask = 4;

// out[t * out_stride + n] = W[n] · x(t, group of n), decoding one row at a time.
void plain_linear(const QuantMatrix& w, std::int64_t groups, const float* x, std::int64_t x_stride,
                  std::int64_t tokens, float* out, std::int64_t out_stride, std::int64_t begin,
                  std::int64_t end, float* row) {
  for (std::int64_t n = begin; n < end; ++n) {
    decode_weight_row(w, n, row);
    const std::int64_t g = n / (w.rows / groups);
    for (std::int64_t t = 0; t < tokens; ++t)
      out[t * out_stride + n] = dot(x + t * x_stride + g * w.cols, row, w.cols);
  }
}

}  // namespace

// Each group of inputs has rows / groups outputs of its own; a panel may span groups.
void CpuOps::panel_linear(const PanelMatrix& w, std::int64_t groups, const float* x,
                          std::int64_t x_stride, std::int64_t tokens, float* out,
                          std::int64_t out_stride) {
  const std::int64_t per_group = w.rows() / groups;
  const std::int64_t panels = w.panels();
  const bool many = tokens >= kManyTokens;
  const std::int64_t grain =
      many ? kPanelsPerTask : std::max<std::int64_t>(1, panels / (8 * pool_.threads()));
  const std::int64_t step = many ? kernels_.float_tile : tokens;
  parallel_for(panels, grain, panels * w.panel_bytes() * tokens,
               [&](std::int64_t begin, std::int64_t end, int) {
                 for (std::int64_t t0 = 0; t0 < tokens; t0 += step)
                   for (std::int64_t p = begin; p < end; ++p) {
                     const std::int64_t row0 = p * kPanelRows;
                     const PanelRows exist = existing_rows(w, p);
                     for (std::int64_t n = row0; n < row0 + exist.last;) {
                       const std::int64_t g = n / per_group;
                       const std::int64_t stop = std::min((g + 1) * per_group, row0 + exist.last);
                       multiply_floats(
                           kernels_, w, p, {n - row0, stop - row0}, std::min(step, tokens - t0),
                           [&](std::int64_t t) { return x + (t0 + t) * x_stride + g * w.cols(); },
                           [&](std::int64_t t) { return out + (t0 + t) * out_stride + row0; });
                       n = stop;
                     }
                   }
               });
}

// Panels must not span groups.
bool CpuOps::has_tiles(const PanelMatrix& w, std::int64_t groups) const {
  return kernels_.float_tiles[static_cast<int>(w.format())] != nullptr &&
         (groups == 1 || (groups <= kMostTileGroups && w.rows() / groups % kPanelRows == 0));
}

// On matrix tiles, for any number of tokens, so that a row's bits depend on nothing else.
void CpuOps::tile_linear(const PanelMatrix& w, std::int64_t groups, const float* x,
                         std::int64_t x_stride, std::int64_t tokens, float* out,
                         std::int64_t out_stride) {
  constexpr std::int64_t kBlock = TileInputs::kBlock;
  const std::int64_t room = tile_memory_.set_width(w.cols(), 2) / groups * kBlock;
  QT_CHECK(room > 0, "a linear of {} columns was packed after reserve()", w.cols());
  const std::int64_t chunk = std::min({tokens, kTileTokens, room});
  for (std::int64_t t = 0; t < tokens; t += chunk) {
    const std::int64_t count = std::min(chunk, tokens - t);
    const std::int64_t blocks = (count + kBlock - 1) / kBlock;
    const auto inputs = [&](std::int64_t g) { return tile_memory_.blocks(g * blocks, blocks); };
    parallel_for(groups * count, 4, groups * count * w.cols(),
                 [&](std::int64_t begin, std::int64_t end, int) {
                   for (std::int64_t i = begin; i < end; ++i)
                     kernels_.split_floats(x + (t + i % count) * x_stride + i / count * w.cols(),
                                           w.cols(), inputs(i / count), i % count);
                 });
    multiply_tiles(w, groups, inputs, count, out + t * out_stride, out_stride);
  }
}

template <class Inputs>
void CpuOps::multiply_tiles(const PanelMatrix& w, std::int64_t groups, Inputs&& inputs,
                            std::int64_t tokens, float* out, std::int64_t out_stride) {
  const std::int64_t panels = w.panels() / groups;  // of a group
  // Alone, panels make more tasks; in pairs they share the loads of activations.
  const std::int64_t together = tokens < kManyTokens ? 1 : 2;
  const std::int64_t parts = (panels + together - 1) / together;
  const std::int64_t grain = std::max<std::int64_t>(1, groups * parts / (8 * pool_.threads()));
  const std::int64_t work = w.panels() * w.panel_bytes() * tokens;
  parallel_for(groups * parts, grain, work, [&](std::int64_t begin, std::int64_t end, int thread) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t g = i / parts, first = i % parts * together;
      const std::int64_t p = g * panels + first;
      TileTask task{.panels = {},
                    .panel_count = static_cast<int>(std::min(together, panels - first)),
                    .x = inputs(g),
                    .tokens = tokens,
                    .sums = thread_sums(thread)};
      for (int j = 0; j < task.panel_count; ++j) task.panels[j] = w.panel(p + j);
      kernels_.float_tiles[static_cast<int>(w.format())](task);
      const std::int64_t rows = std::min(task.panel_count * kPanelRows, w.rows() - p * kPanelRows);
      for (std::int64_t t = 0; t < tokens; ++t)
        std::copy_n(task.sums + t * kTileRows, rows, out + t * out_stride + p * kPanelRows);
    }
  });
}

void CpuOps::linear(const op::Linear& args) {
  const CpuWeight& w = static_cast<const CpuLinear*>(args.w)->weight;
  const std::int64_t tokens = args.x.dim(0);
  const float* x = args.x.f32();
  float* out = args.out.f32();
  const std::int64_t x_stride = args.x.stride(0);
  const std::int64_t out_stride = args.out.stride(0);
  if (w.panels && has_tiles(*w.panels, 1))
    return tile_linear(*w.panels, 1, x, x_stride, tokens, out, out_stride);
  if (w.panels) return panel_linear(*w.panels, 1, x, x_stride, tokens, out, out_stride);
  pool_.parallel_for(args.w->rows, kRowsPerTask,
                     [&](std::int64_t begin, std::int64_t end, int thread) {
                       plain_linear(w.stored, 1, x, x_stride, tokens, out, out_stride, begin, end,
                                    thread_row(thread));
                     });
}

void CpuOps::grouped_linear(const op::GroupedLinear& args) {
  const CpuWeight& w = static_cast<const CpuLinear*>(args.w)->weight;
  const std::int64_t tokens = args.x.dim(0);
  const std::int64_t groups = args.x.dim(1);
  const std::int64_t rows = args.w->rows;
  const std::int64_t x_stride = groups * args.w->cols;
  const float* x = args.x.f32();
  float* out = args.out.f32();
  if (w.panels && has_tiles(*w.panels, groups))
    return tile_linear(*w.panels, groups, x, x_stride, tokens, out, rows);
  if (w.panels) return panel_linear(*w.panels, groups, x, x_stride, tokens, out, rows);
  pool_.parallel_for(rows, kRowsPerTask, [&](std::int64_t begin, std::int64_t end, int thread) {
    plain_linear(w.stored, groups, x, x_stride, tokens, out, rows, begin, end, thread_row(thread));
  });
}

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// linear, grouped_linear.
#include <algorithm>
#include <array>

#include "backends/cpu/activation_quant.h"
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

// Panels [begin, end). Each group of inputs has rows / groups outputs of its own; a panel may span
// groups.
void CpuOps::multiply_panels(const PanelMatrix& w, std::int64_t groups, const float* x,
                             std::int64_t x_stride, std::int64_t tokens, float* out,
                             std::int64_t out_stride, std::int64_t begin, std::int64_t end) const {
  const std::int64_t per_group = w.rows() / groups;
  const std::int64_t step = tokens >= kManyTokens ? kernels_.float_tile : tokens;
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
}

void CpuOps::panel_linear(const PanelMatrix& w, std::int64_t groups, const float* x,
                          std::int64_t x_stride, std::int64_t tokens, float* out,
                          std::int64_t out_stride) {
  const std::int64_t panels = w.panels();
  const std::int64_t together =
      tokens < kManyTokens
          ? 1
          : std::clamp<std::int64_t>(panels / (4 * pool_.threads()), 1, kPanelsPerTask);
  const std::int64_t tasks = (panels + together - 1) / together;
  for_each_panel(1, tasks, 1, panels * w.panel_bytes() * tokens,
                 [&](std::int64_t, std::int64_t task, int) {
                   multiply_panels(w, groups, x, x_stride, tokens, out, out_stride, task * together,
                                   std::min((task + 1) * together, panels));
                 });
}

// The panels of all products are one list of tasks of about as many bytes, so that threads wait for
// each other once. Products with the largest panels come first: what is left to wait for at the end
// is small.
void CpuOps::linears(const op::Linears& args) {
  struct Part {
    const PanelMatrix* w = nullptr;
    const Tensor* out = nullptr;
    std::int64_t grain = 1;  // panels of a task
    std::int64_t tasks = 0;
  };
  std::array<Part, op::Linears::kMost> parts;
  const auto count = static_cast<std::size_t>(args.count);
  std::int64_t bytes = 0;
  if (pool_.groups() > 1) return Ops::linears(args);  // one by one, so that nodes read their own
  for (std::size_t i = 0; i < count; ++i) {
    const auto& product = args.products[i];
    const CpuWeight& w = static_cast<const CpuLinear*>(product.w)->weight;
    if (!w.panels || has_tiles(*w.panels, 1)) return Ops::linears(args);
    bytes += w.panels->panels() * w.panels->panel_bytes();
    std::size_t at = i;
    for (; at > 0 && parts[at - 1].w->panel_bytes() < w.panels->panel_bytes(); --at)
      parts[at] = parts[at - 1];
    parts[at] = {.w = &*w.panels, .out = &product.out};
  }
  const std::int64_t tokens = args.x.dim(0);
  std::int64_t tasks = 0;
  for (std::size_t i = 0; i < count; ++i) {
    Part& part = parts[i];
    part.grain = std::max<std::int64_t>(1, bytes / (8 * pool_.threads() * part.w->panel_bytes()));
    if (tokens >= kManyTokens) part.grain = std::min(part.grain, kPanelsPerTask);
    part.tasks = (part.w->panels() + part.grain - 1) / part.grain;
    tasks += part.tasks;
  }
  parallel_for(tasks, 1, bytes * tokens, [&](std::int64_t begin, std::int64_t end, int) {
    const Part* part = parts.data();
    std::int64_t before = 0;  // tasks of the parts before
    for (std::int64_t task = begin; task < end; ++task) {
      for (; task - before >= part->tasks; ++part) before += part->tasks;
      const std::int64_t first = (task - before) * part->grain;
      multiply_panels(*part->w, 1, args.x.f32(), args.x.stride(0), tokens, part->out->f32(),
                      part->out->stride(0), first,
                      std::min(first + part->grain, part->w->panels()));
    }
  });
}

// Panels must not span groups.
bool CpuOps::has_tiles(const PanelMatrix& w, std::int64_t groups) const {
  return kernels_.float_tiles[static_cast<int>(w.format())] != nullptr &&
         w.has_exact_block_scales() &&
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
  // Alone, panels make more tasks; together they share the loads of activations.
  constexpr std::int64_t kMost = kTileRows / kPanelRows;
  std::int64_t together = tokens < kManyTokens ? 1 : kMost;
  while (together > 1 && groups * panels / together < 2 * pool_.threads()) together /= 2;
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
      for (std::int64_t t = 0; t < tokens; ++t)
        store_tile_row(kernels_.float_tile_row, task, t, w.rows() - p * kPanelRows,
                       out + t * out_stride + p * kPanelRows);
    }
  });
}

/// Inputs [tokens, groups, cols] and outputs [tokens, rows], by the distance of tokens.
struct CpuOps::LinearRows {
  std::int64_t groups = 1;
  std::int64_t tokens = 0;
  const float* x = nullptr;
  std::int64_t x_stride = 0;
  float* out = nullptr;
  std::int64_t out_stride = 0;
};

void CpuOps::linear_rows(const CpuLinear& linear, const LinearRows& rows) {
  const auto& [groups, tokens, x, x_stride, out, out_stride] = rows;
  const CpuWeight& w = linear.weight;
  if (w.panels && has_tiles(*w.panels, groups))
    return tile_linear(*w.panels, groups, x, x_stride, tokens, out, out_stride);
  if (w.panels) return panel_linear(*w.panels, groups, x, x_stride, tokens, out, out_stride);
  pool_.parallel_for(linear.rows, kRowsPerTask,
                     [&](std::int64_t begin, std::int64_t end, int thread) {
                       plain_linear(w.stored, rows.groups, rows.x, rows.x_stride, rows.tokens,
                                    rows.out, rows.out_stride, begin, end, thread_row(thread));
                     });
}

// A few tokens at a time, whose rounded inputs there is room for.
void CpuOps::rounded_linear_rows(const CpuLinear& w, const LinearRows& rows, RoundRow* round) {
  QT_CHECK(rows.groups <= kRoundedGroups, "{}: rounded activations of {} groups, at most {}",
           w.name, rows.groups, kRoundedGroups);
  const std::int64_t width = rows.groups * w.cols;
  const std::int64_t at_once = kRoundedGroups / rows.groups;
  for (std::int64_t t = 0; t < rows.tokens; t += at_once) {
    LinearRows some = rows;
    some.tokens = std::min(at_once, rows.tokens - t);
    parallel_for(some.tokens * rows.groups, 1, some.tokens * width * 4,
                 [&](std::int64_t begin, std::int64_t end, int) {
                   for (std::int64_t i = begin; i < end; ++i)
                     round(
                         rows.x + (t + i / rows.groups) * rows.x_stride + i % rows.groups * w.cols,
                         w.cols, rounded_inputs_.data() + i * w.cols);
                 });
    some.x = rounded_inputs_.data();
    some.x_stride = width;
    some.out = rows.out + t * rows.out_stride;
    linear_rows(w, some);
  }
}

void CpuOps::grouped(const PackedLinear* w, const LinearRows& rows, LinearActivations activations) {
  const auto& linear = static_cast<const CpuLinear&>(*w);
  if (activations == LinearActivations::kFp8 && w->format == WeightFormat::kFp8Block)
    rounded_linear_rows(linear, rows, fp8_round_row);
  else if (activations == LinearActivations::kF16 && is_fp8(w->format))
    rounded_linear_rows(linear, rows, f16_round_row);
  else
    linear_rows(linear, rows);
}

void CpuOps::linear(const op::Linear& args) {
  grouped(args.w,
          {.tokens = args.x.dim(0),
           .x = args.x.f32(),
           .x_stride = args.x.stride(0),
           .out = args.out.f32(),
           .out_stride = args.out.stride(0)},
          args.precise ? LinearActivations::kFull : args.activations);
}

void CpuOps::grouped_linear(const op::GroupedLinear& args) {
  grouped(args.w,
          {.groups = args.x.dim(1),
           .tokens = args.x.dim(0),
           .x = args.x.f32(),
           .x_stride = args.x.dim(1) * args.w->cols,
           .out = args.out.f32(),
           .out_stride = args.w->rows},
          args.activations);
}

}  // namespace quatrain

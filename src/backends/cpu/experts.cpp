// SPDX-License-Identifier: Apache-2.0
// experts: mixture of experts with grouped rows, no token ever dropped.
//
// The experts of a step are one list of tasks, each 32 rows of one expert's projections for all of
// its tokens, so that threads wait for each other only between the two projections.
#include <algorithm>

#include "backends/cpu/activation_quant.h"
#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/kernels/panel_multiply.h"
#include "core/codec.h"

namespace quatrain {
namespace {

// Tokens whose gate and up values a task holds at a time.
constexpr std::int64_t kTokensPerPass = 64;
using PassBuffer = float[kTokensPerPass][kPanelRows];
// Panels that a task multiplies on matrix tiles.
constexpr std::int64_t kTilePanels = kTileRows / kPanelRows;

bool is_4bit(const CpuWeight& w) {
  if (w.panels) return w.panels->is_4bit();
  return w.stored.format == WeightFormat::kNvfp4 || w.stored.format == WeightFormat::kMxfp4;
}

template <class Predicate>
bool all_of_range(std::int64_t first, std::int64_t last, Predicate&& predicate) {
  for (std::int64_t i = first; i < last; ++i)
    if (!predicate(i)) return false;
  return true;
}

std::int64_t panels_of(std::int64_t rows) { return (rows + kPanelRows - 1) / kPanelRows; }

// out = x rounded as the mode says; out may be x.
void round_input(const float* x, std::int64_t n, ExpertActivations mode, float input_scale,
                 float* out) {
  if (mode == ExpertActivations::kBf16)
    std::transform(x, x + n, out, bf16_round);
  else if (mode == ExpertActivations::kInt8)
    int8_round_row(x, n, out);
  else if (mode == ExpertActivations::kFp8)
    fp8_round_row(x, n, out);
  else
    nvfp4_round_row(x, n, mode == ExpertActivations::kStatic ? input_scale : nvfp4_row_scale(x, n),
                    out);
}

}  // namespace

// Fills sorted_slots_ with the slots of each expert, in order of token, and active_.
void CpuOps::sort_slots_by_expert(const op::Experts& args) {
  const std::int64_t experts = args.w->count;
  const std::int64_t k = args.ids.dim(1);
  const std::int64_t slots = args.ids.elements();
  const std::int32_t* ids = args.ids.i32();
  const auto is_real = [&](std::int64_t slot) { return args.batch.slots.i32()[slot / k] >= 0; };
  std::fill_n(expert_end_.begin(), experts, 0);
  for (std::int64_t s = 0; s < slots; ++s)
    if (is_real(s)) ++expert_end_[static_cast<std::size_t>(ids[s])];
  active_.clear();
  std::int32_t begin = 0;
  for (std::int64_t e = 0; e < experts; ++e) {
    const auto i = static_cast<std::size_t>(e);
    const std::int32_t count = expert_end_[i];
    if (count > 0) active_.push_back(static_cast<std::int32_t>(e));
    expert_begin_[i] = expert_end_[i] = begin;
    begin += count;
  }
  for (std::int64_t s = 0; s < slots; ++s)
    if (is_real(s)) {
      const std::int32_t at = expert_end_[static_cast<std::size_t>(ids[s])]++;
      sorted_slots_[static_cast<std::size_t>(at)] = static_cast<std::int32_t>(s);
    }
}

// Are the inputs of this weight the exact ones? Int8 is for weights of 4 bits.
bool CpuOps::exact_input(const op::Experts& args, const CpuWeight& w) const {
  if (args.activations == ExpertActivations::kInt8) return has_panels() || !is_4bit(w);
  return args.activations == ExpertActivations::kFull;
}

// Inputs as the mode says, for every slot or, as int8, for every token.
void CpuOps::round_expert_inputs(const op::Experts& args) {
  const auto& all = static_cast<const CpuExperts&>(*args.w);
  const std::int64_t k = args.ids.dim(1);
  const std::int64_t hidden = all.hidden;
  if (args.activations == ExpertActivations::kFull) return;
  if (args.activations == ExpertActivations::kInt8 && has_panels()) {
    if (hidden % kInt8Block != 0) return;  // then no weight has 4 bits
    const std::int64_t tokens = args.x.dim(0);
    parallel_for(tokens, 4, tokens * hidden, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t t = begin; t < end; ++t)
        if (args.batch.slots.i32()[t] >= 0)
          int8_inputs_.set(kernels_, t, args.x.f32() + t * hidden, hidden);
    });
    return;
  }
  pool_.parallel_for(args.ids.elements(), 4, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t s = begin; s < end; ++s) {
      if (args.batch.slots.i32()[s / k] < 0) continue;
      const auto& expert = all.experts[static_cast<std::size_t>(args.ids.i32()[s])];
      if (!exact_input(args, expert.w1) || !exact_input(args, expert.w3))
        round_input(args.x.f32() + s / k * hidden, hidden, args.activations, expert.input_scale,
                    expert_inputs_.get() + s * hidden);
    }
  });
}

void CpuOps::round_hidden(const op::Experts& args) {
  const auto& all = static_cast<const CpuExperts&>(*args.w);
  const std::int64_t k = args.ids.dim(1);
  const std::int64_t slots = args.ids.elements();
  const std::int64_t inner = all.intermediate;
  if (args.activations == ExpertActivations::kFull) return;
  const bool int8 = args.activations == ExpertActivations::kInt8 && has_panels();
  parallel_for(slots, 2, slots * inner, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t s = begin; s < end; ++s) {
      if (args.batch.slots.i32()[s / k] < 0) continue;
      float* h = expert_hidden_.get() + s * inner;
      const auto& expert = all.experts[static_cast<std::size_t>(args.ids.i32()[s])];
      if (!exact_input(args, expert.w2))
        round_input(h, inner, args.activations, expert.hidden_scale, h);
      else if (int8 && is_4bit(expert.w2))
        int8_hidden_.set(kernels_, s, h, inner);
    }
  });
}

// out(i)[n] = row 32 p + n of W, times the input of slots[i], for i < count. Inputs are
// x + slot / per_row * cols, or that row of `int8` where the weight takes int8.
template <class Out>
void CpuOps::multiply_expert(const CpuWeight& w, std::int64_t p, const Int8Rows* int8,
                             const float* x, std::int64_t x_per_row, std::int64_t int8_per_row,
                             std::span<const std::int32_t> slots, int thread, Out&& out) {
  const auto count = static_cast<std::int64_t>(slots.size());
  const auto slot = [&](std::int64_t i) { return slots[static_cast<std::size_t>(i)]; };
  if (!w.panels) {
    const QuantMatrix& m = w.stored;
    float* row = thread_row(thread);
    const std::int64_t first = p * kPanelRows;
    for (std::int64_t n = first; n < std::min(m.rows, first + kPanelRows); ++n) {
      decode_weight_row(m, n, row);
      for (std::int64_t i = 0; i < count; ++i)
        out(i)[n - first] = dot(x + slot(i) / x_per_row * m.cols, row, m.cols);
    }
    return;
  }
  const PanelRows rows = existing_rows(*w.panels, p);
  if (int8 != nullptr && w.panels->is_4bit())
    multiply_int8(
        kernels_, *w.panels, p, rows, count,
        [&](std::int64_t i) { return int8->row(slot(i) / int8_per_row); }, out);
  else
    multiply_floats(
        kernels_, *w.panels, p, rows, count,
        [&](std::int64_t i) { return x + slot(i) / x_per_row * w.panels->cols(); }, out);
}

// Does this expert have tokens enough for matrix tiles?
bool CpuOps::takes_tiles(std::int32_t e, const CpuWeight& w) const {
  const auto i = static_cast<std::size_t>(e);
  return w.panels && kernels_.int8_tiles[static_cast<int>(w.panels->format())] != nullptr &&
         expert_end_[i] - expert_begin_[i] >= kernels_.int8_tile_tokens;
}

// The rows of expert e, in the order of its sorted slots.
TileInputs CpuOps::expert_tiles(std::int32_t e) const {
  const auto i = static_cast<std::size_t>(e);
  const std::int64_t rows = expert_end_[i] - expert_begin_[i];
  return tile_memory_.blocks(tile_block_[i], (rows + TileInputs::kBlock - 1) / TileInputs::kBlock);
}

// The int8 inputs of the first or second projection as tiles take them.
void CpuOps::expand_expert_rows(const op::Experts& args, bool first) {
  if (args.activations != ExpertActivations::kInt8 || kernels_.int8_tile_tokens == 0) return;
  const auto& all = static_cast<const CpuExperts&>(*args.w);
  const std::int64_t k = args.ids.dim(1);
  const std::int64_t width = first ? all.hidden : all.intermediate;
  tile_memory_.set_width(width, 1);
  std::int32_t blocks = 0, rows = 0;
  for (const std::int32_t e : active_) {
    const auto i = static_cast<std::size_t>(e);
    tile_block_[i] = blocks;
    const std::int32_t count = expert_end_[i] - expert_begin_[i];
    rows += count;
    if (count >= kernels_.int8_tile_tokens)
      blocks += static_cast<std::int32_t>((count + TileInputs::kBlock - 1) / TileInputs::kBlock);
  }
  if (blocks == 0) return;
  parallel_for(rows, 4, rows * width, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int32_t s = sorted_slots_[static_cast<std::size_t>(i)];
      const std::int32_t e = args.ids.i32()[s];
      const auto& expert = all.experts[static_cast<std::size_t>(e)];
      const CpuWeight& w = first ? expert.w1 : expert.w2;
      if (takes_tiles(e, w))
        kernels_.expand_int8(
            w.panels->format(), first ? int8_inputs_.row(s / k) : int8_hidden_.row(s),
            tile_memory_.groups(), expert_tiles(e), i - expert_begin_[static_cast<std::size_t>(e)]);
    }
  });
}

// Panels of each active expert that one task takes: as many as matrix tiles like, where they are
// used and leave tasks enough for all threads.
std::int64_t CpuOps::panels_per_task(const op::Experts& args, std::int64_t panels,
                                     std::int64_t most) const {
  const auto& all = static_cast<const CpuExperts&>(*args.w);
  const bool tiles = args.activations == ExpertActivations::kInt8 &&
                     std::any_of(active_.begin(), active_.end(), [&](std::int32_t e) {
                       const auto& expert = all.experts[static_cast<std::size_t>(e)];
                       return takes_tiles(e, expert.w1) || takes_tiles(e, expert.w2);
                     });
  const auto active = static_cast<std::int64_t>(active_.size());
  const auto balanced = [&](std::int64_t together) {
    const std::int64_t tasks = active * ((panels + together - 1) / together);
    return tasks % pool_.threads() == 0 || tasks >= 4 * pool_.threads();
  };
  std::int64_t together = tiles ? most : 1;
  while (together > 1 && !balanced(together)) together /= 2;
  return together;
}

// The first projections: 32 values of gate and up make 32 hidden values.
void CpuOps::expert_hidden(const op::Experts& args) {
  const auto& all = static_cast<const CpuExperts&>(*args.w);
  const std::int64_t panels = panels_of(all.intermediate);
  const std::int64_t together = panels_per_task(args, panels, kTilePanels / 2);
  const bool int8 = args.activations == ExpertActivations::kInt8;
  for_each_panel(std::ssize(active_), (panels + together - 1) / together, 1, expert_work(args),
                 [&](std::int64_t i, std::int64_t part, int thread) {
                   const std::int32_t e = active_[static_cast<std::size_t>(i)];
                   const auto& expert = all.experts[static_cast<std::size_t>(e)];
                   const std::int64_t first = part * together;
                   const std::int64_t last = std::min(first + together, panels);
                   const auto exact = [&](std::int64_t p) {
                     return expert.w1.panels->has_exact_chunks(p) &&
                            expert.w3.panels->has_exact_chunks(p);
                   };
                   if (int8 && takes_tiles(e, expert.w1) && takes_tiles(e, expert.w3) &&
                       expert.w1.panels->format() == expert.w3.panels->format() &&
                       all_of_range(first, last, exact)) {
                     hidden_by_tiles(args, e, first, last, thread);
                     return;
                   }
                   for (std::int64_t p = first; p < last; ++p) hidden_by_panels(args, e, p, thread);
                 });
}

void CpuOps::hidden_by_panels(const op::Experts& args, std::int32_t e, std::int64_t p, int thread) {
  const auto& all = static_cast<const CpuExperts&>(*args.w);
  const auto& expert = all.experts[static_cast<std::size_t>(e)];
  const std::int64_t k = args.ids.dim(1);
  const std::int64_t inner = all.intermediate;
  const std::int64_t n = std::min(kPanelRows, inner - p * kPanelRows);
  const bool weight_first = args.activations == ExpertActivations::kStatic;
  const Int8Rows* int8 = args.activations == ExpertActivations::kInt8 ? &int8_inputs_ : nullptr;
  alignas(64) PassBuffer gate, up;
  const auto multiply = [&](const CpuWeight& w, std::span<const std::int32_t> slots,
                            PassBuffer& out) {
    const bool exact = exact_input(args, w);
    multiply_expert(w, p, int8, exact ? args.x.f32() : expert_inputs_.get(), exact ? k : 1, k,
                    slots, thread, [&](std::int64_t i) { return out[i]; });
  };
  for_each_pass(e, [&](std::span<const std::int32_t> slots) {
    multiply(expert.w1, slots, gate);
    multiply(expert.w3, slots, up);
    for (std::size_t i = 0; i < slots.size(); ++i) {
      float* h = expert_hidden_.get() + slots[i] * inner + p * kPanelRows;
      kernels_.swiglu(gate[i], up[i], n, args.limit, h);
      if (weight_first)
        for (std::int64_t j = 0; j < n; ++j) h[j] *= args.weights.f32()[slots[i]];
    }
  });
}

void CpuOps::hidden_by_tiles(const op::Experts& args, std::int32_t e, std::int64_t first,
                             std::int64_t last, int thread) {
  const auto& all = static_cast<const CpuExperts&>(*args.w);
  const auto& expert = all.experts[static_cast<std::size_t>(e)];
  const std::int64_t inner = all.intermediate;
  const std::int64_t n = std::min(last * kPanelRows, inner) - first * kPanelRows;
  const std::int64_t begin = expert_begin_[static_cast<std::size_t>(e)];
  const auto panels = static_cast<int>(last - first);
  TileTask task{
      .panels = {}, .panel_count = 2 * panels, .x = expert_tiles(e), .sums = thread_sums(thread)};
  for (int i = 0; i < panels; ++i) {
    task.panels[i] = expert.w1.panels->panel(first + i);
    task.panels[panels + i] = expert.w3.panels->panel(first + i);
  }
  alignas(64) float row[kTileRows];  // gate, up
  for_each_tile_pass(e, [&](std::int64_t first_row, std::int64_t tokens) {
    task.first_row = first_row;
    task.tokens = tokens;
    kernels_.int8_tiles[static_cast<int>(expert.w1.panels->format())](task);
    for (std::int64_t t = 0; t < tokens; ++t) {
      const std::int32_t slot = sorted_slots_[static_cast<std::size_t>(begin + first_row + t)];
      kernels_.int8_tile_row(task, t, row);
      kernels_.swiglu(row, row + panels * kPanelRows, n, args.limit,
                      expert_hidden_.get() + slot * inner + first * kPanelRows);
    }
  });
}

// The second projection of every slot.
void CpuOps::expert_outputs(const op::Experts& args) {
  const auto& all = static_cast<const CpuExperts&>(*args.w);
  const std::int64_t panels = panels_of(all.hidden);
  const std::int64_t together =
      std::max<std::int64_t>(2, panels_per_task(args, panels, kTilePanels));
  const bool int8 = args.activations == ExpertActivations::kInt8;
  for_each_panel(std::ssize(active_), (panels + together - 1) / together, 1, expert_work(args),
                 [&](std::int64_t i, std::int64_t part, int thread) {
                   const std::int32_t e = active_[static_cast<std::size_t>(i)];
                   const CpuWeight& w = all.experts[static_cast<std::size_t>(e)].w2;
                   const std::int64_t first = part * together;
                   const std::int64_t last = std::min(first + together, panels);
                   const auto exact = [&](std::int64_t p) { return w.panels->has_exact_chunks(p); };
                   if (int8 && takes_tiles(e, w) && all_of_range(first, last, exact)) {
                     outputs_by_tiles(args, e, first, last, thread);
                     return;
                   }
                   for (std::int64_t p = first; p < last; ++p) outputs_by_panel(args, e, p, thread);
                 });
}

void CpuOps::outputs_by_panel(const op::Experts& args, std::int32_t e, std::int64_t p, int thread) {
  const auto& all = static_cast<const CpuExperts&>(*args.w);
  const Int8Rows* int8 = args.activations == ExpertActivations::kInt8 ? &int8_hidden_ : nullptr;
  for_each_pass(e, [&](std::span<const std::int32_t> slots) {
    multiply_expert(all.experts[static_cast<std::size_t>(e)].w2, p, int8, expert_hidden_.get(), 1,
                    1, slots, thread, [&](std::int64_t i) {
                      return expert_outputs_.get() +
                             slots[static_cast<std::size_t>(i)] * all.hidden + p * kPanelRows;
                    });
  });
}

void CpuOps::outputs_by_tiles(const op::Experts& args, std::int32_t e, std::int64_t first,
                              std::int64_t last, int thread) {
  const auto& all = static_cast<const CpuExperts&>(*args.w);
  const PanelMatrix& w = *all.experts[static_cast<std::size_t>(e)].w2.panels;
  const std::int64_t begin = expert_begin_[static_cast<std::size_t>(e)];
  TileTask task{.panels = {},
                .panel_count = static_cast<int>(last - first),
                .x = expert_tiles(e),
                .sums = thread_sums(thread)};
  for (int i = 0; i < task.panel_count; ++i) task.panels[i] = w.panel(first + i);
  for_each_tile_pass(e, [&](std::int64_t first_row, std::int64_t tokens) {
    task.first_row = first_row;
    task.tokens = tokens;
    kernels_.int8_tiles[static_cast<int>(w.format())](task);
    for (std::int64_t t = 0; t < tokens; ++t) {
      const std::int32_t slot = sorted_slots_[static_cast<std::size_t>(begin + first_row + t)];
      store_tile_row(kernels_.int8_tile_row, task, t, w.rows() - first * kPanelRows,
                     expert_outputs_.get() + slot * all.hidden + first * kPanelRows);
    }
  });
}

// Combines in the order of the router's choice, which no neighbour can change.
void CpuOps::combine_outputs(const op::Experts& args) {
  const std::int64_t tokens = args.x.dim(0);
  const std::int64_t k = args.ids.dim(1);
  const std::int64_t hidden = args.w->hidden;
  const bool weighted = args.activations != ExpertActivations::kStatic;
  parallel_for(tokens, 4, tokens * k * hidden, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      if (args.batch.slots.i32()[t] < 0) continue;
      for (std::int64_t s = t * k; s < (t + 1) * k; ++s)
        kernels_.add_scaled(expert_outputs_.get() + s * hidden,
                            weighted ? args.weights.f32()[s] : 1.0f, hidden,
                            args.out.f32() + t * hidden);
    }
  });
}

void CpuOps::experts(const op::Experts& args) {
  if (args.activations == ExpertActivations::kFp8 && !args.w->fp8_inputs)
    fail("{}: FP8 inputs for experts that were packed for others", args.w->name);
  sort_slots_by_expert(args);
  round_expert_inputs(args);
  expand_expert_rows(args, true);
  expert_hidden(args);
  round_hidden(args);
  expand_expert_rows(args, false);
  expert_outputs(args);
  combine_outputs(args);
}

// body(slots) for the slots of expert e, kTokensPerPass at a time.
template <class Body>
void CpuOps::for_each_pass(std::int32_t e, Body&& body) const {
  const auto i = static_cast<std::size_t>(e);
  const std::span<const std::int32_t> slots(sorted_slots_.data() + expert_begin_[i],
                                            sorted_slots_.data() + expert_end_[i]);
  for (std::size_t begin = 0; begin < slots.size(); begin += kTokensPerPass)
    body(slots.subspan(begin, std::min<std::size_t>(kTokensPerPass, slots.size() - begin)));
}

// body(row, tokens) for the rows of expert e, kTileTokens at a time.
template <class Body>
void CpuOps::for_each_tile_pass(std::int32_t e, Body&& body) const {
  const auto i = static_cast<std::size_t>(e);
  const std::int64_t rows = expert_end_[i] - expert_begin_[i];
  for (std::int64_t row = 0; row < rows; row += kTileTokens)
    body(row, std::min(kTileTokens, rows - row));
}

// Bytes of weights that one projection of the active experts reads, roughly.
std::int64_t CpuOps::expert_work(const op::Experts& args) const {
  return args.w->bytes / args.w->count / 3 * static_cast<std::int64_t>(active_.size());
}

}  // namespace quatrain

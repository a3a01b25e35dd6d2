// SPDX-License-Identifier: Apache-2.0
// route, experts: mixture of experts with grouped rows, no token ever dropped.
#include <algorithm>
#include <cmath>

#include "backends/cpu/activation_quant.h"
#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/scalar.h"
#include "core/codec.h"

namespace quatrain {
namespace {

// Weight rows per task of an expert's two products.
constexpr std::int64_t kRowsPerTask = 16;

// ids = the k largest of choice[0, n), descending; the lowest id wins ties.
void top_k(const float* choice, std::int64_t n, std::int64_t k, std::int32_t* ids) {
  std::int64_t filled = 0;
  for (std::int64_t e = 0; e < n; ++e) {
    std::int64_t at = filled;
    while (at > 0 && choice[ids[at - 1]] < choice[e]) --at;
    if (at == k) continue;
    filled = std::min(k, filled + 1);
    std::copy_backward(ids + at, ids + filled - 1, ids + filled);
    ids[at] = static_cast<std::int32_t>(e);
  }
}

}  // namespace

void CpuOps::route(const op::Route& args) {
  const std::int64_t experts = args.logits.dim(1);
  const std::int64_t k = args.ids.dim(1);
  pool_.parallel_for(args.logits.dim(0), 8, [&](std::int64_t begin, std::int64_t end, int thread) {
    float* score = thread_scores(thread);
    float* choice = score + experts;
    for (std::int64_t t = begin; t < end; ++t) {
      const float* logits = args.logits.f32() + t * experts;
      std::int32_t* ids = args.ids.i32() + t * k;
      for (std::int64_t e = 0; e < experts; ++e) score[e] = sqrt_softplus(logits[e]);
      if (args.hash_table) {
        const std::int64_t token = args.token_ids.i32()[t];
        std::copy_n(args.hash_table.i32() + token * k, k, ids);
      } else {
        const float* bias = args.bias.f32();
        for (std::int64_t e = 0; e < experts; ++e) choice[e] = score[e] + bias[e];
        top_k(choice, experts, k, ids);
      }
      // The bias selects only: weights are of the unbiased scores.
      float total = 0;
      for (std::int64_t i = 0; i < k; ++i) total += score[ids[i]];
      for (std::int64_t i = 0; i < k; ++i)
        args.weights.f32()[t * k + i] = score[ids[i]] / total * args.scale;
    }
  });
}

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

namespace {

// out = x rounded as the mode says; out may be x.
void round_input(const float* x, std::int64_t n, ExpertActivations mode, float input_scale,
                 float* out) {
  if (mode == ExpertActivations::kBf16)
    std::transform(x, x + n, out, bf16_round);
  else
    nvfp4_round_row(x, n, mode == ExpertActivations::kStatic ? input_scale : nvfp4_row_scale(x, n),
                    out);
}

}  // namespace

// expert_inputs_[slot] = x[token of the slot], rounded as the mode says.
void CpuOps::round_expert_inputs(const op::Experts& args) {
  const auto& all = static_cast<const CpuExperts&>(*args.w);
  const std::int64_t k = args.ids.dim(1);
  const std::int64_t hidden = all.hidden;
  pool_.parallel_for(args.ids.elements(), 4, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t s = begin; s < end; ++s) {
      if (args.batch.slots.i32()[s / k] < 0) continue;
      const auto& expert = all.experts[static_cast<std::size_t>(args.ids.i32()[s])];
      round_input(args.x.f32() + s / k * hidden, hidden, args.activations,
                  expert.w1->matrix.input_scale, expert_inputs_.data() + s * hidden);
    }
  });
}

void CpuOps::experts(const op::Experts& args) {
  const auto& all = static_cast<const CpuExperts&>(*args.w);
  const std::int64_t k = args.ids.dim(1);
  const std::int64_t hidden = all.hidden;
  const std::int64_t inner = all.intermediate;
  const bool rounded = args.activations != ExpertActivations::kFull;
  const bool weight_first = args.activations == ExpertActivations::kStatic;
  sort_slots_by_expert(args);
  if (rounded) round_expert_inputs(args);
  const auto input = [&](std::int64_t slot) {
    return rounded ? expert_inputs_.data() + slot * hidden : args.x.f32() + slot / k * hidden;
  };
  const auto each_slot = [&](std::int32_t e, auto&& body) {
    for (std::int32_t i = expert_begin_[static_cast<std::size_t>(e)];
         i < expert_end_[static_cast<std::size_t>(e)]; ++i)
      body(sorted_slots_[static_cast<std::size_t>(i)]);
  };
  const auto active = static_cast<std::int64_t>(active_.size());

  // L1: one task is a few rows of w1 and w3 of one expert, for all of its tokens.
  const std::int64_t l1_tasks = (inner + kRowsPerTask - 1) / kRowsPerTask;
  pool_.parallel_for(active * l1_tasks, 1, [&](std::int64_t begin, std::int64_t end, int thread) {
    float* gate_row = thread_row(thread);
    float* up_row = gate_row + hidden;
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int32_t e = active_[static_cast<std::size_t>(task / l1_tasks)];
      const auto& expert = all.experts[static_cast<std::size_t>(e)];
      const std::int64_t first = task % l1_tasks * kRowsPerTask;
      for (std::int64_t n = first; n < std::min(inner, first + kRowsPerTask); ++n) {
        decode_weight_row(expert.w1->matrix, n, gate_row);
        decode_weight_row(expert.w3->matrix, n, up_row);
        each_slot(e, [&](std::int32_t slot) {
          const float h = swiglu_value(dot(input(slot), gate_row, hidden),
                                       dot(input(slot), up_row, hidden), args.limit);
          expert_hidden_[static_cast<std::size_t>(slot * inner + n)] =
              weight_first ? h * args.weights.f32()[slot] : h;
        });
      }
    }
  });

  if (rounded)
    pool_.parallel_for(args.ids.elements(), 4, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t s = begin; s < end; ++s) {
        if (args.batch.slots.i32()[s / k] < 0) continue;
        float* h = expert_hidden_.data() + s * inner;
        const auto& expert = all.experts[static_cast<std::size_t>(args.ids.i32()[s])];
        round_input(h, inner, args.activations, expert.w2->matrix.input_scale, h);
      }
    });

  // L2, likewise.
  const std::int64_t l2_tasks = (hidden + kRowsPerTask - 1) / kRowsPerTask;
  pool_.parallel_for(active * l2_tasks, 1, [&](std::int64_t begin, std::int64_t end, int thread) {
    float* row = thread_row(thread);
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int32_t e = active_[static_cast<std::size_t>(task / l2_tasks)];
      const QuantMatrix& w2 = all.experts[static_cast<std::size_t>(e)].w2->matrix;
      const std::int64_t first = task % l2_tasks * kRowsPerTask;
      for (std::int64_t n = first; n < std::min(hidden, first + kRowsPerTask); ++n) {
        decode_weight_row(w2, n, row);
        each_slot(e, [&](std::int32_t slot) {
          expert_outputs_[static_cast<std::size_t>(slot * hidden + n)] =
              dot(expert_hidden_.data() + slot * inner, row, inner);
        });
      }
    }
  });

  // Combine in the order of the router's choice, which no neighbour can change.
  pool_.parallel_for(args.x.dim(0), 4, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      if (args.batch.slots.i32()[t] < 0) continue;
      float* out = args.out.f32() + t * hidden;
      for (std::int64_t s = t * k; s < (t + 1) * k; ++s) {
        const float weight = weight_first ? 1.0f : args.weights.f32()[s];
        for (std::int64_t d = 0; d < hidden; ++d)
          out[d] += weight * expert_outputs_[static_cast<std::size_t>(s * hidden + d)];
      }
    }
  });
}

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
#include "ops/cost_ops.h"

#include <algorithm>
#include <cmath>

namespace quatrain {
namespace {

double bytes(std::initializer_list<Tensor> tensors) {
  double sum = 0;
  for (const Tensor& t : tensors)
    if (t) sum += static_cast<double>(t.bytes());
  return sum;
}

double elements(const Tensor& t) { return static_cast<double>(t.elements()); }

// Entries that a query at the end of the context sees.
double visible(const RowPool& pool, std::int64_t context) {
  return pool.rows ? static_cast<double>(context / pool.ratio) : 0.0;
}

// At most as many sequences as there are slots, and at least one row each.
double sequences(const Batch& batch) {
  return static_cast<double>(std::min(batch.rows(), batch.block_table.dim(0)));
}

double row_bytes(const Tensor& rows) {
  return static_cast<double>(rows.dim(rows.rank() - 1) * bytes_of(rows.dtype()));
}

// Those of `flops` that multiply FP8 by FP8.
double fp8_flops(const PackedLinear& w, LinearActivations activations, bool precise, double flops) {
  const bool is_fp8 =
      activations == LinearActivations::kFp8 && !precise && w.format == WeightFormat::kFp8Block;
  return is_fp8 ? flops : 0.0;
}

}  // namespace

OpCost cost_of(const op::Embed& a, std::int64_t) {
  return {.bytes = 2 * bytes({a.streams}), .flops = 0};
}

OpCost cost_of(const op::HcPre& a, std::int64_t) {
  return {.bytes = bytes({a.streams, a.weights.fn, a.out, a.post, a.comb}),
          .flops = 2 * elements(a.streams) * static_cast<double>(a.weights.fn.dim(0) + 2)};
}

OpCost cost_of(const op::HcPost& a, std::int64_t) {
  return {.bytes = bytes({a.f, a.streams, a.streams, a.post, a.comb}),
          .flops = 2 * elements(a.streams) * static_cast<double>(a.streams.dim(1) + 1)};
}

OpCost cost_of(const op::HcHead& a, std::int64_t) {
  return {.bytes = bytes({a.streams, a.weights.fn, a.out}),
          .flops = 2 * elements(a.streams) * static_cast<double>(a.weights.fn.dim(0) + 2)};
}

OpCost cost_of(const op::RmsNorm& a, std::int64_t) {
  return {.bytes = bytes({a.x, a.weight, a.out}), .flops = 4 * elements(a.x)};
}

OpCost cost_of(const op::Linear& a, std::int64_t) {
  const double flops = 2 * elements(a.x) * static_cast<double>(a.w->rows);
  return {.bytes = bytes({a.x, a.out}) + static_cast<double>(a.w->bytes),
          .flops = flops,
          .fp8_flops = fp8_flops(*a.w, a.activations, a.precise, flops)};
}

OpCost cost_of(const op::GroupedLinear& a, std::int64_t) {
  const double flops = 2 * elements(a.out) * static_cast<double>(a.w->cols);
  return {.bytes = bytes({a.x, a.out}) + static_cast<double>(a.w->bytes),
          .flops = flops,
          .fp8_flops = fp8_flops(*a.w, a.activations, false, flops)};
}

OpCost cost_of(const op::Rope& a, std::int64_t) {
  // The other columns stay as they are.
  const double rotated = elements(a.x) / static_cast<double>(a.x.dim(a.x.rank() - 1)) * 2 *
                         static_cast<double>(a.inv_freq.dim(0));
  return {.bytes = 2 * rotated * static_cast<double>(bytes_of(a.x.dtype())), .flops = 3 * rotated};
}

OpCost cost_of(const op::RoundToGrid& a, std::int64_t) {
  return {.bytes = 2 * bytes({a.x}), .flops = 4 * elements(a.x)};
}

OpCost cost_of(const op::Compress& a, std::int64_t) {
  // Every row is kept; one in `ratio` closes a window, which is read whole and makes an entry. A
  // CSA window spans two times `ratio` rows, of which half the channels count each.
  const auto ratio = static_cast<double>(a.entries.ratio);
  const double width = elements(a.norm_weight);
  const double closing = static_cast<double>(a.values.dim(0)) / ratio;
  const double window = (a.entries.ratio == 4 ? 2 * ratio : ratio) * width;
  return {.bytes = 2 * bytes({a.values, a.scores}) +
                   closing * (2 * 4 * window + row_bytes(a.entries.rows)),
          .flops = elements(a.values) + closing * 6 * window};
}

OpCost cost_of(const op::IndexSelect& a, std::int64_t context) {
  const double keys = visible(a.keys, context);
  const bool scored = keys > static_cast<double>(a.selected.dim(1));
  return {.bytes = bytes({a.q, a.weights, a.selected}) +
                   (scored ? sequences(a.batch) * keys * row_bytes(a.keys.rows) : 0.0),
          .flops = scored ? 2 * elements(a.q) * keys : 0.0};
}

OpCost cost_of(const op::Attend& a, std::int64_t context) {
  const double window = static_cast<double>(std::min(a.ring.dim(1), context));
  const double entries = visible(a.entries, context);
  const double attended =
      a.selected ? std::min(entries, static_cast<double>(a.selected.dim(1))) : entries;
  const double keys = attended + window;
  // Rows of one sequence share its window and most of its entries.
  const double read =
      std::min(static_cast<double>(a.q.dim(0)) * attended, sequences(a.batch) * entries) +
      sequences(a.batch) * window;
  return {.bytes = bytes({a.q, a.latents, a.out}) + read * row_bytes(a.ring),
          .flops = 4 * elements(a.q) * keys};
}

OpCost cost_of(const op::KvStore& a, std::int64_t) {
  return {.bytes = 2 * bytes({a.latents}), .flops = 0};
}

OpCost cost_of(const op::Route& a, std::int64_t) {
  return {.bytes = bytes({a.logits, a.ids, a.weights}), .flops = 8 * elements(a.logits)};
}

OpCost cost_of(const op::SwiGlu& a, std::int64_t) {
  return {.bytes = bytes({a.gate, a.up, a.out}), .flops = 6 * elements(a.out)};
}

OpCost cost_of(const op::Experts& a, std::int64_t) {
  // Distinct experts under uniform routing: E (1 − (1 − k/E)^T).
  const auto count = static_cast<double>(a.w->count);
  const double per_token = static_cast<double>(a.ids.dim(1));
  const double distinct =
      count * (1 - std::pow(1 - per_token / count, static_cast<double>(a.x.dim(0))));
  const double flops = 6 * elements(a.x) * per_token * static_cast<double>(a.w->intermediate);
  return {.bytes = bytes({a.x, a.out, a.out}) + static_cast<double>(a.w->bytes) * distinct / count,
          .flops = flops,
          .int8_flops = a.activations == ExpertActivations::kInt8 ? flops : 0.0,
          .fp8_flops = a.activations == ExpertActivations::kFp8 ? flops : 0.0};
}

OpCost cost_of(const op::GatherRows& a, std::int64_t) {
  return {.bytes = 2 * bytes({a.out}), .flops = 0};
}

OpCost cost_of(const op::Linears& a, std::int64_t) {
  OpCost cost{.bytes = bytes({a.x})};
  for (int i = 0; i < a.count; ++i) {
    const auto& product = a.products[static_cast<std::size_t>(i)];
    cost.bytes += bytes({product.out}) + static_cast<double>(product.w->bytes);
    const double flops = 2 * elements(a.x) * static_cast<double>(product.w->rows);
    cost.flops += flops;
    cost.fp8_flops += fp8_flops(*product.w, a.activations, product.precise, flops);
  }
  return cost;
}

OpCost cost_of(const op::SwiGluLinear& a, std::int64_t) {
  const double flops = 2 * elements(a.gate) * static_cast<double>(a.w->rows);
  return {.bytes = bytes({a.gate, a.up, a.out}) + static_cast<double>(a.w->bytes),
          .flops = 6 * elements(a.gate) + flops,
          .fp8_flops = fp8_flops(*a.w, a.activations, false, flops)};
}

OpCost cost_of(const op::HcPreNorm& a, std::int64_t context) {
  const OpCost pre = cost_of(a.pre, context);
  return {.bytes = pre.bytes + bytes({a.norm_weight}),
          .flops = pre.flops + 4 * elements(a.pre.out)};
}

OpCost cost_of(const op::HcPostPreNorm& a, std::int64_t context) {
  const OpCost post = cost_of(a.post, context), next = cost_of(a.next, context);
  return {.bytes = post.bytes + next.bytes - bytes({a.post.streams}),  // read once for both
          .flops = post.flops + next.flops};
}

OpCost cost_of(const op::NormRope& a, std::int64_t) {
  OpCost cost;
  for (int i = 0; i < a.count; ++i) {
    const auto& r = a.rows[static_cast<std::size_t>(i)];
    cost.bytes += 2 * bytes({r.x}) + bytes({r.weight});
    cost.flops += 7 * elements(r.x);
  }
  return cost;
}

OpCost cost_of(const op::AttentionInputs& a, std::int64_t context) {
  OpCost cost = cost_of(a.rows, context);
  for (int i = 0; i < a.count; ++i) {
    const OpCost more = cost_of(a.compressors[static_cast<std::size_t>(i)], context);
    cost.bytes += more.bytes;
    cost.flops += more.flops;
  }
  return cost;
}

OpCost cost_of(const op::AttendStore& a, std::int64_t context) {
  const OpCost attend = cost_of(a.attend, context), store = cost_of(a.store(), context);
  const OpCost queries = cost_of(a.queries, context);  // which have to be read once
  return {.bytes = attend.bytes + store.bytes, .flops = attend.flops + queries.flops};
}

OpCost cost_of(const op::AddToStreams& a, std::int64_t) {
  return {.bytes = bytes({a.e, a.streams, a.streams}), .flops = elements(a.streams)};
}

OpCost cost_of(const op::Sample& a, std::int64_t) {
  // A weight is a polynomial of degree 12.
  return {.bytes = bytes({a.logits, a.results}), .flops = 30 * elements(a.logits)};
}

}  // namespace quatrain

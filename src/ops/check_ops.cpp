// SPDX-License-Identifier: Apache-2.0
#include "ops/check_ops.h"

#include <cmath>
#include <vector>

#include "core/packed_row.h"
#include "core/step_guard.h"
#include "ops/slot_sampling.h"

namespace quatrain {
namespace {

// Throws unless `t` has exactly this shape.
void expect(const char* op, const char* field, const Tensor& t,
            std::initializer_list<std::int64_t> shape) {
  bool same = t.rank() == static_cast<int>(shape.size());
  int d = 0;
  for (const std::int64_t extent : shape) same = same && t.dim(d++) == extent;
  if (same) return;
  std::string wanted;
  for (const std::int64_t extent : shape) wanted += fmt::format(" {}", extent);
  fail("{}: {} should have shape [{} ], found {}", op, field, wanted, t ? t.describe() : "nothing");
}

void expect_batch(const char* op, const Batch& batch, std::int64_t rows) {
  expect(op, "token_ids", batch.token_ids, {rows});
  expect(op, "positions", batch.positions, {rows});
  expect(op, "slots", batch.slots, {rows});
  expect(op, "first_rows", batch.first_rows, {rows});
}

void expect_pool(const char* op, const RowPool& pool, std::int64_t width) {
  if (pool.ratio != 4 && pool.ratio != 128) fail("{}: compress ratio {}", op, pool.ratio);
  if (pool.rows.rank() != 2 || pool.rows.dim(1) != width)
    fail("{}: pool rows should be {} wide, found {}", op, width, pool.rows.describe());
}

std::int64_t last(const Tensor& t) { return t.dim(t.rank() - 1); }

// How wide the rows of a cache of latents or index keys are; packed ones count bytes.
std::int64_t latent_row(const Tensor& cache, std::int64_t width) {
  return cache.dtype() == DType::kU8 ? PackedLatent(static_cast<int>(width)).bytes : width;
}
std::int64_t index_row(const Tensor& cache, std::int64_t width) {
  return cache.dtype() == DType::kU8 ? PackedIndexKey(static_cast<int>(width)).bytes : width;
}

}  // namespace

void check_shapes(const op::Embed& a) {
  expect(a.kName, "streams", a.streams, {a.ids.dim(0), a.streams.dim(1), a.table.dim(1)});
}

void check_shapes(const op::HcPre& a) {
  const std::int64_t tokens = a.streams.dim(0), hc = a.streams.dim(1), width = a.streams.dim(2);
  expect(a.kName, "fn", a.weights.fn, {(2 + hc) * hc, hc * width});
  expect(a.kName, "base", a.weights.base, {(2 + hc) * hc});
  expect(a.kName, "scale", a.weights.scale, {3});
  expect(a.kName, "out", a.out, {tokens, width});
  expect(a.kName, "post", a.post, {tokens, hc});
  expect(a.kName, "comb", a.comb, {tokens, hc, hc});
}

void check_shapes(const op::HcPost& a) {
  const std::int64_t tokens = a.streams.dim(0), hc = a.streams.dim(1), width = a.streams.dim(2);
  expect(a.kName, "f", a.f, {tokens, width});
  expect(a.kName, "post", a.post, {tokens, hc});
  expect(a.kName, "comb", a.comb, {tokens, hc, hc});
}

void check_shapes(const op::HcHead& a) {
  const std::int64_t tokens = a.streams.dim(0), hc = a.streams.dim(1), width = a.streams.dim(2);
  expect(a.kName, "fn", a.weights.fn, {hc, hc * width});
  expect(a.kName, "base", a.weights.base, {hc});
  expect(a.kName, "scale", a.weights.scale, {1});
  expect(a.kName, "out", a.out, {tokens, width});
}

void check_shapes(const op::RmsNorm& a) {
  if (a.weight) expect(a.kName, "weight", a.weight, {last(a.x)});
  QT_CHECK(a.out.elements() == a.x.elements(), "rms_norm: out is {}, x is {}", a.out.describe(),
           a.x.describe());
}

void check_shapes(const op::Linear& a) {
  expect(a.kName, "x", a.x, {a.x.dim(0), a.w->cols});
  expect(a.kName, "out", a.out, {a.x.dim(0), a.w->rows});
}

void check_shapes(const op::GroupedLinear& a) {
  const std::int64_t tokens = a.x.dim(0), groups = a.x.dim(1);
  QT_CHECK(a.w->rows % groups == 0, "grouped_linear: {} rows in {} groups", a.w->rows, groups);
  expect(a.kName, "x", a.x, {tokens, groups, a.w->cols});
  expect(a.kName, "out", a.out, {tokens, groups, a.w->rows / groups});
}

void check_shapes(const op::Rope& a) {
  expect(a.kName, "positions", a.positions, {a.x.dim(0)});
  QT_CHECK(2 * a.inv_freq.dim(0) <= last(a.x), "rope: {} pairs in rows of {}", a.inv_freq.dim(0),
           last(a.x));
}

void check_shapes(const op::RoundToGrid& a) {
  QT_CHECK(a.grid != CacheGrid::kLatent || a.rope_dim < last(a.x),
           "round_to_grid: {} rotary dims of {}", a.rope_dim, last(a.x));
  QT_CHECK(a.grid != CacheGrid::kIndex || (last(a.x) & (last(a.x) - 1)) == 0,
           "round_to_grid: the Hadamard transform needs a power of two, found {}", last(a.x));
}

void check_shapes(const op::Compress& a) {
  const std::int64_t width = a.norm_weight.dim(0), ratio = a.entries.ratio;
  const std::int64_t row = ratio == 4 ? 2 * width : width;
  const std::int64_t tokens = a.values.dim(0);
  expect_batch(a.kName, a.batch, tokens);
  const Tensor& rows = a.entries.rows;
  expect_pool(a.kName, a.entries,
              a.grid == CacheGrid::kIndex ? index_row(rows, width) : latent_row(rows, width));
  expect(a.kName, "values", a.values, {tokens, row});
  expect(a.kName, "scores", a.scores, {tokens, row});
  expect(a.kName, "bias", a.bias, {ratio, row});
  const std::int64_t slots = a.state.values.dim(0), capacity = ratio == 4 ? 8 : ratio;
  expect(a.kName, "state.values", a.state.values, {slots, capacity, row});
  expect(a.kName, "state.scores", a.state.scores, {slots, capacity, row});
}

void check_shapes(const op::IndexSelect& a) {
  expect_batch(a.kName, a.batch, a.q.dim(0));
  expect_pool(a.kName, a.keys, index_row(a.keys.rows, a.q.dim(2)));
  expect(a.kName, "weights", a.weights, {a.q.dim(0), a.q.dim(1)});
  expect(a.kName, "selected", a.selected, {a.q.dim(0), a.selected.dim(1)});
  QT_CHECK(!a.inv_freq || 2 * a.inv_freq.dim(0) <= a.q.dim(2),
           "index_select: {} pairs in rows of {}", a.inv_freq.dim(0), a.q.dim(2));
}

void check_shapes(const op::Attend& a) {
  const std::int64_t tokens = a.q.dim(0), heads = a.q.dim(1), width = a.q.dim(2);
  expect_batch(a.kName, a.batch, tokens);
  expect(a.kName, "latents", a.latents, {tokens, width});
  expect(a.kName, "ring", a.ring, {a.ring.dim(0), a.ring.dim(1), latent_row(a.ring, width)});
  expect(a.kName, "sinks", a.sinks, {heads});
  expect(a.kName, "out", a.out, {tokens, heads, width});
  if (a.entries.rows) expect_pool(a.kName, a.entries, latent_row(a.entries.rows, width));
  QT_CHECK(!a.inv_freq || 2 * a.inv_freq.dim(0) <= width, "attend: {} pairs in rows of {}",
           a.inv_freq.dim(0), width);
  if (a.selected) expect(a.kName, "selected", a.selected, {tokens, a.selected.dim(1)});
}

void check_shapes(const op::KvStore& a) {
  expect_batch(a.kName, a.batch, a.latents.dim(0));
  expect(a.kName, "ring", a.ring,
         {a.ring.dim(0), a.ring.dim(1), latent_row(a.ring, a.latents.dim(1))});
}

void check_shapes(const op::Route& a) {
  const std::int64_t tokens = a.logits.dim(0), experts = a.logits.dim(1), k = a.ids.dim(1);
  QT_CHECK(static_cast<bool>(a.bias) != static_cast<bool>(a.hash_table),
           "route: exactly one of bias and hash_table");
  if (a.bias) expect(a.kName, "bias", a.bias, {experts});
  if (a.hash_table) expect(a.kName, "hash_table", a.hash_table, {a.hash_table.dim(0), k});
  expect(a.kName, "token_ids", a.token_ids, {tokens});
  expect(a.kName, "ids", a.ids, {tokens, k});
  expect(a.kName, "weights", a.weights, {tokens, k});
}

void check_shapes(const op::SwiGlu& a) {
  expect(a.kName, "up", a.up, {a.gate.dim(0), a.gate.dim(1)});
  expect(a.kName, "out", a.out, {a.gate.dim(0), a.gate.dim(1)});
}

void check_shapes(const op::Experts& a) {
  const std::int64_t tokens = a.x.dim(0);
  expect_batch(a.kName, a.batch, tokens);
  expect(a.kName, "x", a.x, {tokens, a.w->hidden});
  expect(a.kName, "weights", a.weights, {tokens, a.ids.dim(1)});
  expect(a.kName, "out", a.out, {tokens, a.w->hidden});
}

void check_shapes(const op::GatherRows& a) {
  QT_CHECK(
      a.x.dim(0) > 0 && a.out.dim(0) == a.rows.dim(0) &&
          a.out.elements() / std::max<std::int64_t>(1, a.out.dim(0)) == a.x.elements() / a.x.dim(0),
      "gather_rows: {} rows of {} into {}", a.rows.dim(0), a.x.describe(), a.out.describe());
}

void check_shapes(const op::AddToStreams& a) {
  expect(a.kName, "e", a.e, {a.streams.dim(0), a.streams.dim(2)});
}

void check_shapes(const op::Sample& a) {
  const std::int64_t rows = a.logits.dim(0), slots = a.params.dim(0);
  expect(a.kName, "slots", a.slots, {rows});
  expect(a.kName, "positions", a.positions, {rows});
  expect(a.kName, "params", a.params, {slots, sizeof(SlotSampling)});
  expect(a.kName, "counts", a.counts, {slots, a.logits.dim(1)});
  expect(a.kName, "results", a.results, {rows, sizeof(SampledRow)});
}

void check_shapes(const op::Linears& a) {
  QT_CHECK(a.count > 0, "linears: of no weight at all");
  for (int i = 0; i < a.count; ++i) {
    const auto& product = a.products[static_cast<std::size_t>(i)];
    check_shapes(op::Linear{.x = a.x, .w = product.w, .out = product.out});
  }
}

void check_shapes(const op::SwiGluLinear& a) {
  check_shapes(op::SwiGlu{.gate = a.gate, .up = a.up, .out = a.gate});
  check_shapes(op::Linear{.x = a.gate, .w = a.w, .out = a.out});
}

void check_shapes(const op::HcPreNorm& a) {
  check_shapes(a.pre);
  check_shapes(op::RmsNorm{.x = a.pre.out, .weight = a.norm_weight, .out = a.pre.out});
}

void check_shapes(const op::NormRope& a) {
  QT_CHECK(a.count >= 1 && a.count <= a.kMost, "norm_rope: of {} arrays", a.count);
  for (int i = 0; i < a.count; ++i) {
    const auto& r = a.rows[static_cast<std::size_t>(i)];
    check_shapes(op::RmsNorm{.x = r.x, .weight = r.weight, .out = r.x});
    if (r.inv_freq)
      check_shapes(op::Rope{.x = r.x, .positions = a.positions, .inv_freq = r.inv_freq});
    check_shapes(op::RoundToGrid{.x = r.x, .grid = r.grid, .rope_dim = r.rope_dim});
  }
}

void check_shapes(const op::HcPostPreNorm& a) {
  check_shapes(a.post);
  check_shapes(a.next);
  QT_CHECK(a.post.streams.data() == a.next.pre.streams.data(),
           "hc_post_pre_norm: of different streams");
}

void check_shapes(const op::AttentionInputs& a) {
  check_shapes(a.rows);
  QT_CHECK(a.count >= 0 && a.count <= a.kMost, "attention_inputs: of {} compressors", a.count);
  for (int i = 0; i < a.count; ++i) check_shapes(a.compressors[static_cast<std::size_t>(i)]);
}

void check_shapes(const op::AttendStore& a) {
  check_shapes(a.attend);
  check_shapes(a.store());
  if (a.queries.count == 0) return;
  check_shapes(a.queries);
  QT_CHECK(a.queries.count == 1 && a.queries.rows[0].x.data() == a.attend.q.data(),
           "attend_store: norm_rope of other rows than the queries");
}

void CheckOps::after(const OpCall& call) {
  if (!finite_) return;
  const StepGuardPause pause(nullptr);
  for (int i = 0; i < call.count; ++i) {
    const auto& field = call.fields[static_cast<std::size_t>(i)];
    if (!field.is_output || field.tensor.dtype() != DType::kF32) continue;
    std::vector<float> values(static_cast<std::size_t>(field.tensor.elements()));
    inner().download(values.data(), field.tensor);
    for (std::size_t v = 0; v < values.size(); ++v)
      if (!std::isfinite(values[v]))
        fail("layer {} {}: {} produced {} at element {} of {} {}", layer(), part(), call.name,
             values[v], v, field.name, field.tensor.describe());
  }
}

}  // namespace quatrain

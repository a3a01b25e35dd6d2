// SPDX-License-Identifier: Apache-2.0
// index_select, attend: which compressed entries a query sees, and the attention over them.
#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <numeric>

#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/row_math.h"
#include "backends/cpu/sequence_view.h"

namespace quatrain {
namespace {

// Bits in the order of the floats, −0 as 0, and the order of NaN is total, too.
std::int32_t ordered_bits(float x) {
  const auto bits = std::bit_cast<std::int32_t>(x + 0.0f);
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

// ids = the k best of scores[0, n), k < n, ascending by index. Among equal scores the lowest index
// wins. `keys` is scratch of n entries.
void top_k_ascending(const float* scores, std::int64_t n, std::int64_t k, std::int32_t* keys,
                     std::int32_t* ids) {
  for (std::int64_t i = 0; i < n; ++i) keys[i] = ordered_bits(scores[i]);
  std::nth_element(keys, keys + k - 1, keys + n, std::greater<>());
  const std::int32_t least = keys[k - 1];
  std::int64_t equals = k - std::count_if(keys, keys + k, [&](auto key) { return key > least; });
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int32_t key = ordered_bits(scores[i]);
    if (key < least || (key == least && equals-- <= 0)) continue;
    *ids++ = static_cast<std::int32_t>(i);
  }
}

}  // namespace

// scores[w] of row r for keys w in [begin, end).
void CpuOps::score_keys(const op::IndexSelect& args, std::int64_t r, std::int64_t begin,
                        std::int64_t end, int thread, float* scores) {
  const std::int64_t heads = args.q.dim(1);
  const std::int64_t width = args.q.dim(2);
  const PagedRows rows(args.keys, args.batch.block_table, args.batch.slots.i32()[r]);
  const float** keys = thread_keys(thread);
  for (std::int64_t w = begin; w < end; ++w) keys[w - begin] = rows.row(w);
  kernels_.index_scores(args.q.f32() + r * heads * width, args.weights.f32() + r * heads, keys,
                        heads, width, end - begin, scores + begin);
  const float scale = 1.0f / std::sqrt(static_cast<float>(width) * static_cast<float>(heads));
  for (std::int64_t w = begin; w < end; ++w) scores[w] *= scale;
}

void CpuOps::index_select(const op::IndexSelect& args) {
  if (args.inv_freq)
    rope({.x = args.q, .positions = args.batch.positions, .inv_freq = args.inv_freq});
  const Batch& batch = args.batch;
  const std::int64_t topk = args.selected.dim(1);
  // Entries that row r chooses among; its ids when there is nothing to choose.
  const auto candidates = [&](std::int64_t r) -> std::int64_t {
    std::int32_t* selected = args.selected.i32() + r * topk;
    std::fill_n(selected, topk, -1);
    if (batch.slots.i32()[r] < 0) return 0;
    const std::int64_t visible = (batch.positions.i32()[r] + 1) / args.keys.ratio;
    if (visible > topk) return visible;
    std::iota(selected, selected + visible, 0);
    return 0;
  };
  const auto choose = [&](std::int64_t r, const float* scores, std::int64_t n, int thread) {
    top_k_ascending(scores, n, topk, thread_order(thread), args.selected.i32() + r * topk);
  };
  if (batch.rows() >= 4 * pool_.threads()) {
    pool_.parallel_for(batch.rows(), 1, [&](std::int64_t begin, std::int64_t end, int thread) {
      for (std::int64_t r = begin; r < end; ++r)
        if (const std::int64_t n = candidates(r); n > 0) {
          score_keys(args, r, 0, n, thread, thread_scores(thread));
          choose(r, thread_scores(thread), n, thread);
        }
    });
    return;
  }
  // Few rows, perhaps of a long context: threads share the keys of one.
  for (std::int64_t r = 0; r < batch.rows(); ++r) {
    const std::int64_t n = candidates(r);
    if (n == 0) continue;
    const std::int64_t share = n / (4 * pool_.threads()) / 16 * 16;
    parallel_for(n, std::clamp<std::int64_t>(share, 16, 256), n * args.q.dim(1) * args.q.dim(2),
                 [&](std::int64_t begin, std::int64_t end, int thread) {
                   score_keys(args, r, begin, end, thread, index_scores_.get());
                 });
    choose(r, index_scores_.get(), n, 0);
  }
}

namespace {

// The keys of row r: the last `window` positions, then the entries. Overlap is not removed.
std::int64_t gather_keys(const op::Attend& args, std::int64_t r, const float** keys) {
  const Batch& batch = args.batch;
  const std::int64_t position = batch.positions.i32()[r];
  const std::int64_t window = args.ring.dim(1);
  std::int64_t count = 0;
  const RecentRows recent(batch, r, args.latents, args.ring);
  for (std::int64_t p = std::max<std::int64_t>(0, position + 1 - window); p <= position; ++p)
    keys[count++] = recent.row(p);
  if (!args.entries.rows) return count;
  const PagedRows entries(args.entries, batch.block_table, batch.slots.i32()[r]);
  if (args.selected) {
    const std::int64_t topk = args.selected.dim(1);
    const std::int32_t* selected = args.selected.i32() + r * topk;
    for (std::int64_t s = 0; s < topk && selected[s] >= 0; ++s)
      keys[count++] = entries.row(selected[s]);
  } else {
    const std::int64_t complete = (position + 1) / args.entries.ratio;
    for (std::int64_t w = 0; w < complete; ++w) keys[count++] = entries.row(w);
  }
  return count;
}

}  // namespace

void CpuOps::attend(const op::Attend& args) {
  const Batch& batch = args.batch;
  const std::int64_t rows = batch.rows();
  const std::int64_t heads = args.q.dim(1);
  const std::int64_t width = args.q.dim(2);
  const std::int64_t groups = (heads + kHeadsPerTask - 1) / kHeadsPerTask;
  // With rows enough for all threads, one has all heads of a row, whose keys stay in its cache.
  const std::int64_t grain = rows >= 2 * pool_.threads() ? groups : 1;
  parallel_for(rows * groups, grain, rows * heads * width * args.ring.dim(1),
               [&](std::int64_t begin, std::int64_t end, int thread) {
                 const float** keys = thread_keys(thread);
                 std::int64_t gathered = -1;
                 std::int64_t count = 0;
                 for (std::int64_t i = begin; i < end; ++i) {
                   const std::int64_t r = i / groups;
                   const std::int64_t first = i % groups * kHeadsPerTask;
                   const std::int64_t share = std::min(kHeadsPerTask, heads - first);
                   float* out = args.out.f32() + (r * heads + first) * width;
                   if (batch.slots.i32()[r] < 0) {
                     std::fill_n(out, share * width, 0.0f);
                     continue;
                   }
                   if (r != gathered) count = gather_keys(args, r, keys);
                   gathered = r;
                   kernels_.attend({.q = args.q.f32() + (r * heads + first) * width,
                                    .keys = keys,
                                    .sinks = args.sinks.f32() + first,
                                    .heads = share,
                                    .width = width,
                                    .count = count,
                                    .scale = 1.0f / std::sqrt(static_cast<float>(width)),
                                    .scores = thread_scores(thread),
                                    .out = out});
                   if (!args.inv_freq) continue;
                   const std::int64_t pairs = args.inv_freq.dim(0);
                   RopeAngles& angles = thread_angles_[static_cast<std::size_t>(thread)];
                   angles.set(args.inv_freq.f32(), pairs,
                              static_cast<float>(batch.positions.i32()[r]));
                   for (std::int64_t h = 1; h <= share; ++h)
                     angles.rotate(out + h * width - 2 * pairs, true);
                 }
               });
}

}  // namespace quatrain

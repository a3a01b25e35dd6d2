// SPDX-License-Identifier: Apache-2.0
// index_select, attend: which compressed entries a query sees, and the attention over them.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/sequence_view.h"

namespace quatrain {
namespace {

// Moves the `k` best of scores[0, n) into ids, ascending by index. Among equal scores the lowest
// index wins. `ids` has room for n entries.
void top_k_ascending(const float* scores, std::int64_t n, std::int64_t k, std::int32_t* ids) {
  std::iota(ids, ids + n, 0);
  if (k < n)
    std::nth_element(ids, ids + k, ids + n, [scores](std::int32_t a, std::int32_t b) {
      return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
    });
  std::sort(ids, ids + std::min(k, n));
}

}  // namespace

void CpuOps::index_select(const op::IndexSelect& args) {
  const Batch& batch = args.batch;
  const std::int64_t heads = args.q.dim(1);
  const std::int64_t width = args.q.dim(2);
  const std::int64_t topk = args.selected.dim(1);
  const float scale = 1.0f / std::sqrt(static_cast<float>(width) * static_cast<float>(heads));
  pool_.parallel_for(batch.rows(), 1, [&](std::int64_t begin, std::int64_t end, int thread) {
    for (std::int64_t r = begin; r < end; ++r) {
      std::int32_t* selected = args.selected.i32() + r * topk;
      std::fill_n(selected, topk, -1);
      const std::int64_t slot = batch.slots.i32()[r];
      if (slot < 0) continue;
      const std::int64_t visible = (batch.positions.i32()[r] + 1) / args.keys.ratio;
      if (visible <= topk) {
        std::iota(selected, selected + visible, 0);
        continue;
      }
      const PagedRows keys(args.keys, batch.block_table, slot);
      float* scores = thread_scores(thread);
      for (std::int64_t w = 0; w < visible; ++w) {
        const float* key = keys.row(w);
        float sum = 0;
        for (std::int64_t h = 0; h < heads; ++h) {
          const float product = dot(args.q.f32() + (r * heads + h) * width, key, width);
          sum += args.weights.f32()[r * heads + h] * scale * std::max(product, 0.0f);
        }
        scores[w] = sum;
      }
      std::int32_t* order = thread_order(thread);
      top_k_ascending(scores, visible, topk, order);
      std::copy_n(order, topk, selected);
    }
  });
}

void CpuOps::attend(const op::Attend& args) {
  const Batch& batch = args.batch;
  const std::int64_t heads = args.q.dim(1);
  const std::int64_t width = args.q.dim(2);
  const std::int64_t window = args.ring.dim(1);
  const float scale = 1.0f / std::sqrt(static_cast<float>(width));
  const bool has_entries = static_cast<bool>(args.entries.rows);
  const std::int64_t topk = args.selected ? args.selected.dim(1) : 0;
  pool_.parallel_for(
      batch.rows() * heads, 1, [&](std::int64_t begin, std::int64_t end, int thread) {
        float* scores = thread_scores(thread);
        const float** keys = thread_keys(thread);
        for (std::int64_t i = begin; i < end; ++i) {
          const std::int64_t r = i / heads;
          const std::int64_t slot = batch.slots.i32()[r];
          float* out = args.out.f32() + i * width;
          std::fill_n(out, width, 0.0f);
          if (slot < 0) continue;

          // The keys: the last `window` positions, then the entries. Overlap is not removed.
          const std::int64_t position = batch.positions.i32()[r];
          std::int64_t count = 0;
          const RecentRows recent(batch, r, args.latents, args.ring);
          for (std::int64_t p = std::max<std::int64_t>(0, position + 1 - window); p <= position;
               ++p)
            keys[count++] = recent.row(p);
          if (has_entries) {
            const PagedRows entries(args.entries, batch.block_table, slot);
            if (topk > 0) {
              const std::int32_t* selected = args.selected.i32() + r * topk;
              for (std::int64_t s = 0; s < topk && selected[s] >= 0; ++s)
                keys[count++] = entries.row(selected[s]);
            } else {
              const std::int64_t complete = (position + 1) / args.entries.ratio;
              for (std::int64_t w = 0; w < complete; ++w) keys[count++] = entries.row(w);
            }
          }

          const float* q = args.q.f32() + i * width;
          const float sink = args.sinks.f32()[i % heads];
          float largest = sink;
          for (std::int64_t k = 0; k < count; ++k) {
            scores[k] = dot(q, keys[k], width) * scale;
            largest = std::max(largest, scores[k]);
          }
          float total = std::exp(sink - largest);  // the sink has a weight but no value
          for (std::int64_t k = 0; k < count; ++k) {
            const float weight = std::exp(scores[k] - largest);
            total += weight;
            for (std::int64_t d = 0; d < width; ++d) out[d] += weight * keys[k][d];
          }
          for (std::int64_t d = 0; d < width; ++d) out[d] /= total;
        }
      });
}

}  // namespace quatrain

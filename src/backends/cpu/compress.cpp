// SPDX-License-Identifier: Apache-2.0
// compress, kv_store: the compressed entries and the rings that outlive a step.
#include <algorithm>
#include <cmath>
#include <limits>

#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/row_math.h"
#include "backends/cpu/sequence_view.h"

namespace quatrain {
namespace {

// One pooled channel: softmax over the window's scores, applied to its values (2.6).
struct Pool {
  float largest = -std::numeric_limits<float>::infinity();
  float total = 0;
  float sum = 0;

  void add(float score, float value) {
    if (score > largest) {
      const float rescale = std::exp(largest - score);
      total *= rescale;
      sum *= rescale;
      largest = score;
    }
    const float weight = std::exp(score - largest);
    total += weight;
    sum += weight * value;
  }
};

// Is batch row r among the last `capacity` rows of its sequence in this step?
bool is_recent(const Batch& batch, std::int64_t r, std::int64_t capacity) {
  const std::int64_t after = r + capacity;
  return after >= batch.rows() || batch.first_rows.i32()[after] != batch.first_rows.i32()[r] ||
         batch.slots.i32()[after] != batch.slots.i32()[r];
}

}  // namespace

void store_recent(const Batch& batch, std::int64_t r, const Tensor& step, const Tensor& ring) {
  const std::int64_t width = step.dim(1);
  const std::int64_t capacity = ring.dim(1);
  if (!is_recent(batch, r, capacity)) return;
  const std::int64_t slot = batch.slots.i32()[r];
  const std::int64_t position = batch.positions.i32()[r];
  std::copy_n(step.f32() + r * width, width,
              ring.f32() + (slot * capacity + position % capacity) * width);
}

void CpuOps::kv_store(const op::KvStore& args) {
  pool_.parallel_for(args.batch.rows(), 16, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t r = begin; r < end; ++r)
      if (args.batch.slots.i32()[r] >= 0) store_recent(args.batch, r, args.latents, args.ring);
  });
}

void CpuOps::compress(const op::Compress& args) {
  const Batch& batch = args.batch;
  const std::int64_t ratio = args.entries.ratio;
  const std::int64_t width = args.norm_weight.dim(0);
  const std::int64_t row_width = args.values.dim(1);
  const bool overlaps = row_width == 2 * width;
  float* scores = args.scores.f32();

  // The position bias depends on the absolute position alone, never on the chunk.
  pool_.parallel_for(batch.rows(), 16, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t r = begin; r < end; ++r) {
      if (batch.slots.i32()[r] < 0) continue;
      const float* bias = args.bias.f32() + batch.positions.i32()[r] % ratio * row_width;
      for (std::int64_t c = 0; c < row_width; ++c) scores[r * row_width + c] += bias[c];
    }
  });

  pool_.parallel_for(batch.rows(), 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t r = begin; r < end; ++r) {
      const std::int64_t slot = batch.slots.i32()[r];
      const std::int64_t position = batch.positions.i32()[r];
      if (slot < 0 || (position + 1) % ratio != 0) continue;
      const std::int64_t start = position + 1 - ratio;  // first token of the window
      const RecentRows values(batch, r, args.values, args.state.values);
      const RecentRows biased(batch, r, args.scores, args.state.scores);
      float* entry = PagedRows(args.entries, batch.block_table, slot).row(position / ratio);
      for (std::int64_t c = 0; c < width; ++c) {
        Pool pool;
        // With overlap the previous window contributes the first half of the channels and the
        // current one the second half; the first window of a sequence has no previous one.
        if (overlaps && start > 0)
          for (std::int64_t p = start - ratio; p < start; ++p)
            pool.add(biased.row(p)[c], values.row(p)[c]);
        const std::int64_t current = overlaps ? width + c : c;
        for (std::int64_t p = start; p <= position; ++p)
          pool.add(biased.row(p)[current], values.row(p)[current]);
        entry[c] = pool.sum / pool.total;
      }
      rms_norm_row(entry, args.norm_weight.f32(), width, args.eps, entry);
      rope_row(entry, width, args.inv_freq.f32(), args.inv_freq.dim(0), static_cast<float>(start),
               false);
      round_row_to_grid(entry, width, args.grid, 2 * args.inv_freq.dim(0));
    }
  });

  pool_.parallel_for(batch.rows(), 16, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t r = begin; r < end; ++r) {
      if (batch.slots.i32()[r] < 0) continue;
      store_recent(batch, r, args.values, args.state.values);
      store_recent(batch, r, args.scores, args.state.scores);
    }
  });
}

}  // namespace quatrain

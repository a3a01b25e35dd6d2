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

// Most tokens that one entry pools: two windows of 4 or one of 128.
constexpr std::int64_t kMostPooled = 128;

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
  parallel_for(args.batch.rows(), 16, args.latents.elements(),
               [&](std::int64_t begin, std::int64_t end, int) {
                 for (std::int64_t r = begin; r < end; ++r)
                   if (args.batch.slots.i32()[r] >= 0)
                     store_recent(args.batch, r, args.latents, args.ring);
               });
}

void CpuOps::compress(const op::Compress& args) {
  const Batch& batch = args.batch;
  const std::int64_t ratio = args.entries.ratio;
  const std::int64_t width = args.norm_weight.dim(0);
  const std::int64_t row_width = args.values.dim(1);
  const bool overlaps = row_width == 2 * width;
  QT_CHECK((overlaps ? 2 : 1) * ratio <= kMostPooled, "windows of {} tokens are above {}", ratio,
           kMostPooled);
  float* scores = args.scores.f32();

  // The position bias depends on the absolute position alone, never on the chunk.
  parallel_for(
      batch.rows(), 16, args.values.elements(), [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t r = begin; r < end; ++r) {
          if (batch.slots.i32()[r] < 0) continue;
          const float* bias = args.bias.f32() + batch.positions.i32()[r] % ratio * row_width;
          for (std::int64_t c = 0; c < row_width; ++c) scores[r * row_width + c] += bias[c];
        }
      });

  std::int64_t closing = 0;
  for (std::int64_t r = 0; r < batch.rows(); ++r)
    if (batch.slots.i32()[r] >= 0 && (batch.positions.i32()[r] + 1) % ratio == 0) ++closing;
  // An exponential for each value of a window.
  const std::int64_t work = 8 * closing * (overlaps ? 2 : 1) * ratio * width;
  parallel_for(
      closing > 0 ? batch.rows() : 0, 1, work, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t r = begin; r < end; ++r) {
          const std::int64_t slot = batch.slots.i32()[r];
          const std::int64_t position = batch.positions.i32()[r];
          if (slot < 0 || (position + 1) % ratio != 0) continue;
          const std::int64_t start = position + 1 - ratio;  // first token of the window
          const RecentRows values(batch, r, args.values, args.state.values);
          const RecentRows biased(batch, r, args.scores, args.state.scores);
          float* entry = PagedRows(args.entries, batch.block_table, slot).row(position / ratio);
          // With overlap the previous window contributes the first half of the channels and the
          // current one the second half; the first window of a sequence has no previous one.
          const float* pooled_values[kMostPooled];
          const float* pooled_scores[kMostPooled];
          std::int64_t count = 0;
          const auto add = [&](std::int64_t p, std::int64_t channel) {
            pooled_values[count] = values.row(p) + channel;
            pooled_scores[count++] = biased.row(p) + channel;
          };
          if (overlaps && start > 0)
            for (std::int64_t p = start - ratio; p < start; ++p) add(p, 0);
          for (std::int64_t p = start; p <= position; ++p) add(p, overlaps ? width : 0);
          kernels_.pool(pooled_values, pooled_scores, count, width, entry);
          kernels_.rms_norm(entry, args.norm_weight.f32(), width, args.eps, entry);
          rope_row(entry, width, args.inv_freq.f32(), args.inv_freq.dim(0),
                   static_cast<float>(start), false);
          round_row_to_grid(entry, width, args.grid, 2 * args.inv_freq.dim(0));
        }
      });

  parallel_for(batch.rows(), 16, args.values.elements(),
               [&](std::int64_t begin, std::int64_t end, int) {
                 for (std::int64_t r = begin; r < end; ++r) {
                   if (batch.slots.i32()[r] < 0) continue;
                   store_recent(batch, r, args.values, args.state.values);
                   store_recent(batch, r, args.scores, args.state.scores);
                 }
               });
}

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// A compressor's windows (2.6): where the rows of one lie, how they are pooled, and what becomes of
// the pooled entry.
#pragma once

#include "backends/cuda/device/cache_rows.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/row_math.cuh"
#include "backends/cuda/device/scalar.cuh"
#include "backends/cuda/device/sequence_view.cuh"
#include "backends/cuda/launch/cache.h"
#include "core/codec.h"

namespace quatrain::cuda {

inline constexpr int kManySlots = 64;     // windows of this many slots are pooled in two halves
inline constexpr int kNormThreads = 128;  // that sum the squares of an entry, or all if fewer

// What one row of a step knows of its window. Slots are the rows that a window pools: with overlap
// those of the previous window, then its own (2.6). Windows start at multiples of the ratio, and so
// do their places in the state.
class Window {
 public:
  __device__ Window(const CompressArgs& args, int r)
      : args_(args),
        ratio_(args.entries.ratio),
        position_(args.batch.positions[r]),
        phase_(position_ % ratio_),
        overlaps_(args.channels == 2 * args.width),
        slots_(overlaps_ ? 2 * ratio_ : ratio_) {
    const int first_row = args.batch.first_rows[r];
    const int first_slot = position_ + 1 - slots_;  // its position
    step_slot_ = position_ - (r - first_row) - first_slot;
    step_at_ = (std::int64_t{first_row} - step_slot_) * args.channels;
    state_at_ = std::int64_t{args.batch.slots[r]} * args.capacity * args.channels;
    // Only used where the window closes, when first_slot is a multiple of the ratio.
    state_row_ = (first_slot + slots_) % args.capacity;
  }

  __device__ bool closes() const { return phase_ == ratio_ - 1; }
  /// First token of the window, if this row closes it.
  __device__ int start() const { return position_ + 1 - ratio_; }
  __device__ int slots() const { return slots_; }
  /// The first window of a sequence has no previous one.
  __device__ int first_slot() const { return overlaps_ && start() == 0 ? ratio_ : 0; }

  /// f(score, value) for channel c of the slots [begin, end) in order. Loads of eight slots are
  /// under way at once: no branch stands between them.
  template <class F>
  __device__ void for_slots(int begin, int end, int c, F&& f) const {
    const int middle = max(begin, min(end, step_slot_));
#pragma unroll 8
    for (int slot = begin; slot < middle; ++slot) {  // of earlier steps
      const std::int64_t at = old_at(slot) + channel(slot, c);
      f(args_.state_scores[at], args_.state_values[at]);
    }
#pragma unroll 8
    for (int slot = middle; slot < end; ++slot) {  // of this step
      const std::int64_t at = new_at(slot) + channel(slot, c);
      f(args_.scores[at] + args_.bias[bias_at(slot) + channel(slot, c)], args_.values[at]);
    }
  }
  /// Score and value of channel c in one slot of an earlier step or of this one, without a branch.
  __device__ void load(int slot, int c, float& score, float& value) const {
    const bool is_old = slot < step_slot_;
    const std::int64_t at = is_old ? old_at(slot) : new_at(slot);
    const int of = channel(slot, c);
    const float bias = is_old ? 0.0f : args_.bias[bias_at(slot) + of];
    score = (is_old ? args_.state_scores : args_.scores)[at + of] + bias;
    value = (is_old ? args_.state_values : args_.values)[at + of];
  }

  /// Keeps this row, batch row r, for later steps. The position bias depends on the absolute
  /// position alone, never on the chunk.
  __device__ void keep(int r) const {
    const std::int64_t from = std::int64_t{r} * args_.channels;
    const std::int64_t to = state_at_ + std::int64_t{position_ % args_.capacity} * args_.channels;
    const float* bias = args_.bias + std::int64_t{phase_} * args_.channels;
    for (int c = static_cast<int>(threadIdx.x); c < args_.channels; c += blockDim.x) {
      args_.state_values[to + c] = args_.values[from + c];
      args_.state_scores[to + c] = args_.scores[from + c] + bias[c];
    }
  }

 private:
  // Where a slot's channels begin: of an earlier step, of this one, and its bias.
  __device__ std::int64_t old_at(int slot) const {
    int row = state_row_ + slot;
    if (row >= args_.capacity) row -= args_.capacity;
    return state_at_ + std::int64_t{row} * args_.channels;
  }
  __device__ std::int64_t new_at(int slot) const {
    return step_at_ + std::int64_t{slot} * args_.channels;
  }
  __device__ int bias_at(int slot) const {
    return (slot >= ratio_ ? slot - ratio_ : slot) * args_.channels;
  }
  // With overlap the previous window contributes the first half of the channels.
  __device__ int channel(int slot, int c) const {
    return overlaps_ && slot >= ratio_ ? args_.width + c : c;
  }

  const CompressArgs& args_;
  int ratio_;
  int position_;
  int phase_;
  bool overlaps_;
  int slots_;
  int step_slot_;          // the first slot that this step brings
  int state_row_;          // of slot 0
  std::int64_t step_at_;   // of slot 0 in this step's tensors, which may lie before them
  std::int64_t state_at_;  // of the sequence in the state
};

// One pooled channel: softmax over the scores of slots, applied to their values.
struct Pool {
  float largest = -INFINITY;
  float total = 0;
  float sum = 0;

  // Once the largest score is known.
  __device__ void weigh(float score, float value) {
    const float weight = expf(score - largest);
    total += weight;
    sum += weight * value;
  }
  __device__ void add(float other_largest, float other_total, float other_sum) {
    const float best = fmaxf(largest, other_largest);
    const float own = expf(largest - best);
    const float other = expf(other_largest - best);
    total = total * own + other_total * other;
    sum = sum * own + other_sum * other;
  }
};

// Of the slots [begin, end). Two passes, so that no load waits for the one before.
__device__ inline Pool pool_slots(const Window& window, int begin, int end, int c) {
  Pool pool;
  window.for_slots(begin, end, c,
                   [&](float score, float) { pool.largest = fmaxf(pool.largest, score); });
  window.for_slots(begin, end, c, [&](float score, float value) { pool.weigh(score, value); });
  return pool;
}
// The same of few slots, whose loads are all under way at once, or eight of them.
__device__ inline Pool pool_few_slots(const Window& window, int begin, int end, int c) {
  constexpr int kAtOnce = 8;
  Pool pool;
  float scores[kAtOnce], values[kAtOnce];
  const auto load = [&](int first) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) window.load(min(first + i, end - 1), c, scores[i], values[i]);
  };
  for (int first = begin; first < end; first += kAtOnce) {
    load(first);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) pool.largest = fmaxf(pool.largest, scores[i]);
  }
  for (int first = begin; first < end; first += kAtOnce) {
    if (end - begin > kAtOnce) load(first);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (first + i < end) pool.weigh(scores[i], values[i]);
  }
  return pool;
}

// The pooled channels of a window, to shared memory. With kParts = 2 the second half of the block
// pools the later slots. `halves` has room for three numbers per channel. Ends with a barrier.
template <int kParts>
__device__ void pool_window(const Window& window, int width, float* entry, float* halves) {
  const int threads = static_cast<int>(blockDim.x) / kParts;
  const int part = static_cast<int>(threadIdx.x) / threads;
  const int first = window.first_slot();
  const int middle = first + (window.slots() - first) / kParts;
  for (int c0 = 0; c0 < width; c0 += threads) {
    const int c = c0 + static_cast<int>(threadIdx.x) % threads;
    if constexpr (kParts == 1) {
      if (c >= width) continue;
      const Pool pool = pool_few_slots(window, first, window.slots(), c);
      entry[c] = pool.sum / pool.total;
    } else {
      const bool is_late = part == 1;
      Pool pool = pool_slots(window, is_late ? middle : first, is_late ? window.slots() : middle,
                             min(c, width - 1));
      if (is_late && c < width) {
        halves[c] = pool.largest;
        halves[width + c] = pool.total;
        halves[2 * width + c] = pool.sum;
      }
      __syncthreads();
      if (!is_late && c < width) {
        pool.add(halves[c], halves[width + c], halves[2 * width + c]);
        entry[c] = pool.sum / pool.total;
      }
    }
  }
  __syncthreads();
}

// What a block needs of shared memory for an entry.
struct EntryScratch {
  float* entry;   // [width]
  float* weight;  // [width] of its norm
  float2* turns;  // [pairs] its rotations
  float* halves;  // [3, width] with kManySlots or more

  __device__ EntryScratch(const CompressArgs& args, float2* memory)
      : entry(reinterpret_cast<float*>(memory)),
        weight(entry + args.width),
        turns(memory + args.width),
        halves(reinterpret_cast<float*>(turns + args.pairs)) {}
};

// What an entry needs and no other kernel writes; a barrier must follow.
__device__ inline void prepare_entry(const CompressArgs& args, const Window& window,
                                     const EntryScratch& to) {
  if (!window.closes()) return;
  for (int c = static_cast<int>(threadIdx.x); c < args.width; c += blockDim.x)
    to.weight[c] = args.norm_weight[c];
  for (int p = static_cast<int>(threadIdx.x); p < args.pairs; p += blockDim.x)
    to.turns[p] = rotation(window.start(), args.inv_freq[p], false);
}

// Normalises, rotates and rounds the pooled entry. Comes and ends with a barrier. The order of the
// sum does not depend on the threads of the block.
__device__ inline void finish_entry(const CompressArgs& args, const EntryScratch& at,
                                    float* scratch) {
  const int first = static_cast<int>(threadIdx.x);
  const int step = static_cast<int>(blockDim.x);
  float* entry = at.entry;
  float squares = 0;
  if (first < kNormThreads)
    for (int c = first; c < args.width; c += kNormThreads) squares += entry[c] * entry[c];
  const float factor = rms_factor(block_sum(squares, scratch), args.width, args.eps);
  for (int c = first; c < args.width; c += step) entry[c] = at.weight[c] * (entry[c] * factor);
  __syncthreads();
  float* tail = entry + args.width - 2 * args.pairs;
  for (int p = first; p < args.pairs; p += step) rotate_pair(tail + 2 * p, at.turns[p]);
  __syncthreads();
  round_row_to_grid(entry, args.width, args.grid, 2 * args.pairs);
}

// Row r of the step by all threads of a block of whole warps: at least `width` of them, or at least
// kNormThreads, once the entry has been prepared. Rows that are alone in their sequence's chunk are
// kept at once: what they replace has left every window. The others' turn comes after all windows
// of the step.
__device__ inline void compress_row(const CompressArgs& args, const Window& window, int r,
                                    const EntryScratch& at) {
  __shared__ float scratch[kReduceScratch];
  if (is_alone(args.batch, r)) window.keep(r);
  if (!window.closes()) return;
  if (window.slots() >= kManySlots)
    pool_window<2>(window, args.width, at.entry, at.halves);
  else
    pool_window<1>(window, args.width, at.entry, nullptr);
  finish_entry(args, at, scratch);
  const PagedRows paged(args.batch, args.entries, args.batch.slots[r]);
  store_row(args.entries.rows, paged.row(window.start() / args.entries.ratio), at.entry);
}

// Bytes of EntryScratch.
inline std::size_t compress_scratch(const CompressArgs& args) {
  const int rows = args.entries.ratio >= kManySlots ? 5 : 2;
  return static_cast<std::size_t>(rows * args.width + 2 * args.pairs) * sizeof(float);
}

}  // namespace quatrain::cuda

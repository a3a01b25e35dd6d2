// SPDX-License-Identifier: Apache-2.0
// Launches of the choice of compressed entries and of the attention over window and entries.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backends/cuda/launch/batch.h"

namespace quatrain::cuda {

/// Width of an index key that the score kernel has room for.
inline constexpr int kMaxIndexWidth = 128;

struct IndexSelectArgs {
  BatchView batch;
  const float* q = nullptr;        // [rows, heads, width]
  const float* weights = nullptr;  // [rows, heads]
  PoolView keys;                   // [.., width]
  int heads = 0;
  int width = 0;  // a multiple of 8, at most kMaxIndexWidth
  int topk = 0;
  float* scores = nullptr;          // scratch [score_rows, score_columns]
  int score_rows = 0;               // rows of the step are processed in passes of this many
  int score_columns = 0;            // at least the entries that any row of the step can see
  int* selected = nullptr;          // [rows, topk]
  const float* inv_freq = nullptr;  // [pairs]: queries are rotated first; index_scores_f16() only
  int pairs = 0;
};
/// selected = the topk visible entries of largest score (the lowest index among equals), ascending,
/// then −1.
void index_select(const IndexSelectArgs& args, cudaStream_t stream);

/// Heads that the tensor-core score kernel has room for.
inline constexpr int kMaxIndexHeads = 64;

/// Whether index_select() scores with it.
inline bool has_index_scores_f16(const IndexSelectArgs& args) {
  return args.keys.rows.format != CacheFormat::kF32 && args.heads <= kMaxIndexHeads;
}
/// The two parts of index_select, for the rows [first_row, first_row + rows): scores of all visible
/// keys that are not FP32, with queries rounded to F16 …
void index_scores_f16(const IndexSelectArgs& args, int first_row, int rows, float scale,
                      cudaStream_t stream);
/// … and the choice among the scores.
void top_k(const IndexSelectArgs& args, int first_row, int rows, cudaStream_t stream);

/// Width of a head that the attention kernel has room for.
inline constexpr int kMaxHeadDim = 512;

struct AttendArgs {
  BatchView batch;
  const float* q = nullptr;         // [rows, heads, width]
  const float* latents = nullptr;   // [rows, width]
  CacheRows ring;                   // [slots, window, width]
  PoolView entries;                 // [.., width]
  const int* selected = nullptr;    // [rows, topk]; null: every complete entry
  const float* sinks = nullptr;     // [heads]
  const float* inv_freq = nullptr;  // [pairs]: the output is rotated back at the row's position
  int pairs = 0;                    // 0: it is not
  int heads = 0;
  int width = 0;  // a multiple of 32, at most kMaxHeadDim
  int window = 0;
  int topk = 0;
  float* out = nullptr;        // [rows, heads, width]; zeros in padded rows
  void* step_rows = nullptr;   // attend_latent's scratch, F16 [rows, width]
  float* parked = nullptr;     // and more of it, attend_parked_bytes()
  bool stores = false;         // attend_latent of a decode step: latents go to their ring as well
  bool norms_queries = false;  // attend_latent: rms_norm of every query and its rotation come first
  float query_eps = 0;
};
/// One softmax per head over window ∪ entries with a sink. This step's latents are rounded first,
/// as they will be stored, so that the chunking of a sequence does not change its output.
void attend(const AttendArgs& args, cudaStream_t stream);

/// Width of DeepSeek-V4's latents, which have kernels of their own.
inline constexpr int kLatentWidth = 512;
/// Trailing pairs that may be rotated there.
inline constexpr int kMostPairs = 32;

/// Whether attend_latent() takes it.
inline bool has_attend_latent(const AttendArgs& args) {
  return args.width == kLatentWidth && args.pairs <= kMostPairs &&
         args.ring.format != CacheFormat::kF32;
}
/// As attend, for width kLatentWidth and caches that are not FP32: queries, keys and weights are
/// rounded to F16, sums are FP32. Of the selected entries the first min(topk, visible) are read.
void attend_latent(const AttendArgs& args, cudaStream_t stream);
/// Heads of a block of attend_latent_few().
inline constexpr int kFewHeads = 16;
/// The part of attend_latent() for layers with compressed entries and few rows, the tiles of each
/// cut into 2 or 4 parts: rows of sequences that bring few to the step, and padding. `scale` makes
/// products logits in units of log 2.
void attend_latent_few(const AttendArgs& args, int parts, float scale, cudaStream_t stream);
/// Rows of a step from which on blocks have several: more than there are multiprocessors.
inline constexpr int kLongStepRows = 133;
/// The part of attend_latent() for rows that are not split: those of sequences that bring many to
/// the step, in layers without entries all rows and padding. has_attend_latent_rows() says whether
/// it takes them, which is so in long steps with caches in F16.
bool has_attend_latent_rows(const AttendArgs& args);
void attend_latent_rows(const AttendArgs& args, float scale, cudaStream_t stream);
/// What attend_latent() needs of scratch whatever the step.
std::int64_t attend_parked_bytes();

}  // namespace quatrain::cuda

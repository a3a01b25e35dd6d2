// SPDX-License-Identifier: Apache-2.0
// EngineOptions: the one struct through which every setting of a loaded model passes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "model/deepseek_v4.h"

namespace quatrain {

struct EngineOptions {
  /// Positions per sequence; 0 takes the smaller of the checkpoint's maximum and kDefaultContext.
  std::int64_t max_model_len = 0;
  std::int64_t max_num_seqs = 1;  ///< sequences held at once
  std::int64_t kv_blocks = 0;     ///< of 128 tokens, for all sequences; 0: every one may be full
  /// Rows of one step; longer prompts run in chunks. 0: Ops::prompt_rows(), or fewer where memory
  /// is short.
  std::int64_t max_num_batched_tokens = 0;
  std::int64_t max_logit_rows = 0;  ///< rows with logits in one step; 0: one per sequence
  bool mtp = false;                 ///< load the MTP block
  bool record = true;               ///< replay recorded decode steps where a backend can
  bool guard = false;  ///< abort when an operation allocates inside a step (tests, debugging)
  Numerics numerics;

  static constexpr std::int64_t kDefaultContext = 8192;

  /// A step has a row for every sequence, however few rows were asked for.
  void make_room_for_sequences() {
    if (max_num_batched_tokens > 0)
      max_num_batched_tokens = std::max(max_num_batched_tokens, max_num_seqs);
  }

  /// Fills the defaults that depend on the model and the backend, and throws on values out of
  /// range.
  void resolve(const V4Config& config, const Ops& ops);
};

/// Blocks of the pools that a sequence of the greatest length takes.
inline std::int64_t blocks_per_sequence(const EngineOptions& options) {
  return (options.max_model_len + kBlockTokens - 1) / kBlockTokens;
}

}  // namespace quatrain

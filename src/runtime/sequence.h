// SPDX-License-Identifier: Apache-2.0
// Sequence: one request's timeline while the engine has it.
#pragma once

#include <vector>

#include "quatrain/engine.h"
#include "runtime/block_pool.h"

namespace quatrain {

struct Sequence {
  // ---- the request ----
  RequestId id = 0;  ///< ascending in order of arrival
  int priority = 0;
  std::int64_t prompt_size = 0;
  bool score_prompt = false;  ///< logits of all prompt rows are still wanted

  // ---- the timeline ----
  std::vector<std::int32_t> tokens;  ///< prompt, then output
  std::int64_t computed = 0;         ///< tokens at the front whose rows the caches hold

  // ---- what it holds; the scheduler's ----
  std::int64_t slot = -1;                    ///< −1: waiting
  std::vector<BlockId> blocks;               ///< of all tokens, while it has a slot
  std::int64_t blocks_announced = 0;         ///< of them, those that the runner's table has
  std::vector<PrefixKey> keys;               ///< of the complete blocks of tokens, as far as needed
  std::int64_t last_snapshot = 0;            ///< tokens in front of the one taken or resumed last
  std::int64_t learned_border = 0;           ///< a prefix that others share too: worth a snapshot
  std::optional<PrefixKey> output_snapshot;  ///< the last one taken inside the output
  std::int64_t cached_tokens = 0;            ///< of the prompt, when it first got a slot
  bool admitted = false;                     ///< had a slot at least once

  std::int64_t size() const { return static_cast<std::int64_t>(tokens.size()); }
  std::int64_t remaining() const { return size() - computed; }
};

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// Every weight that a DeepSeek-V4 checkpoint of a given architecture holds, by its official name.
//
// What weights.cpp loads, as a list: to check a checkpoint's headers without reading it, and to
// make one up. Formats are not its business: a linear may be stored in any.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/config.h"

namespace quatrain {

enum class WeightKind : std::uint8_t {
  kEmbedding,   ///< a linear by its tensors: [V, D]
  kProjection,  ///< linear of attention, indexer or shared expert; FP8 as published
  kExpert,      ///< linear of a routed expert; NVFP4
  kFine,        ///< linear that stays BF16: head, router, compressors, indexer weights
  kNorm,        ///< weight of an RMSNorm
  kMix,         ///< fn of a hyper-connection site
  kMixScale,    ///< scale of a hyper-connection site
  kBias,        ///< base of a site, position bias, sinks, router bias
  kHashTable,   ///< expert ids by token [V, k], integers
};

struct WeightEntry {
  WeightKind kind = WeightKind::kNorm;
  std::string name;                 ///< base name of a linear, otherwise complete
  std::vector<std::int64_t> shape;  ///< [rows, cols] of a linear

  bool is_linear() const { return kind <= WeightKind::kFine; }
};

/// Calls `visit` for every weight, in the order of the layers; MTP blocks only with `mtp`.
void for_each_weight(const V4Config& config, bool mtp,
                     const std::function<void(const WeightEntry&)>& visit);

}  // namespace quatrain

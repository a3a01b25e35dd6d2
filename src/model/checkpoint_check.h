// SPDX-License-Identifier: Apache-2.0
// Is a checkpoint whole? From its headers, or from every byte.
#pragma once

#include <cstdint>
#include <functional>

#include "model/model_source.h"

namespace quatrain {

struct CheckpointCheck {
  std::int64_t tensors = 0;
  std::int64_t files = 0;
  std::int64_t expert_linears = 0;
  /// Experts whose w1 and w3 differ in their global or input scale: they cannot share one product.
  std::int64_t unequal_pairs = 0;
};

/// Every tensor that config.json's architecture needs is there with its shape, in a known format,
/// and no other. Reads headers and scalars. Throws Error naming file, tensor, expected and found.
CheckpointCheck check_checkpoint_headers(const ModelSource& source);

/// The same, and reads everything: scales are positive and finite, no value is NaN or infinite, ids
/// of hash tables exist. `progress` is told the bytes of each tensor.
CheckpointCheck check_checkpoint_data(const ModelSource& source,
                                      const std::function<void(std::int64_t)>& progress);

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// Launch of what becomes of the projections of a layer's input.
#pragma once

#include "backends/cuda/launch/cache.h"

namespace quatrain::cuda {

/// Steps of more rows keep the processors busy with one of the parts at a time.
inline constexpr int kMaxAttentionInputRows = 64;

struct AttentionInputsArgs {
  NormRopeArgs norm_rope;
  CompressArgs compressors[2];
  int count = 0;  // of compressors
};
/// norm_rope, and compress of every compressor.
void attention_inputs(const AttentionInputsArgs& args, cudaStream_t stream);

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// Launch of the router: expert ids and weights from logits.
#pragma once

#include <cuda_runtime.h>

namespace quatrain::cuda {

/// Experts per token that the router has room for.
inline constexpr int kMaxExpertsPerToken = 32;
/// Experts whose scores fit the shared memory of a block.
inline constexpr int kMaxExperts = 1536;

struct RouteArgs {
  const float* logits = nullptr;    // [rows, experts]
  const float* bias = nullptr;      // [experts]; null for hash routing
  const int* hash_table = nullptr;  // [V, k]; null for learned routing
  const int* token_ids = nullptr;   // [rows]
  int rows = 0;
  int experts = 0;
  int k = 0;
  float scale = 1;
  int* ids = nullptr;        // [rows, k]; in [0, experts) even for rows of NaN
  float* weights = nullptr;  // [rows, k]
};
void route(const RouteArgs& args, cudaStream_t stream);

}  // namespace quatrain::cuda

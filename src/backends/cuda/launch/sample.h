// SPDX-License-Identifier: Apache-2.0
// Launch of the sampler. Only enqueues work; pointers are to device memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "ops/slot_sampling.h"

namespace quatrain::cuda {

/// The longest row that fits the shared memory of a cluster.
inline constexpr std::int64_t kMaxVocab = 393216;

/// Once, before the first launch or capture, for rows of up to `vocab` logits.
void prepare_sampling(std::int64_t vocab);

struct SampleArgs {
  const float* logits = nullptr;  // [rows, vocab]
  const int* slots = nullptr;     // [rows] −1: the row is left alone
  const int* positions = nullptr;
  const SlotSampling* params = nullptr;  // [slots]
  std::uint32_t* counts = nullptr;       // [slots, vocab]
  int rows = 0;
  int vocab = 0;
  SampledRow* results = nullptr;  // [rows]
};
/// As sample_row() of ops/sampling.h, bit for bit; counts the token drawn.
void sample(const SampleArgs& args, cudaStream_t stream);

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// How the tokens of one sequence slot are sampled, as plain data: the same bytes on host and
// device.
//
// A device keeps an array of these. An entry is written when a request takes the slot; steps only
// read it, so one recorded step serves every mix of parameters.
#pragma once

#include "ops/sampling.h"

namespace quatrain {

struct SlotSampling {
  std::uint64_t seed;
  float temperature;
  float top_p;
  float min_p;
  float repetition_penalty;
  float presence_penalty;
  float frequency_penalty;
  std::int32_t top_k;  // ≤ 0: all
  std::int32_t min_tokens;
  std::int32_t logprobs;
  std::int32_t prompt_length;  // a token at position p is the output's number p - prompt_length
  std::int32_t uses_counts;
  std::int32_t bias_count;
  std::int32_t suppressed_count;
  std::int32_t unused;           // keeps the size a multiple of 8
  TokenBias biases[kMaxBiases];  // sorted by id, entries of one id in their order
  std::int32_t suppressed[kMaxSuppressed];
};
static_assert(sizeof(SlotSampling) % 8 == 0 && sizeof(SampledRow) % 8 == 0);

/// `params` must have passed validate().
SlotSampling make_slot_sampling(const SamplingParams& params, std::int64_t prompt_length);

/// The parameters again; the spans point into `slot`.
SamplingParams sampling_params(const SlotSampling& slot);

}  // namespace quatrain

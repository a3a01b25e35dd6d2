// SPDX-License-Identifier: Apache-2.0
#include "ops/slot_sampling.h"

#include <algorithm>

#include "core/error.h"

namespace quatrain {

SlotSampling make_slot_sampling(const SamplingParams& params, std::int64_t prompt_length) {
  QT_CHECK(params.logit_bias.size() <= kMaxBiases && params.suppressed_ids.size() <= kMaxSuppressed,
           "sampling parameters with {} biases and {} suppressed ids were not validated",
           params.logit_bias.size(), params.suppressed_ids.size());
  SlotSampling slot{};
  slot.seed = params.seed;
  slot.temperature = params.temperature;
  slot.top_p = params.top_p;
  slot.min_p = params.min_p;
  slot.repetition_penalty = params.repetition_penalty;
  slot.presence_penalty = params.presence_penalty;
  slot.frequency_penalty = params.frequency_penalty;
  slot.top_k = params.top_k;
  slot.min_tokens = params.min_tokens;
  slot.logprobs = params.logprobs;
  slot.prompt_length = static_cast<std::int32_t>(prompt_length);
  slot.uses_counts = static_cast<std::int32_t>(params.uses_counts());
  slot.bias_count = static_cast<std::int32_t>(params.logit_bias.size());
  slot.suppressed_count = static_cast<std::int32_t>(params.suppressed_ids.size());
  std::ranges::copy(params.logit_bias, slot.biases);
  std::ranges::stable_sort(slot.biases, slot.biases + slot.bias_count, {}, &TokenBias::id);
  std::ranges::copy(params.suppressed_ids, slot.suppressed);
  return slot;
}

SamplingParams sampling_params(const SlotSampling& slot) {
  return {.temperature = slot.temperature,
          .top_k = slot.top_k,
          .top_p = slot.top_p,
          .min_p = slot.min_p,
          .repetition_penalty = slot.repetition_penalty,
          .presence_penalty = slot.presence_penalty,
          .frequency_penalty = slot.frequency_penalty,
          .logit_bias = {slot.biases, static_cast<std::size_t>(slot.bias_count)},
          .suppressed_ids = {slot.suppressed, static_cast<std::size_t>(slot.suppressed_count)},
          .min_tokens = slot.min_tokens,
          .logprobs = slot.logprobs,
          .seed = slot.seed};
}

}  // namespace quatrain

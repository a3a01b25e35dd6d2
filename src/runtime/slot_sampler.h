// SPDX-License-Identifier: Apache-2.0
// SlotSampler: the sampling state of every sequence slot on the device, and what a step sampled.
//
// Knows no caches and no model: the runner gives it rows of logits.
#pragma once

#include <span>
#include <vector>

#include "ops/ops.h"
#include "ops/slot_sampling.h"

namespace quatrain {

class SlotSampler {
 public:
  /// For steps of at most `rows` rows of logits.
  SlotSampler(Ops& ops, std::int64_t vocab_size, std::int64_t slots, std::int64_t rows);

  /// See ModelRunner::set_sampling.
  void set(std::int64_t slot, const SamplingParams& params, std::span<const std::int32_t> prompt,
           std::span<const std::int32_t> output);

  /// Samples rows of `logits` [n, V] for `slots` and `positions` (I32 [n] each).
  void issue(Ops& ops, Tensor logits, Tensor slots, Tensor positions) const;

  /// Starts the copy of the first n results to the host.
  void start_download(std::int64_t n) const;
  /// The results of the last copy, once it is complete, of rows whose slot is not −1; valid until
  /// the next. `slots` are those given to issue().
  std::span<const SampleResult> finish(std::span<const std::int32_t> slots);

  /// Of device memory.
  static std::int64_t bytes(std::int64_t vocab_size, std::int64_t slots, std::int64_t rows);

 private:
  Ops& ops_;
  Buffer memory_;
  Tensor params_;   // U8 [slots, sizeof(SlotSampling)]
  Tensor counts_;   // I32 [slots, V]
  Tensor results_;  // U8 [rows, sizeof(SampledRow)]
  Buffer host_results_;
  std::vector<std::uint32_t> host_counts_;  // [V]
  std::vector<ScoredToken> top_;            // [slots, kMaxLogprobs]
  std::vector<SampleResult> finished_;      // [slots]
};

}  // namespace quatrain

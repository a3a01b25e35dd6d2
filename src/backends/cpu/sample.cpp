// SPDX-License-Identifier: Apache-2.0
// sample: the sampler's definition (ops/sampling.h) on each row.
#include "backends/cpu/cpu_ops.h"
#include "ops/slot_sampling.h"

namespace quatrain {

void CpuOps::sample(const op::Sample& args) {
  const std::int64_t vocab = args.logits.dim(1);
  const auto width = static_cast<std::size_t>(vocab);
  pool_.parallel_for(args.logits.dim(0), 1, [&](std::int64_t begin, std::int64_t end, int thread) {
    for (std::int64_t r = begin; r < end; ++r) {
      const std::int32_t slot = args.slots.i32()[r];
      if (slot < 0) continue;
      const SlotSampling& parameters = static_cast<const SlotSampling*>(args.params.data())[slot];
      const SamplingParams params = sampling_params(parameters);
      auto* counts =
          static_cast<std::uint32_t*>(args.counts.data()) + static_cast<std::size_t>(slot) * width;
      const std::int32_t position = args.positions.i32()[r];
      SampledRow& result = static_cast<SampledRow*>(args.results.data())[r];
      result =
          sample_row({.logits = {args.logits.f32() + r * vocab, width},
                      .counts = params.uses_counts() ? std::span<const std::uint32_t>(counts, width)
                                                     : std::span<const std::uint32_t>(),
                      .position = static_cast<std::uint64_t>(position),
                      .output_length = position - parameters.prompt_length},
                     params, random_bits(params.seed, static_cast<std::uint64_t>(position)),
                     samplers_[static_cast<std::size_t>(thread)]);
      if (params.uses_counts() && result.status == SampleStatus::kOk)
        TokenCounts({counts, width}).add_output(result.token);
    }
  });
}

}  // namespace quatrain

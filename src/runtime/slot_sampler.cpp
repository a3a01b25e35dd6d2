// SPDX-License-Identifier: Apache-2.0
#include "runtime/slot_sampler.h"

namespace quatrain {
namespace {

constexpr auto kParamBytes = static_cast<std::int64_t>(sizeof(SlotSampling));
constexpr auto kResultBytes = static_cast<std::int64_t>(sizeof(SampledRow));

}  // namespace

std::int64_t SlotSampler::bytes(std::int64_t vocab_size, std::int64_t slots, std::int64_t rows) {
  return slots * (kParamBytes + vocab_size * bytes_of(DType::kI32)) + rows * kResultBytes;
}

SlotSampler::SlotSampler(Ops& ops, std::int64_t vocab_size, std::int64_t slots, std::int64_t rows)
    : ops_(ops),
      memory_(ops.allocate(bytes(vocab_size, slots, rows))),
      host_results_(ops.allocate_host(rows * kResultBytes)),
      host_counts_(static_cast<std::size_t>(vocab_size)),
      top_(static_cast<std::size_t>(slots * kMaxLogprobs)),
      finished_(static_cast<std::size_t>(slots)) {
  char* data = static_cast<char*>(memory_.data());
  params_ = Tensor(data, DType::kU8, {slots, kParamBytes});
  results_ = Tensor(data + params_.bytes(), DType::kU8, {rows, kResultBytes});
  counts_ = Tensor(data + params_.bytes() + results_.bytes(), DType::kI32, {slots, vocab_size});
  for (const Tensor& tensor : {params_, results_, counts_}) ops.zero(tensor);
}

void SlotSampler::set(std::int64_t slot, const SamplingParams& params,
                      std::span<const std::int32_t> prompt, std::span<const std::int32_t> output) {
  params.validate(static_cast<std::int32_t>(host_counts_.size()));
  const SlotSampling sampling =
      make_slot_sampling(params, static_cast<std::int64_t>(prompt.size()));
  ops_.upload(params_[slot], &sampling);
  if (!params.uses_counts()) return;
  TokenCounts counts(host_counts_);
  counts.clear();
  counts.add_prompt(prompt);
  for (const std::int32_t id : output) counts.add_output(id);
  ops_.upload(counts_[slot], host_counts_.data());
}

void SlotSampler::issue(Ops& ops, Tensor logits, Tensor slots, Tensor positions) const {
  ops.sample({.logits = logits,
              .slots = slots,
              .positions = positions,
              .params = params_,
              .counts = counts_,
              .results = results_.rows(0, logits.dim(0))});
}

void SlotSampler::start_download(std::int64_t n) const {
  ops_.start_download(host_results_.data(), results_.rows(0, n));
}

std::span<const SampleResult> SlotSampler::finish(std::span<const std::int32_t> slots) {
  const auto* rows = static_cast<const SampledRow*>(host_results_.data());
  std::size_t n = 0;
  for (std::size_t r = 0; r < slots.size(); ++r) {
    if (slots[r] < 0) continue;
    finished_[n] = finish_sample(rows[r], std::span(top_).subspan(n * kMaxLogprobs, kMaxLogprobs));
    ++n;
  }
  return std::span(finished_).first(n);
}

}  // namespace quatrain

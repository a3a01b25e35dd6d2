// SPDX-License-Identifier: Apache-2.0
// Rows to sample with random parameters, run through Ops::sample and through the definition.
#pragma once

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "core/step_guard.h"
#include "ops/ops.h"
#include "ops/slot_sampling.h"

namespace quatrain::testing {

/// `rows` rows of `vocab` logits, each with a slot of its own. Fill, then expect_defined_results().
class SampleCase {
 public:
  SampleCase(std::int64_t rows, std::int64_t vocab, unsigned seed)
      : rows_(rows), vocab_(vocab), random_(seed) {
    logits.resize(static_cast<std::size_t>(rows * vocab));
    counts.assign(logits.size(), 0);
    for (std::int64_t r = 0; r < rows; ++r) {
      fill_logits(r);
      fill_counts(r);
      slots.push_back(static_cast<std::int32_t>(rows - 1 - r));
      positions.push_back(static_cast<std::int32_t>(integer(0, 1 << 20)));
    }
    for (std::int64_t s = 0; s < rows; ++s) params.push_back(random_params());
  }

  float* row(std::int64_t r) { return logits.data() + r * vocab_; }
  SlotSampling& params_of(std::int64_t r) {
    return params[static_cast<std::size_t>(slots[static_cast<std::size_t>(r)])];
  }

  /// Runs the operation on `ops` and compares every row, and the counts, with sample_row().
  void expect_defined_results(Ops& ops) {
    const Device device(ops, *this);
    {
      const StepGuard guard("sample");
      ops.sample(device.args);
    }
    std::vector<SampledRow> found(static_cast<std::size_t>(rows_));
    ops.download(found.data(), device.args.results);
    std::vector<std::uint32_t> counted(counts.size());
    ops.download(counted.data(), device.args.counts);

    SamplerWorkspace workspace(static_cast<std::int32_t>(vocab_));
    std::vector<std::uint32_t> expected_counts = counts;
    for (std::int64_t r = 0; r < rows_; ++r) {
      const auto at = static_cast<std::size_t>(r);
      if (slots[at] < 0) {
        EXPECT_EQ(found[at].token, kUntouched) << "row " << r;
        continue;
      }
      const SampledRow expected = defined_result(r, workspace);
      expect_equal(found[at], expected, r);
      if (params_of(r).uses_counts != 0 && expected.status == SampleStatus::kOk)
        ++expected_counts[static_cast<std::size_t>(slots[at] * vocab_ + expected.token)];
    }
    EXPECT_EQ(counted, expected_counts);
  }

  std::int64_t integer(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random_);
  }
  float number(float low, float high) {
    return std::uniform_real_distribution<float>(low, high)(random_);
  }
  bool chance(double p) { return std::bernoulli_distribution(p)(random_); }

  std::vector<float> logits;          // [rows, vocab]
  std::vector<std::uint32_t> counts;  // [slots, vocab]
  std::vector<std::int32_t> slots;    // [rows]
  std::vector<std::int32_t> positions;
  std::vector<SlotSampling> params;  // [slots]

 private:
  static constexpr std::int32_t kUntouched = -77;

  // The case in the memory of a backend.
  struct Device {
    Device(Ops& ops, const SampleCase& c) {
      const auto put = [&](DType type, std::initializer_list<std::int64_t> shape,
                           const void* values) {
        const Tensor view(nullptr, type, shape);
        memory.push_back(ops.allocate(view.bytes()));
        const Tensor tensor(memory.back().data(), type, shape);
        ops.upload(tensor, values);
        return tensor;
      };
      std::vector<SampledRow> untouched(static_cast<std::size_t>(c.rows_));
      for (SampledRow& row : untouched) row.token = kUntouched;
      args.logits = put(DType::kF32, {c.rows_, c.vocab_}, c.logits.data());
      args.slots = put(DType::kI32, {c.rows_}, c.slots.data());
      args.positions = put(DType::kI32, {c.rows_}, c.positions.data());
      args.params = put(DType::kU8, {c.rows_, sizeof(SlotSampling)}, c.params.data());
      args.counts = put(DType::kI32, {c.rows_, c.vocab_}, c.counts.data());
      args.results = put(DType::kU8, {c.rows_, sizeof(SampledRow)}, untouched.data());
    }
    std::vector<Buffer> memory;
    op::Sample args;
  };

  SampledRow defined_result(std::int64_t r, SamplerWorkspace& workspace) {
    const SlotSampling& slot = params_of(r);
    const SamplingParams p = sampling_params(slot);
    const auto width = static_cast<std::size_t>(vocab_);
    const auto at = static_cast<std::size_t>(r);
    const std::span<const std::uint32_t> seen =
        std::span(counts).subspan(static_cast<std::size_t>(slots[at]) * width, width);
    const auto position = static_cast<std::uint64_t>(positions[at]);
    return sample_row({.logits = std::span(logits).subspan(at * width, width),
                       .counts = p.uses_counts() ? seen : std::span<const std::uint32_t>(),
                       .position = position,
                       .output_length = positions[at] - slot.prompt_length},
                      p, random_bits(p.seed, position), workspace);
  }

  static void expect_equal(const SampledRow& found, const SampledRow& expected, std::int64_t r) {
    ASSERT_EQ(found.status, expected.status) << "row " << r;
    ASSERT_EQ(found.token, expected.token) << "row " << r;
    ASSERT_EQ(found.total, expected.total) << "row " << r;
    if (expected.total == 0) return;
    ASSERT_EQ(found.largest, expected.largest) << "row " << r;
    ASSERT_EQ(found.logit, expected.logit) << "row " << r;
    ASSERT_EQ(found.rank, expected.rank) << "row " << r;
    ASSERT_EQ(found.top_count, expected.top_count) << "row " << r;
    for (std::int32_t i = 0; i < expected.top_count; ++i) {
      ASSERT_EQ(found.top_ids[i], expected.top_ids[i]) << "row " << r << ", place " << i;
      ASSERT_EQ(found.top_logits[i], expected.top_logits[i]) << "row " << r << ", place " << i;
    }
  }

  void fill_logits(std::int64_t r) {
    constexpr float kInf = std::numeric_limits<float>::infinity();
    std::normal_distribution<float> normal(number(-30, 30),
                                           chance(0.1) ? 200.0f : number(0.01f, 6));
    const bool grid = chance(0.3);  // of eighths: many exact ties
    const bool flat = chance(0.05);
    for (std::int64_t i = 0; i < vocab_; ++i) {
      float& x = row(r)[i];
      x = flat ? -1.5f : normal(random_);
      if (grid) x = std::round(x * 8) / 8;
    }
    if (chance(0.3))
      for (std::int64_t i = integer(0, vocab_); i > 0; --i) row(r)[integer(0, vocab_ - 1)] = -kInf;
    if (chance(0.05)) row(r)[integer(0, vocab_ - 1)] = kInf;
    if (chance(0.05)) row(r)[integer(0, vocab_ - 1)] = std::nanf("");
    if (chance(0.1)) row(r)[integer(0, vocab_ - 1)] = 3e38f;
    if (chance(0.1)) row(r)[integer(0, vocab_ - 1)] = -3e38f;
    if (chance(0.1)) row(r)[integer(0, vocab_ - 1)] = -0.0f;
  }

  void fill_counts(std::int64_t r) {
    for (std::int64_t i = integer(0, 40); i > 0; --i)
      counts[static_cast<std::size_t>(r * vocab_ + integer(0, vocab_ - 1))] =
          (chance(0.5) ? TokenCounts::kInPrompt : 0) + static_cast<std::uint32_t>(integer(0, 5));
  }

  SlotSampling random_params() {
    constexpr float kTemperatures[] = {0.0f, 1e-45f, 1e-3f, 3.4e38f};
    SamplingParams p;
    p.temperature = chance(0.2) ? kTemperatures[integer(0, 3)] : number(0.2f, 3);
    if (chance(0.5)) p.top_k = static_cast<std::int32_t>(integer(1, chance(0.5) ? vocab_ + 3 : 50));
    if (chance(0.5)) p.top_p = chance(0.1) ? 1e-30f : number(0.01f, 1);
    if (chance(0.4)) p.min_p = chance(0.2) ? 1.0f : number(0, 0.3f);
    if (chance(0.3)) p.repetition_penalty = chance(0.2) ? 100.0f : number(0.01f, 3);
    if (chance(0.3)) p.presence_penalty = number(-2, 2);
    if (chance(0.3)) p.frequency_penalty = number(-2, 2);
    std::vector<TokenBias> biases;
    std::vector<std::int32_t> suppressed;
    const auto id = [&] { return static_cast<std::int32_t>(integer(0, vocab_ - 1)); };
    if (chance(0.3))
      for (std::int64_t i = chance(0.1) ? kMaxBiases : integer(1, 20); i > 0; --i)
        biases.push_back({id(), number(-100, 100)});
    if (chance(0.4))
      for (std::int64_t i = chance(0.1) ? kMaxSuppressed : integer(1, 5); i > 0; --i)
        suppressed.push_back(id());
    p.logit_bias = biases;
    p.suppressed_ids = suppressed;
    p.min_tokens = chance(0.5) ? 1 << 21 : 0;
    p.logprobs = chance(0.5) ? -1 : static_cast<std::int32_t>(integer(0, kMaxLogprobs));
    p.seed = static_cast<std::uint64_t>(integer(0, std::numeric_limits<std::int64_t>::max()));
    p.validate(static_cast<std::int32_t>(vocab_));
    return make_slot_sampling(p, integer(0, 100));
  }

  std::int64_t rows_;
  std::int64_t vocab_;
  std::mt19937_64 random_;
};

}  // namespace quatrain::testing

// SPDX-License-Identifier: Apache-2.0
// The sample operation of the CPU backend: rows find their slots, padding stays untouched.
#include "backends/cpu/cpu_ops.h"
#include "support/sample_harness.h"

namespace quatrain::testing {
namespace {

TEST(SampleOp, RowsAreTheDefinition) {
  CpuOps cpu(3);
  for (const std::int64_t vocab : {1, 3, 61, 500}) {
    cpu.reserve({.vocab_size = vocab});
    for (unsigned seed = 0; seed < 20; ++seed) {
      SampleCase rows(17, vocab, seed);
      rows.slots[3] = rows.slots[16] = -1;
      rows.expect_defined_results(cpu);
    }
  }
}

TEST(SampleOp, ParametersSurviveTheTrip) {
  const std::vector<TokenBias> biases = {{5, 1.0f}, {2, -3.0f}, {5, 0.5f}};
  const std::vector<std::int32_t> suppressed = {9, 4};
  const SamplingParams params = {.temperature = 0.5f,
                                 .top_k = 7,
                                 .top_p = 0.25f,
                                 .min_p = 0.125f,
                                 .repetition_penalty = 1.5f,
                                 .presence_penalty = 0.75f,
                                 .frequency_penalty = -1.0f,
                                 .logit_bias = biases,
                                 .suppressed_ids = suppressed,
                                 .min_tokens = 3,
                                 .logprobs = 2,
                                 .seed = 1ull << 60};
  const SlotSampling slot = make_slot_sampling(params, 11);
  const SamplingParams back = sampling_params(slot);
  EXPECT_EQ(slot.prompt_length, 11);
  EXPECT_EQ(back.temperature, params.temperature);
  EXPECT_EQ(back.top_k, params.top_k);
  EXPECT_EQ(back.top_p, params.top_p);
  EXPECT_EQ(back.min_p, params.min_p);
  EXPECT_EQ(back.repetition_penalty, params.repetition_penalty);
  EXPECT_EQ(back.presence_penalty, params.presence_penalty);
  EXPECT_EQ(back.frequency_penalty, params.frequency_penalty);
  EXPECT_EQ(back.min_tokens, params.min_tokens);
  EXPECT_EQ(back.logprobs, params.logprobs);
  EXPECT_EQ(back.seed, params.seed);
  ASSERT_EQ(back.logit_bias.size(), 3u);  // by id, entries of one id in their order
  EXPECT_EQ(back.logit_bias[0].id, 2);
  EXPECT_EQ(back.logit_bias[1].bias, 1.0f);
  EXPECT_EQ(back.logit_bias[2].bias, 0.5f);
  EXPECT_TRUE(std::ranges::equal(back.suppressed_ids, suppressed));
}

}  // namespace
}  // namespace quatrain::testing

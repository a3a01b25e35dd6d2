// SPDX-License-Identifier: Apache-2.0
// The sampler on cases worked out by hand: known answers, ties, penalties, faults, messages.
#include "ops/sampling.h"

#include <array>

#include "core/error.h"
#include "core/step_guard.h"
#include "ops/sampling_reference.h"

namespace quatrain::testing {
namespace {

// ---- Random numbers and weights ----

TEST(Philox, KnownAnswers) {
  const auto expect = [](Philox4 counter, std::uint32_t key0, std::uint32_t key1,
                         const Philox4& expected) {
    const Philox4 out = philox4x32_10(counter, key0, key1);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(out.word[i], expected.word[i]) << i;
  };
  constexpr std::uint32_t kOnes = 0xFFFFFFFFu;
  expect({{0, 0, 0, 0}}, 0, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  expect({{kOnes, kOnes, kOnes, kOnes}}, kOnes, kOnes,
         {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  expect({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0,
         {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

TEST(Philox, AllBitsOfSeedAndPositionCount) {
  EXPECT_EQ(random_bits(0, 0), 0xe169c58d6627e8d5u);
  const std::uint64_t base = random_bits(0x0123456789ABCDEF, 0x42);
  for (int bit = 0; bit < 64; ++bit) {
    EXPECT_NE(random_bits(0x0123456789ABCDEF ^ (1ull << bit), 0x42), base);
    EXPECT_NE(random_bits(0x0123456789ABCDEF, 0x42 ^ (1ull << bit)), base);
  }
}

TEST(SoftmaxWeight, IsTheExponentialToOneUnit) {
  EXPECT_EQ(softmax_weight(0.0), kUnitWeight);
  EXPECT_EQ(softmax_weight(-0.0), kUnitWeight);
  EXPECT_EQ(softmax_weight(-kInf), 0u);
  EXPECT_EQ(softmax_weight(-1e300), 0u);
  EXPECT_EQ(softmax_weight(-31.2), 0u);  // e^-31.2 is 0.497 units
  EXPECT_EQ(softmax_weight(-31.1), 1u);
  Rng rng(5);
  for (int i = 0; i < 200000; ++i) {
    const double x = i % 2 == 0 ? -uniform(rng, 0, 33) : -std::exp(-uniform(rng, 0, 40));
    const double exact = std::exp(x) * static_cast<double>(kUnitWeight);
    ASSERT_NEAR(static_cast<double>(softmax_weight(x)), exact, 0.52) << x;
  }
}

// ---- Order, ties, greedy ----

TEST(Sampling, GreedyTakesTheLargestAndTheLowestIdOfATie) {
  const SamplingParams greedy = {.temperature = 0.0f};
  EXPECT_EQ(token_of(std::array{1.0f, 3.0f, 2.0f}, greedy, kLastBits), 1);
  EXPECT_EQ(token_of(std::array{1.0f, 3.0f, 3.0f, 3.0f}, greedy, kLastBits), 1);
  EXPECT_EQ(token_of(std::array{-2.0f, -0.0f, 0.0f}, greedy, kLastBits), 1);
  EXPECT_EQ(token_of(std::array{-2.0f, 0.0f, -0.0f}, greedy, kLastBits), 1);
  EXPECT_EQ(token_of(std::array{-kInf, -3e38f, -3.1e38f}, greedy, kLastBits), 1);
  EXPECT_EQ(token_of(std::array{-1e-45f, 1e-45f, 0.0f}, greedy, kLastBits), 1);
  EXPECT_EQ(token_of(std::array{7.0f}, greedy, 0), 0);
}

TEST(Sampling, TiesAreWalkedByAscendingId) {
  const std::vector<float> logits = {-1.0f, 0.0f, -0.0f, 0.0f, -0.0f, -1.0f};
  const SamplingParams top4 = {.top_k = 4};
  for (int i = 0; i < 4; ++i) {  // intervals are half open
    EXPECT_EQ(token_of(logits, top4, bits_at(0.25 * i)), 1 + i);
    EXPECT_EQ(token_of(logits, top4, bits_at(0.25 * i) + (kLastBits >> 2)), 1 + i);
  }
  // A cut through a tie keeps the lowest ids.
  EXPECT_EQ(token_of(logits, {.top_k = 2}, kLastBits), 2);
  EXPECT_EQ(token_of(logits, {.top_k = 5}, kLastBits), 0);
  EXPECT_EQ(token_of(std::vector<float>(10, 2.0f), {.top_p = 0.25f}, kLastBits), 2);
  EXPECT_EQ(token_of(std::vector<float>(10, 2.0f), {.min_p = 1.0f}, kLastBits), 9);
}

// Probabilities 0.5, 0.3, 0.15, 0.05: every filter works on what the one before left.
TEST(Sampling, FiltersApplyInTheStatedOrder) {
  const std::vector<float> logits = {std::log(0.05f), std::log(0.3f), std::log(0.5f),
                                     std::log(0.15f)};
  const auto last = [&](const SamplingParams& p) { return token_of(logits, p, kLastBits); };
  EXPECT_EQ(last({}), 0);
  EXPECT_EQ(last({.top_k = -1}), 0);
  EXPECT_EQ(last({.top_k = 3}), 3);
  EXPECT_EQ(last({.top_p = 0.79f}), 1);
  EXPECT_EQ(last({.top_p = 0.81f}), 3);
  EXPECT_EQ(last({.top_k = 3, .top_p = 0.83f}), 1);  // 0.8 of 0.95 is 0.842
  EXPECT_EQ(last({.min_p = 0.29f}), 3);              // 0.15 / 0.5 is 0.3
  EXPECT_EQ(last({.min_p = 0.31f}), 1);
  // Top-p sees the mass before min-p: 0.5 of 1 ends before 0.55; after min-p it would be 0.5 of
  // 0.8.
  EXPECT_EQ(last({.top_p = 0.55f, .min_p = 0.5f}), 1);
  EXPECT_EQ(last({.temperature = 0.25f, .top_p = 0.85f}), 2);  // 0.0625 of 0.0711 is 0.879
  EXPECT_EQ(last({.top_p = 1e-30f}), 2);
  EXPECT_EQ(last({.temperature = 1e-30f}), 2);
  EXPECT_EQ(last({.temperature = 3e38f}), 0);
}

// ---- Bias, penalties, suppression ----

TEST(Sampling, PenaltiesByHand) {
  //                                 both  prompt  output twice  unseen
  const std::vector<float> logits = {4.0f, -2.0f, 3.0f, 1.0f};
  std::vector<std::uint32_t> counts(4, 0xFFFFFFFFu);
  TokenCounts view{counts};
  view.clear();
  view.add_prompt(std::array{1, 0, 1});
  view.add_output(0);
  view.add_output(2);
  view.add_output(2);
  EXPECT_EQ(counts, (std::vector<std::uint32_t>{0x80000001u, 0x80000000u, 2u, 0u}));

  SamplerWorkspace workspace(4);
  const auto adjusted = [&](const SamplingParams& params) {
    EXPECT_EQ(
        sample_with({.logits = logits, .counts = view.entries()}, params, 0, workspace).status,
        SampleStatus::kOk);
    return workspace.logits;
  };
  using Row = std::vector<float>;
  EXPECT_EQ(adjusted({.repetition_penalty = 2.0f}), (Row{2.0f, -4.0f, 1.5f, 1.0f}));
  EXPECT_EQ(adjusted({.presence_penalty = 0.5f}), (Row{3.5f, -2.0f, 2.5f, 1.0f}));
  EXPECT_EQ(adjusted({.frequency_penalty = 0.5f}), (Row{3.5f, -2.0f, 2.0f, 1.0f}));
  EXPECT_EQ(adjusted({.repetition_penalty = 2.0f, .presence_penalty = 1, .frequency_penalty = -1}),
            (Row{2.0f, -4.0f, 2.5f, 1.0f}));
  // Bias comes first: it changes the sign that the repetition penalty looks at.
  const std::array bias = {TokenBias{1, 6.0f}, TokenBias{3, -6.0f}};
  EXPECT_EQ(adjusted({.repetition_penalty = 2.0f, .logit_bias = bias}),
            (Row{2.0f, 2.0f, 1.5f, -5.0f}));
}

TEST(Sampling, BiasAloneAndTheCallersRowStaysUntouched) {
  const std::vector<float> logits = {0.0f, 1.0f, 2.0f};
  const std::array bias = {TokenBias{0, 100.0f}, TokenBias{2, -100.0f}};
  EXPECT_EQ(token_of(logits, {.temperature = 0.0f, .logit_bias = bias}, 0), 0);
  EXPECT_EQ(token_of(logits, {.logit_bias = bias}, kLastBits), 0);
  EXPECT_EQ(logits, (std::vector<float>{0.0f, 1.0f, 2.0f}));
}

TEST(Sampling, SuppressedUntilMinTokens) {
  const std::vector<float> logits = {0.0f, 9.0f, 1.0f};
  const std::array<std::int32_t, 1> eos = {1};
  const std::array bias = {TokenBias{1, 100.0f}};  // comes before, so it cannot win
  SamplerWorkspace workspace(3);
  for (const std::int32_t length : {0, 1, 2, 3}) {
    const auto result =
        sample_with({.logits = logits, .output_length = length},
                    {.temperature = 0, .logit_bias = bias, .suppressed_ids = eos, .min_tokens = 2},
                    0, workspace);
    EXPECT_EQ(result.token, length < 2 ? 2 : 1) << length;
  }
}

TEST(Sampling, MaskedTokensAreNeverDrawn) {
  const std::vector<float> logits = {-kInf, 1.0f, -kInf, 0.5f, -kInf};
  EXPECT_EQ(token_of(logits, {}, 0), 1);
  EXPECT_EQ(token_of(logits, {}, kLastBits), 3);
  EXPECT_EQ(token_of(logits, {.top_k = 5}, kLastBits), 3);
  EXPECT_EQ(token_of(logits, {.min_p = 1e-20f}, kLastBits), 3);
}

TEST(TokenCounts, RefusesIdsOutsideTheVocabulary) {
  std::vector<std::uint32_t> counts(4);
  TokenCounts view{counts};
  EXPECT_THROW(view.add_output(4), Error);
  EXPECT_THROW(view.add_output(-1), Error);
  EXPECT_THROW(view.add_prompt(std::array{0, 4}), Error);
}

// ---- Log-probabilities ----

TEST(Sampling, LogprobsAreOfTheRawRow) {
  Rng rng(6);
  for (int i = 0; i < 300; ++i) {
    Scenario s(rng);
    s.params.logprobs = static_cast<std::int32_t>(below(rng, 21));
    double sum = 0;
    for (const float x : s.logits) sum += std::exp(static_cast<double>(x));
    const auto exact = [&](std::int32_t id) { return s.logits[id] - std::log(sum); };
    SamplerWorkspace workspace(vocab_of(s.logits));
    const SampleResult result = sample(s.row, s.params, workspace);
    ASSERT_EQ(result.status, SampleStatus::kOk);
    EXPECT_NEAR(result.logprob, exact(result.token), 2e-6);

    std::vector<std::int32_t> order(s.logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int32_t a, std::int32_t b) { return s.logits[a] > s.logits[b]; });
    ASSERT_EQ(result.top.size(), std::min<std::size_t>(s.params.logprobs, order.size()));
    for (std::size_t k = 0; k < result.top.size(); ++k) {
      EXPECT_EQ(result.top[k].id, order[k]);
      const double expected = std::max<double>(exact(order[k]), kMinLogprob);
      EXPECT_NEAR(result.top[k].logprob, expected, 2e-6);
    }
  }
}

TEST(Sampling, LogprobsAreClampedAndOptional) {
  const std::vector<float> logits = {0.0f, -kInf, -20000.0f, 0.0f};
  SamplerWorkspace workspace(4);
  SampleResult result = sample_with({.logits = logits}, {.logprobs = 4}, 0, workspace);
  ASSERT_EQ(result.top.size(), 4u);
  EXPECT_NEAR(result.top[0].logprob, std::log(0.5), 1e-7);
  EXPECT_EQ(result.top[1].id, 3);
  EXPECT_EQ(result.top[2].id, 2);
  EXPECT_EQ(result.top[2].logprob, kMinLogprob);
  EXPECT_EQ(result.top[3].id, 1);
  EXPECT_EQ(result.top[3].logprob, kMinLogprob);
  result = sample_with({.logits = logits}, {.logprobs = 0}, 0, workspace);
  EXPECT_NEAR(result.logprob, std::log(0.5), 1e-7);
  EXPECT_TRUE(result.top.empty());
  EXPECT_TRUE(sample_with({.logits = logits}, {}, 0, workspace).top.empty());
}

// ---- Faults ----

TEST(Sampling, NonFiniteRowsAreRefused) {
  Rng rng(7);
  for (const std::size_t n : {1, 7, 1000}) {
    SamplerWorkspace workspace(static_cast<std::int32_t>(n));
    for (const float bad : {kNan, -kNan, kInf}) {
      for (const std::size_t at : {std::size_t{0}, n / 2, n - 1}) {
        std::vector<float> logits = gauss_row(rng, n, 1);
        logits[at] = bad;
        for (const float temperature : {0.0f, 1.0f}) {
          const auto result = sample_with(
              {.logits = logits}, {.temperature = temperature, .logprobs = 3}, 0, workspace);
          EXPECT_EQ(result.status, SampleStatus::kNonFinite);
          EXPECT_EQ(result.token, -1);
          EXPECT_TRUE(result.top.empty());
        }
      }
    }
  }
  // A bad logit is found even where the parameters would hide it.
  SamplerWorkspace workspace(2);
  const std::array<std::int32_t, 1> hidden = {0};
  for (const float bad : {kNan, kInf}) {
    const SamplingParams params = {.top_k = 1, .suppressed_ids = hidden, .min_tokens = 1};
    EXPECT_EQ(sample_with({.logits = std::array{bad, 1.0f}}, params, 0, workspace).status,
              SampleStatus::kNonFinite);
  }
  // An overflow in a penalty is a fault of the row as well.
  std::array<std::uint32_t, 2> counts = {1, 0};
  EXPECT_EQ(sample_with({.logits = std::array{3e38f, 1.0f}, .counts = counts},
                        {.repetition_penalty = 0.01f}, 0, workspace)
                .status,
            SampleStatus::kNonFinite);
}

TEST(Sampling, NoCandidateIsAStatus) {
  SamplerWorkspace workspace(2);
  EXPECT_EQ(sample_with({.logits = std::array{-kInf, -kInf}}, {}, 0, workspace).status,
            SampleStatus::kNoCandidate);
  const std::array<std::int32_t, 2> all = {0, 1};
  const auto result = sample_with({.logits = std::array{1.0f, 2.0f}},
                                  {.suppressed_ids = all, .min_tokens = 1}, 0, workspace);
  EXPECT_EQ(result.status, SampleStatus::kNoCandidate);
  EXPECT_EQ(result.token, -1);
}

TEST(Sampling, WrongSizesAreErrors) {
  SamplerWorkspace workspace(3);
  EXPECT_THROW((void)sample_with({.logits = std::array{1.0f, 2.0f}}, {}, 0, workspace), Error);
  EXPECT_THROW((void)sample_with({.logits = std::array{1.0f, 2.0f, 3.0f}},
                                 {.presence_penalty = 1.0f}, 0, workspace),
               Error);
  EXPECT_THROW(SamplerWorkspace(0), Error);
  EXPECT_THROW(SamplerWorkspace(kMaxSamplerVocab + 1), Error);
}

TEST(Sampling, ACallAllocatesNothing) {
  Rng rng(8);
  const std::vector<float> logits = gauss_row(rng, kModelVocab, 1);
  const std::vector<std::uint32_t> counts(kModelVocab, 1);
  const std::array bias = {TokenBias{5, 1.0f}};
  const std::array<std::int32_t, 1> eos = {1};
  SamplerWorkspace workspace(kModelVocab);
  SamplingParams params = {.presence_penalty = 0.5f, .logit_bias = bias, .suppressed_ids = eos};
  params.min_tokens = 1;
  params.logprobs = kMaxLogprobs;
  std::int32_t top_p_last = 0;
  {
    const StepGuard guard("sample");
    for (const float temperature : {0.0f, 1.0f}) {
      for (const std::int32_t top_k : {0, 50, 60000}) {
        for (const float top_p : {0.9f, 1.0f}) {
          params.temperature = temperature;
          params.top_k = top_k;
          params.top_p = top_p;
          const SampleRow row = {.logits = logits, .counts = counts};
          top_p_last = sample_with(row, params, kLastBits, workspace).token;
        }
      }
    }
  }
  EXPECT_GE(top_p_last, 0);
}

// ---- validate() ----

TEST(SamplingParams, ValidateNamesTheField) {
  const auto message = [](const SamplingParams& params) -> std::string {
    try {
      params.validate(100);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(message({}), "accepted");
  EXPECT_EQ(message({.temperature = 0, .top_k = -1, .top_p = 1, .min_p = 1, .logprobs = 20}),
            "accepted");
  EXPECT_EQ(message({.top_p = 0}), "top_p: expected a number in (0, 1], found 0");
  EXPECT_EQ(message({.presence_penalty = 2.5f}),
            "presence_penalty: expected a number in [-2, 2], found 2.5");
  EXPECT_EQ(message({.top_k = -2}),
            "top_k: expected at least 1, or 0 or -1 for every token, found -2");
  EXPECT_EQ(message({.logprobs = 21}),
            "logprobs: expected a number in [0, 20], or -1 for none, found 21");
  EXPECT_EQ(message({.min_tokens = -1}), "min_tokens: expected at least 0, found -1");

  const std::array high = {TokenBias{100, 0}}, low = {TokenBias{-1, 0}}, big = {TokenBias{0, 101}},
                   nan = {TokenBias{0, kNan}};
  EXPECT_EQ(message({.logit_bias = high}), "logit_bias: expected token ids in [0, 100), found 100");
  for (const auto& bias : {high, low, big, nan}) {
    EXPECT_EQ(message({.logit_bias = bias}).rfind("logit_bias: ", 0), 0u);
  }
  const std::array<std::int32_t, 1> outside = {100};
  EXPECT_EQ(message({.suppressed_ids = outside}).rfind("suppressed_ids: ", 0), 0u);

  struct Field {
    const char* name;
    float SamplingParams::*member;
    float too_low, too_high;
  };
  for (const Field& field :
       {Field{"temperature", &SamplingParams::temperature, -0.1f, kInf},
        Field{"top_p", &SamplingParams::top_p, 0.0f, 1.1f},
        Field{"min_p", &SamplingParams::min_p, -0.1f, 1.1f},
        Field{"repetition_penalty", &SamplingParams::repetition_penalty, 0.0f, 101.0f},
        Field{"presence_penalty", &SamplingParams::presence_penalty, -2.1f, 2.1f},
        Field{"frequency_penalty", &SamplingParams::frequency_penalty, -2.1f, 2.1f}}) {
    for (const float bad : {field.too_low, field.too_high, kNan, kInf, -kInf}) {
      SamplingParams params;
      params.*field.member = bad;
      EXPECT_EQ(message(params).rfind(std::string(field.name) + ": ", 0), 0u)
          << field.name << ' ' << bad << ": " << message(params);
    }
  }
}

// ---- Given tokens ----

TEST(Scoring, GivesWhatADrawOfTheTokenWouldHave) {
  Rng rng(19);
  for (int i = 0; i < 50; ++i) {
    const std::vector<float> logits = gauss_row(rng, 40, 3);
    SamplerWorkspace workspace(40), other(40);
    const SampleResult drawn =
        sample_with({.logits = logits}, {.logprobs = 4}, bits_at(uniform(rng, 0, 1)), workspace);
    const SampleResult scored = score(logits, drawn.token, 4, other);
    EXPECT_EQ(scored.token, drawn.token);
    EXPECT_EQ(scored.logprob, drawn.logprob);
    EXPECT_EQ(scored.rank, drawn.rank);
    ASSERT_EQ(scored.top.size(), 4u);
    for (std::size_t t = 0; t < 4; ++t) EXPECT_EQ(scored.top[t].id, drawn.top[t].id);
    if (scored.rank <= 4) {
      EXPECT_EQ(scored.top[static_cast<std::size_t>(scored.rank - 1)].id, scored.token);
    }
  }
}

TEST(Scoring, RefusesRowsWithoutProbabilities) {
  SamplerWorkspace workspace(2);
  EXPECT_EQ(score(std::array{kNan, 1.0f}, 1, 0, workspace).status, SampleStatus::kNonFinite);
  EXPECT_EQ(score(std::array{-kInf, -kInf}, 1, 0, workspace).status, SampleStatus::kNonFinite);
  EXPECT_THROW((void)score(std::array{0.0f, 1.0f}, 2, 0, workspace), Error);
}

}  // namespace
}  // namespace quatrain::testing

// SPDX-License-Identifier: Apache-2.0
// The sampler against its naive reference on random rows and parameters, and chi-square statistics.
#include <array>

#include "ops/sampling_reference.h"

namespace quatrain::testing {
namespace {

TEST(Sampling, ReferenceKeepsTheSameCandidatesInTheSameOrder) {
  Rng rng(1);
  std::size_t n_candidates = 0;
  for (int i = 0; i < 6000; ++i) {
    const Scenario s(rng);
    SamplerWorkspace workspace(vocab_of(s.logits));
    const std::vector<Candidate> expected = reference(s.row, s.params);
    const auto token_at = [&](std::uint64_t bits) {
      return sample_with(s.row, s.params, bits, workspace).token;
    };
    ASSERT_EQ(token_at(0), expected.front().id) << i;
    if (expected.back().probability > 1e-9) {
      ASSERT_EQ(token_at(kLastBits), expected.back().id) << i;
    }
    double mass = 0;
    for (const Candidate& c : expected) {  // just inside both ends of the candidate's interval
      if (c.probability > 1e-4) {
        ASSERT_EQ(token_at(bits_at(mass + 1e-5 * (1 - mass))), c.id) << i;
        ASSERT_EQ(token_at(bits_at((mass + c.probability) * (1 - 1e-5))), c.id) << i;
        ++n_candidates;
      }
      mass += c.probability;
    }
  }
  EXPECT_GT(n_candidates, 40000u);
}

// The lazily sorted walk over a large row against a full sort of the same integer weights.
TEST(Sampling, LargeRowsMatchAFullSort) {
  Rng rng(2);
  for (const double deviation : {0.0, 0.01, 1.0, 3.0}) {
    std::vector<float> logits = gauss_row(rng, 20000, deviation);
    const float largest = *std::max_element(logits.begin(), logits.end());
    std::vector<std::int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int32_t a, std::int32_t b) { return logits[a] > logits[b]; });
    SamplerWorkspace workspace(vocab_of(logits));
    for (const std::int32_t top_k : {0, 1, 40, 1024, 1025, 5000, 19999, 20000, 30000}) {
      std::size_t kept = top_k == 0 ? order.size() : std::min<std::size_t>(top_k, order.size());
      std::vector<std::uint64_t> sums;
      for (std::size_t rank = 0; rank < kept; ++rank) {
        sums.push_back((sums.empty() ? 0 : sums.back()) +
                       softmax_weight(static_cast<double>(logits[order[rank]]) - largest));
      }
      for (int i = 0; i < 20; ++i) {
        const std::uint64_t random = i == 0 ? 0 : i == 1 ? kLastBits : rng();
        const auto target = static_cast<std::uint64_t>(static_cast<long double>(random) * 0x1p-64L *
                                                       static_cast<long double>(sums.back()));
        const auto rank = std::upper_bound(sums.begin(), sums.end(), target) - sums.begin();
        const auto result = sample_with({.logits = logits}, {.top_k = top_k}, random, workspace);
        ASSERT_EQ(result.token, order[rank]) << deviation << ' ' << top_k << ' ' << random;
      }
    }
  }
}

// ---- Statistics ----

/// The chi-square statistic minus its mean, in its standard deviations.
double chi_square_sigmas(const std::vector<double>& probability, const std::vector<int>& seen,
                         int draws) {
  double statistic = 0;
  int cells = 0;
  double rare_expected = 0, rare_seen = 0;
  const auto add = [&](double expected, double found) {
    statistic += (found - expected) * (found - expected) / expected;
    ++cells;
  };
  for (std::size_t id = 0; id < probability.size(); ++id) {
    const double expected = probability[id] * draws;
    if (expected >= 10) {
      add(expected, seen[id]);
    } else {
      rare_expected += expected;
      rare_seen += seen[id];
    }
  }
  if (rare_expected >= 5) add(rare_expected, rare_seen);
  const double degrees = cells - 1;
  return degrees == 0 ? 0 : (statistic - degrees) / std::sqrt(2 * degrees);
}

TEST(Sampling, DrawsFollowTheDistribution) {
  constexpr int kDraws = 200000;
  Rng rng(3);
  const std::vector<float> logits = gauss_row(rng, 50, 2);
  SamplerWorkspace workspace(50);
  const std::array settings = {
      SamplingParams{},
      SamplingParams{.temperature = 0.5f},
      SamplingParams{.temperature = 1.7f},
      SamplingParams{.top_k = 7},
      SamplingParams{.top_p = 0.8f},
      SamplingParams{.min_p = 0.05f},
      SamplingParams{.temperature = 1.3f, .top_k = 30, .top_p = 0.95f, .min_p = 0.02f},
  };
  for (std::size_t i = 0; i < settings.size(); ++i) {
    SamplingParams params = settings[i];
    params.seed = 1000 + i;
    std::vector<double> probability(50, 0.0);
    for (const Candidate& c : reference({.logits = logits}, params)) {
      probability[c.id] = c.probability;
    }
    std::vector<int> seen(50, 0);
    for (int position = 0; position < kDraws; ++position) {
      const SampleRow row = {.logits = logits, .position = static_cast<std::uint64_t>(position)};
      ++seen[sample(row, params, workspace).token];
    }
    for (std::size_t id = 0; id < 50; ++id) {
      if (probability[id] == 0) {
        EXPECT_EQ(seen[id], 0) << i;
      }
    }
    EXPECT_LT(chi_square_sigmas(probability, seen, kDraws), 5) << "setting " << i;
  }
}

// Neighbouring positions, and neighbouring seeds, must not be correlated.
TEST(Sampling, PositionsAndSeedsAreIndependent) {
  constexpr int kDraws = 200000;
  const std::vector<float> logits(8, 1.0f);
  SamplerWorkspace workspace(8);
  const auto draw = [&](std::uint64_t seed, std::uint64_t position) {
    return sample({.logits = logits, .position = position}, {.seed = seed}, workspace).token;
  };
  std::vector<int> by_position(64, 0), by_seed(64, 0);
  for (int i = 0; i < kDraws; ++i) {
    ++by_position[draw(7, 2 * i) * 8 + draw(7, 2 * i + 1)];
    ++by_seed[draw(2 * i, 99) * 8 + draw(2 * i + 1, 99)];
  }
  const std::vector<double> flat(64, 1.0 / 64);
  EXPECT_LT(chi_square_sigmas(flat, by_position, kDraws), 5);
  EXPECT_LT(chi_square_sigmas(flat, by_seed, kDraws), 5);
}

TEST(Sampling, SameSeedAndPositionGiveTheSameTokenWhateverElseRuns) {
  Rng rng(4);
  const std::vector<float> logits = gauss_row(rng, 500, 1);
  SamplerWorkspace workspace(500), other(500);
  std::vector<std::int32_t> first(300);
  for (std::uint64_t p = 0; p < first.size(); ++p) {
    first[p] = sample({.logits = logits, .position = p}, {.seed = 42}, workspace).token;
  }
  for (std::uint64_t p = first.size(); p-- > 0;) {  // backwards, other requests in between
    const std::vector<float> noise = gauss_row(rng, 500, 1);
    (void)sample({.logits = noise, .position = p}, {.top_k = 5, .seed = 1}, other);
    ASSERT_EQ(sample({.logits = logits, .position = p}, {.seed = 42}, other).token, first[p]);
  }
}

}  // namespace
}  // namespace quatrain::testing

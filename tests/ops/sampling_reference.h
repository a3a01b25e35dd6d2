// SPDX-License-Identifier: Apache-2.0
// The sampler's naive double-precision reference, and random rows for its tests.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "ops/sampling.h"

namespace quatrain::testing {

inline constexpr float kInf = std::numeric_limits<float>::infinity();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
inline constexpr std::uint64_t kLastBits = ~std::uint64_t{0};
inline constexpr std::int32_t kModelVocab = 129280;

using Rng = std::mt19937_64;

inline double uniform(Rng& rng, double low, double high) {
  return low + (high - low) * (static_cast<double>(rng() >> 11) * 0x1p-53);
}
inline std::size_t below(Rng& rng, std::size_t n) { return rng() % n; }
inline bool chance(Rng& rng, double p) { return uniform(rng, 0, 1) < p; }
inline float gauss(Rng& rng, double deviation) {
  const double u = uniform(rng, 1e-12, 1), v = uniform(rng, 0, 6.283185307179586);
  return static_cast<float>(deviation * std::sqrt(-2 * std::log(u)) * std::cos(v));
}

inline std::vector<float> gauss_row(Rng& rng, std::size_t n, double deviation) {
  std::vector<float> row(n);
  for (float& x : row) x = gauss(rng, deviation);
  return row;
}

inline std::int32_t vocab_of(std::span<const float> row) {
  return static_cast<std::int32_t>(row.size());
}

/// The token of one call that must succeed.
inline std::int32_t token_of(std::span<const float> logits, const SamplingParams& params,
                             std::uint64_t random) {
  SamplerWorkspace workspace(vocab_of(logits));
  const SampleResult result = sample_with({.logits = logits}, params, random, workspace);
  EXPECT_EQ(result.status, SampleStatus::kOk);
  return result.token;
}

// ---- The reference ----

struct Candidate {
  std::int32_t id;
  double logit;
  double probability;  // after renormalisation over the kept candidates
};

inline void renormalise(std::vector<Candidate>& list) {
  double sum = 0;
  for (const Candidate& c : list) sum += c.probability;
  for (Candidate& c : list) c.probability /= sum;
}

/// The kept candidates in order, in double precision, one step after another.
inline std::vector<Candidate> reference(const SampleRow& row, const SamplingParams& p) {
  std::vector<Candidate> list;
  for (std::size_t id = 0; id < row.logits.size(); ++id) {
    double logit = row.logits[id];
    for (const TokenBias& b : p.logit_bias) {
      if (b.id == static_cast<std::int32_t>(id)) logit += b.bias;
    }
    const bool in_prompt = !row.counts.empty() && row.counts[id] >> 31 != 0;
    const std::uint32_t count = row.counts.empty() ? 0 : row.counts[id] & 0x7FFFFFFFu;
    if (in_prompt || count > 0) {
      logit = logit > 0 ? logit / p.repetition_penalty : logit * p.repetition_penalty;
    }
    logit -= static_cast<double>(p.frequency_penalty) * count;
    if (count > 0) logit -= p.presence_penalty;
    const bool listed =
        std::find(p.suppressed_ids.begin(), p.suppressed_ids.end(), id) != p.suppressed_ids.end();
    if (listed && row.output_length < p.min_tokens) continue;
    if (logit == -kInf) continue;
    list.push_back({static_cast<std::int32_t>(id), logit, 0});
  }
  std::stable_sort(list.begin(), list.end(),
                   [](const Candidate& a, const Candidate& b) { return a.logit > b.logit; });
  if (p.temperature == 0) list.resize(1);
  const double temperature = p.temperature == 0 ? 1 : p.temperature;
  const double largest = list[0].logit;
  for (Candidate& c : list) c.probability = std::exp((c.logit - largest) / temperature);
  if (p.top_k > 0 && static_cast<std::size_t>(p.top_k) < list.size()) list.resize(p.top_k);
  renormalise(list);
  if (p.top_p < 1) {
    double mass = 0;
    std::size_t n = 0;
    while (n < list.size() && mass < p.top_p) mass += list[n++].probability;
    list.resize(n);
    renormalise(list);
  }
  const double least = p.min_p * list[0].probability;
  std::erase_if(list, [&](const Candidate& c) { return c.probability < least; });
  renormalise(list);
  return list;
}

/// A row, its counts and parameters, drawn at random with every feature on or off.
struct Scenario {
  std::vector<float> logits;
  std::vector<std::uint32_t> counts;
  std::vector<TokenBias> bias;
  std::vector<std::int32_t> suppressed;
  SampleRow row;
  SamplingParams params;

  explicit Scenario(Rng& rng) {
    const std::size_t n = 1 + below(rng, 60);
    logits = gauss_row(rng, n, uniform(rng, 0.1, 4));
    if (chance(rng, 0.4)) {  // a grid of eighths: many exact ties
      for (float& x : logits) x = std::round(x * 8) / 8;
    }
    for (float& x : logits) {
      if (chance(rng, 0.02)) x = -kInf;
    }
    logits[below(rng, n)] = 0.5f;  // at least one token is not masked
    counts.assign(n, 0);
    TokenCounts view{counts};
    for (std::size_t i = below(rng, 20); i > 0; --i) {
      const auto id = static_cast<std::int32_t>(below(rng, n));
      if (chance(rng, 0.5)) {
        view.add_prompt(std::array{id});
      } else {
        view.add_output(id);
      }
    }
    row = {.logits = logits, .counts = counts};
    row.output_length = static_cast<std::int32_t>(below(rng, 4));
    set_params(rng);
  }
  Scenario(const Scenario&) = delete;
  Scenario& operator=(const Scenario&) = delete;

 private:
  void set_params(Rng& rng) {
    const std::size_t n = logits.size();
    const auto id = [&] { return static_cast<std::int32_t>(below(rng, n)); };
    const auto number = [&](double low, double high) {
      return static_cast<float>(uniform(rng, low, high));
    };
    params.temperature = chance(rng, 0.1) ? 0.0f : number(0.3, 2);
    if (chance(rng, 0.5)) params.top_k = static_cast<std::int32_t>(1 + below(rng, n + 3));
    if (chance(rng, 0.5)) params.top_p = number(0.01, 0.999);
    if (chance(rng, 0.4)) params.min_p = number(0, 0.6);
    if (chance(rng, 0.4)) params.repetition_penalty = number(0.5, 2);
    if (chance(rng, 0.4)) params.presence_penalty = number(-2, 2);
    if (chance(rng, 0.4)) params.frequency_penalty = number(-2, 2);
    if (chance(rng, 0.4)) {
      for (std::size_t i = below(rng, 4); i > 0; --i) bias.push_back({id(), number(-5, 5)});
    }
    params.min_tokens = static_cast<std::int32_t>(below(rng, 4));
    const bool finite_besides_first =
        std::count_if(logits.begin() + 1, logits.end(), [](float x) { return x > -kInf; }) > 0;
    if (chance(rng, 0.5) && finite_besides_first) suppressed = {0};
    params.logit_bias = bias;
    params.suppressed_ids = suppressed;
    params.validate(vocab_of(logits));
  }
};

inline std::uint64_t bits_at(double fraction) {
  return static_cast<std::uint64_t>(fraction * 18446744073709551616.0);
}

}  // namespace quatrain::testing

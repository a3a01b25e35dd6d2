// SPDX-License-Identifier: Apache-2.0
// The sampler on the host: checks, penalties, ordering and the draw. The contract is in the header.
#include "ops/sampling.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string_view>

#include "core/error.h"

namespace quatrain {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// ---- Parameters ----

void check_range(std::string_view field, float value, float low, float high) {
  if (!(value >= low && value <= high)) {
    fail("{}: expected a number in [{}, {}], found {}", field, low, high, value);
  }
}

void check_id(std::string_view field, std::int32_t id, std::int32_t vocab_size) {
  if (id < 0 || id >= vocab_size) {
    fail("{}: expected token ids in [0, {}), found {}", field, vocab_size, id);
  }
}

// ---- Steps 1 to 4 ----

bool all_usable(std::span<const float> logits) {
  std::uint32_t bad = 0;
  for (const float logit : logits) bad |= static_cast<std::uint32_t>(is_unusable_logit(logit));
  return bad == 0;
}

void apply_penalties(std::span<float> logits, std::span<const std::uint32_t> counts,
                     const SamplingParams& params) {
  for (std::size_t id = 0; id < logits.size(); ++id) {
    if (counts[id] == 0) continue;
    float logit = logits[id];
    logit = logit > 0.0f ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    const std::uint32_t count = counts[id] & TokenCounts::kOutputCount;
    if (count > 0) {
      logit =
          (logit - params.frequency_penalty * static_cast<float>(count)) - params.presence_penalty;
    }
    logits[id] = logit;
  }
}

/// The row after steps 1 to 4: the row itself when none of them applies.
std::span<const float> adjusted_logits(const SampleRow& row, const SamplingParams& params,
                                       SamplerWorkspace& workspace) {
  const bool suppress = row.output_length < params.min_tokens && !params.suppressed_ids.empty();
  if (params.logit_bias.empty() && !params.uses_counts() && !suppress) return row.logits;
  std::span<float> logits = workspace.logits;
  std::copy(row.logits.begin(), row.logits.end(), logits.begin());
  for (const TokenBias& entry : params.logit_bias) logits[entry.id] += entry.bias;
  if (params.uses_counts()) apply_penalties(logits, row.counts, params);
  if (suppress) {
    for (const std::int32_t id : params.suppressed_ids) logits[id] = -kInfinity;
  }
  return logits;
}

// ---- Order ----

/// A token as an integer that sorts by descending logit, then ascending id.
std::uint64_t token_key(float logit, std::size_t id) {
  return std::uint64_t{descending_bits(logit)} << 32 | id;
}

std::int32_t key_id(std::uint64_t key) { return static_cast<std::int32_t>(key & 0xFFFFFFFFu); }

float key_logit(std::uint64_t key) {
  return logit_from_descending(static_cast<std::uint32_t>(key >> 32));
}

std::uint64_t first_key(std::span<const float> logits) {
  std::uint64_t first = token_key(logits[0], 0);
  for (std::size_t id = 1; id < logits.size(); ++id) {
    first = std::min(first, token_key(logits[id], id));
  }
  return first;
}

/// The tokens of a row in order, sorted only as far as somebody has looked: the few tokens that
/// hold nearly all of the mass cost one pass over the row.
class OrderedTokens {
 public:
  OrderedTokens(std::span<const float> logits, std::span<std::uint64_t> keys) : keys_(keys) {
    for (std::size_t id = 0; id < logits.size(); ++id) keys[id] = token_key(logits[id], id);
  }

  /// Keeps the first `count` tokens.
  void truncate(std::size_t count) {
    if (count >= keys_.size()) return;
    if (count <= kHeapLimit) {
      sort_front(count);
    } else {
      std::nth_element(keys_.begin(), at(count), keys_.end());
    }
    keys_ = keys_.first(count);
  }

  std::size_t size() const { return keys_.size(); }

  std::uint64_t operator[](std::size_t rank) {
    while (rank >= sorted_) sort_front(std::min(std::max(kFirstChunk, 8 * sorted_), keys_.size()));
    return keys_[rank];
  }

  /// Every kept token, in no order.
  std::span<const std::uint64_t> all() const { return keys_; }

 private:
  using Iterator = std::span<std::uint64_t>::iterator;
  static constexpr std::size_t kFirstChunk = 64;
  static constexpr std::size_t kHeapLimit = 1024;  // a heap of this size stays in the L1 cache

  Iterator at(std::size_t rank) { return keys_.begin() + static_cast<std::ptrdiff_t>(rank); }

  /// Sorts on until the first `count` tokens are in place.
  void sort_front(std::size_t count) {
    if (count - sorted_ <= kHeapLimit) {
      std::partial_sort(at(sorted_), at(count), keys_.end());
    } else {
      if (count < keys_.size()) std::nth_element(at(sorted_), at(count), keys_.end());
      std::sort(at(sorted_), at(count));
    }
    sorted_ = count;
  }

  std::span<std::uint64_t> keys_;
  std::size_t sorted_ = 0;
};

// ---- Steps 5 to 9 ----

/// Weights at a temperature, relative to the row's largest logit.
class Weigher {
 public:
  Weigher(float largest, float temperature)
      : largest_(largest), inverse_temperature_(1.0 / temperature) {}

  std::uint64_t operator()(float logit) const {
    return softmax_weight((static_cast<double>(logit) - largest_) * inverse_temperature_);
  }
  std::uint64_t operator()(std::uint64_t key) const { return (*this)(key_logit(key)); }

 private:
  double largest_;
  double inverse_temperature_;
};

/// The mass of the prefix that top-p and min-p keep of `tokens`.
std::uint64_t kept_mass(OrderedTokens& tokens, const Weigher& weigh, const SamplingParams& params) {
  std::uint64_t total = 0;
  for (const std::uint64_t key : tokens.all()) total += weigh(key);
  if (params.top_p == 1.0f && params.min_p == 0.0f) return total;

  const double enough = static_cast<double>(params.top_p) * static_cast<double>(total);
  const double least = static_cast<double>(params.min_p) * static_cast<double>(kUnitWeight);
  std::uint64_t mass = 0;
  for (std::size_t rank = 0; rank < tokens.size(); ++rank) {
    const std::uint64_t weight = weigh(tokens[rank]);
    if (static_cast<double>(weight) < least) break;
    mass += weight;
    if (static_cast<double>(mass) >= enough) break;
  }
  return mass;
}

/// Steps 5 to 9 on a row with a finite largest logit.
std::int32_t draw(std::span<const float> logits, float largest, const SamplingParams& params,
                  std::uint64_t random, SamplerWorkspace& workspace) {
  OrderedTokens tokens(logits, workspace.keys);
  if (params.top_k > 0) tokens.truncate(static_cast<std::size_t>(params.top_k));
  const Weigher weigh(largest, params.temperature);
  const std::uint64_t mass = kept_mass(tokens, weigh, params);

  // floor(random / 2^64 * mass) is below mass, so the walk ends on a token of positive weight.
  __extension__ using Wide = unsigned __int128;
  const auto target = static_cast<std::uint64_t>(static_cast<Wide>(random) * mass >> 64);
  std::size_t rank = 0;
  for (std::uint64_t below = weigh(tokens[0]); below <= target; below += weigh(tokens[rank])) {
    ++rank;
  }
  return key_id(tokens[rank]);
}

// ---- What log-probabilities are made of ----

void add_ranks(std::span<const float> logits, std::int32_t count, SamplerWorkspace& workspace,
               SampledRow& result) {
  result.largest = key_logit(first_key(logits));
  const Weigher weigh(result.largest, 1.0f);
  const std::uint64_t chosen = token_key(logits[result.token], result.token);
  result.rank = 1;
  for (std::size_t id = 0; id < logits.size(); ++id) {
    result.total += weigh(logits[id]);
    result.rank += static_cast<std::int32_t>(token_key(logits[id], id) < chosen);
  }
  result.logit = key_logit(chosen);
  OrderedTokens tokens(logits, workspace.keys);
  result.top_count = std::min(count, static_cast<std::int32_t>(logits.size()));
  for (std::int32_t rank = 0; rank < result.top_count; ++rank) {
    const std::uint64_t key = tokens[static_cast<std::size_t>(rank)];
    result.top_ids[rank] = key_id(key);
    result.top_logits[rank] = key_logit(key);
  }
}

}  // namespace

void SamplingParams::validate(std::int32_t vocab_size) const {
  check_range("temperature", temperature, 0.0f, std::numeric_limits<float>::max());
  if (top_k < -1) fail("top_k: expected at least 1, or 0 or -1 for every token, found {}", top_k);
  if (!(top_p > 0.0f && top_p <= 1.0f)) {
    fail("top_p: expected a number in (0, 1], found {}", top_p);
  }
  check_range("min_p", min_p, 0.0f, 1.0f);
  check_range("repetition_penalty", repetition_penalty, 0.01f, 100.0f);
  check_range("presence_penalty", presence_penalty, -2.0f, 2.0f);
  check_range("frequency_penalty", frequency_penalty, -2.0f, 2.0f);
  if (logit_bias.size() > kMaxBiases)
    fail("logit_bias: expected at most {} entries, found {}", kMaxBiases, logit_bias.size());
  if (suppressed_ids.size() > kMaxSuppressed)
    fail("suppressed_ids: expected at most {} entries, found {}", kMaxSuppressed,
         suppressed_ids.size());
  for (const TokenBias& entry : logit_bias) {
    check_id("logit_bias", entry.id, vocab_size);
    check_range("logit_bias", entry.bias, -100.0f, 100.0f);
  }
  for (const std::int32_t id : suppressed_ids) check_id("suppressed_ids", id, vocab_size);
  if (min_tokens < 0) fail("min_tokens: expected at least 0, found {}", min_tokens);
  if (logprobs < -1 || logprobs > kMaxLogprobs) {
    fail("logprobs: expected a number in [0, {}], or -1 for none, found {}", kMaxLogprobs,
         logprobs);
  }
}

void TokenCounts::clear() { std::fill(entries_.begin(), entries_.end(), 0u); }

void TokenCounts::add_prompt(std::span<const std::int32_t> ids) {
  for (const std::int32_t id : ids) {
    check_id("prompt token", id, static_cast<std::int32_t>(entries_.size()));
    entries_[id] |= kInPrompt;
  }
}

void TokenCounts::add_output(std::int32_t id) {
  check_id("output token", id, static_cast<std::int32_t>(entries_.size()));
  ++entries_[id];
}

SamplerWorkspace::SamplerWorkspace(std::int32_t vocab_size) {
  if (vocab_size < 1 || vocab_size > kMaxSamplerVocab) {
    fail("vocab_size: expected a number in [1, {}], found {}", kMaxSamplerVocab, vocab_size);
  }
  logits.resize(vocab_size);
  keys.resize(vocab_size);
  top.resize(kMaxLogprobs);
}

SampledRow sample_row(const SampleRow& row, const SamplingParams& params, std::uint64_t random,
                      SamplerWorkspace& workspace) {
  QT_CHECK_EQ(row.logits.size(), workspace.keys.size(), "logits of a row to sample");
  if (params.uses_counts()) {
    QT_CHECK_EQ(row.counts.size(), workspace.keys.size(), "token counts of a row to sample");
  }
  SampledRow result;
  const auto refuse = [&](SampleStatus status) {
    result.status = status;
    return result;
  };
  if (!all_usable(row.logits)) return refuse(SampleStatus::kNonFinite);
  const std::span<const float> logits = adjusted_logits(row, params, workspace);
  const std::uint64_t first = first_key(logits);
  const float largest = key_logit(first);
  // Bounded parameters lift a logit past FP32 only from where no sound model puts one.
  if (largest == kInfinity) return refuse(SampleStatus::kNonFinite);
  if (largest == -kInfinity) return refuse(SampleStatus::kNoCandidate);

  result.token =
      params.temperature == 0.0f ? key_id(first) : draw(logits, largest, params, random, workspace);
  if (params.logprobs >= 0) add_ranks(row.logits, params.logprobs, workspace, result);
  return result;
}

SampleResult finish_sample(const SampledRow& row, std::span<ScoredToken> top) {
  SampleResult result;
  result.status = row.status;
  result.token = row.token;
  result.rank = row.rank;
  if (row.total == 0) return result;
  const double log_total =
      std::log(static_cast<double>(row.total) / static_cast<double>(kUnitWeight));
  const auto logprob = [&](float logit) {
    const double value = (static_cast<double>(logit) - row.largest) - log_total;
    return static_cast<float>(std::max(value, static_cast<double>(kMinLogprob)));
  };
  result.logprob = logprob(row.logit);
  for (std::int32_t i = 0; i < row.top_count; ++i)
    top[static_cast<std::size_t>(i)] = {.id = row.top_ids[i],
                                        .logprob = logprob(row.top_logits[i])};
  result.top = top.first(static_cast<std::size_t>(row.top_count));
  return result;
}

SampleResult sample_with(const SampleRow& row, const SamplingParams& params, std::uint64_t random,
                         SamplerWorkspace& workspace) {
  return finish_sample(sample_row(row, params, random, workspace), workspace.top);
}

SampleResult sample(const SampleRow& row, const SamplingParams& params,
                    SamplerWorkspace& workspace) {
  return sample_with(row, params, random_bits(params.seed, row.position), workspace);
}

SampleResult score(std::span<const float> logits, std::int32_t token, std::int32_t count,
                   SamplerWorkspace& workspace) {
  QT_CHECK_EQ(logits.size(), workspace.keys.size(), "logits of a row to score");
  check_id("token to score", token, static_cast<std::int32_t>(logits.size()));
  SampledRow result;
  // A row of nothing but masks has no probabilities either.
  if (!all_usable(logits) || key_logit(first_key(logits)) == -kInfinity) {
    result.status = SampleStatus::kNonFinite;
  } else {
    result.token = token;
    add_ranks(logits, count, workspace, result);
  }
  return finish_sample(result, workspace.top);
}

}  // namespace quatrain

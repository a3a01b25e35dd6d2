// SPDX-License-Identifier: Apache-2.0
// The sampler's mathematics: from one row of FP32 logits to one token and its log-probabilities.
//
// Plain functions on host memory, the definition that every backend's sampler must reproduce. Knows
// nothing of sequences, stop conditions or text: see the runtime.
//
// Order of operations:
//   1. logit bias                                          logit + bias
//   2. repetition penalty, tokens of the prompt or output  logit > 0 ? logit / r : logit * r
//   3. frequency and presence penalty, output tokens only  (logit - f * count) - p
//   4. suppressed ids, while fewer than min_tokens are out logit = -inf
//   5. temperature                                         x = (logit - largest logit) / T
//   6. top-k    the first k tokens in order
//   7. top-p    of these the shortest prefix that holds at least top_p of their mass
//   8. min-p    of these the tokens at least min_p times as likely as the likeliest
//   9. inverse CDF with one 64-bit random number
// "In order" is by descending logit after step 4, ties by ascending id, so the tokens kept are
// always a prefix. Temperature 0 is greedy: the first token in order, steps 5 to 9 skipped. Steps 1
// to 3 are single FP32 operations in the order written, without contraction.
//
// Exactness: a token's weight is e^x as an integer in units of 2^-44 (softmax_weight), so a mass is
// an integer sum, the same in any order of addition, and the drawn token depends on nothing but
// logits, parameters, seed and position. A token below 2^-45 of the likeliest weighs 0 and is never
// drawn.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/codec.h"

namespace quatrain {

// ---- Random numbers ----

struct Philox4 {
  std::uint32_t word[4];
};

/// Philox4x32 with 10 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11):
/// a keyed bijection of 128-bit counters whose outputs are independent random words.
QT_HOST_DEVICE inline Philox4 philox4x32_10(Philox4 counter, std::uint32_t key0,
                                            std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * counter.word[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * counter.word[2];
    counter = {{static_cast<std::uint32_t>(p1 >> 32) ^ counter.word[1] ^ key0,
                static_cast<std::uint32_t>(p1),
                static_cast<std::uint32_t>(p0 >> 32) ^ counter.word[3] ^ key1,
                static_cast<std::uint32_t>(p0)}};
    key0 += 0x9E3779B9u;  // golden ratio
    key1 += 0xBB67AE85u;  // sqrt(3) - 1
  }
  return counter;
}

/// The 64 random bits that choose the token at `position` of a sequence: counter = position, key =
/// seed, so they depend on nothing else that runs.
QT_HOST_DEVICE inline std::uint64_t random_bits(std::uint64_t seed, std::uint64_t position) {
  const Philox4 counter = {
      {static_cast<std::uint32_t>(position), static_cast<std::uint32_t>(position >> 32), 0, 0}};
  const Philox4 out = philox4x32_10(counter, static_cast<std::uint32_t>(seed),
                                    static_cast<std::uint32_t>(seed >> 32));
  return out.word[0] | std::uint64_t{out.word[1]} << 32;
}

// ---- Weights ----

QT_HOST_DEVICE inline double double_from_bits(std::uint64_t bits) {
#if defined(__CUDA_ARCH__)
  return __longlong_as_double(static_cast<long long>(bits));
#else
  return __builtin_bit_cast(double, bits);
#endif
}

QT_HOST_DEVICE inline std::uint64_t bits_from_double(double value) {
#if defined(__CUDA_ARCH__)
  return static_cast<std::uint64_t>(__double_as_longlong(value));
#else
  return __builtin_bit_cast(std::uint64_t, value);
#endif
}

/// The weight of the likeliest token: e^0.
inline constexpr std::uint64_t kUnitWeight = std::uint64_t{1} << 44;

/// Above this a sum of weights could pass 2^63.
inline constexpr std::int32_t kMaxSamplerVocab = 1 << 19;

/// e^x for x ≤ 0 (-inf gives 0) as a multiple of 2^-44, to within one unit. Only IEEE double
/// additions and multiplications: with contraction off every compiler and device gives the same.
QT_HOST_DEVICE inline std::uint64_t softmax_weight(double x) {
  constexpr double kRound = 6755399441055744.0;       // 1.5 * 2^52: adding it rounds to an integer
  constexpr double kRoundUnits = 4503599627370496.0;  // 2^52: the same, for values of 0 and above
  x = x > -64.0 ? x : -64.0;
  const double shifted = x * 0x1.71547652b82fep+0 + kRound;
  const double n = shifted - kRound;  // e^x = 2^n e^r with |r| ≤ ln(2) / 2
  const double r = (x - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;  // ln 2 in two parts
  double p = 1.0 / 479001600.0;  // the series to r^12; the rest is below 2^-52
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const std::uint64_t exponent = bits_from_double(shifted) - bits_from_double(kRound) + 1023 + 44;
  const double units = p * double_from_bits(exponent << 52);
  return bits_from_double(units + kRoundUnits) - bits_from_double(kRoundUnits);
}

// ---- Order ----

/// A logit as an integer that sorts by descending logit; -0 and +0 are equal.
QT_HOST_DEVICE inline std::uint32_t descending_bits(float logit) {
  const std::uint32_t bits = bits_from_float(logit + 0.0f);  // -0 becomes +0
  return bits >> 31 != 0 ? bits : ~bits & 0x7FFFFFFFu;
}

QT_HOST_DEVICE inline float logit_from_descending(std::uint32_t descending) {
  return float_from_bits(descending >> 31 != 0 ? descending : ~descending & 0x7FFFFFFFu);
}

/// NaN or +inf. -inf is a mask.
QT_HOST_DEVICE inline bool is_unusable_logit(float logit) {
  const std::uint32_t bits = bits_from_float(logit);
  return (bits & 0x7FFFFFFFu) >= 0x7F800000u && bits != 0xFF800000u;
}

// ---- Parameters and results ----

struct TokenBias {
  std::int32_t id;
  float bias;
};

inline constexpr std::int32_t kMaxBiases = 1024;
inline constexpr std::int32_t kMaxSuppressed = 128;

/// What a request asks of the sampler. The spans are the caller's and must outlive every use.
struct SamplingParams {
  float temperature = 1.0f;                           // finite, ≥ 0; 0 is greedy
  std::int32_t top_k = 0;                             // ≥ 1; 0 and -1 keep every token
  float top_p = 1.0f;                                 // (0, 1]
  float min_p = 0.0f;                                 // [0, 1]
  float repetition_penalty = 1.0f;                    // [0.01, 100]
  float presence_penalty = 0.0f;                      // [-2, 2]
  float frequency_penalty = 0.0f;                     // [-2, 2]
  std::span<const TokenBias> logit_bias = {};         // ≤ kMaxBiases, each in [-100, 100]; of one
                                                      // id, they are added in order
  std::span<const std::int32_t> suppressed_ids = {};  // ≤ kMaxSuppressed, until min_tokens are out
  std::int32_t min_tokens = 0;                        // ≥ 0
  std::int32_t logprobs = -1;                         // top ones wanted, 0…20; -1: none at all
  std::uint64_t seed = 0;

  /// Throws Error naming the first field out of its range (NaN always is) or an id ≥ `vocab_size`.
  void validate(std::int32_t vocab_size) const;

  /// Whether a penalty is on, so that rows need token counts.
  bool uses_counts() const {
    return repetition_penalty != 1.0f || presence_penalty != 0.0f || frequency_penalty != 0.0f;
  }
};

/// What a sequence has seen of each token, for the penalties: a view of `vocab_size` words that the
/// caller owns. Bit 31: in the prompt. Bits 0…30: how often in the output.
class TokenCounts {
 public:
  static constexpr std::uint32_t kInPrompt = std::uint32_t{1} << 31;
  static constexpr std::uint32_t kOutputCount = kInPrompt - 1;

  TokenCounts() = default;
  explicit TokenCounts(std::span<std::uint32_t> entries) : entries_(entries) {}

  void clear();
  void add_prompt(std::span<const std::int32_t> ids);
  void add_output(std::int32_t id);

  std::span<const std::uint32_t> entries() const { return entries_; }

 private:
  std::span<std::uint32_t> entries_;  // [vocab_size]
};

/// One row to sample from.
struct SampleRow {
  std::span<const float> logits;               // [vocab_size]; -inf marks a token as masked
  std::span<const std::uint32_t> counts = {};  // [vocab_size], or empty when no penalty is on
  std::uint64_t position = 0;                  // of the new token in its sequence, prompt included
  std::int32_t output_length = 0;              // tokens put out before this one
};

enum class SampleStatus : std::int32_t {
  kOk,
  kNonFinite,    // a NaN or +inf among the logits: the row is worthless, end its request
  kNoCandidate,  // every token is masked or suppressed
};

struct ScoredToken {
  std::int32_t id = -1;
  float logprob = 0.0f;
};

/// Log-probabilities and ranks are those of log_softmax over the row as given, before step 1; a
/// log-probability is never below kMinLogprob. They are set only when asked for.
struct SampleResult {
  SampleStatus status = SampleStatus::kOk;
  std::int32_t token = -1;           // -1 unless the status is kOk
  float logprob = 0.0f;              // of `token`
  std::int32_t rank = 0;             // of `token`, 1 for the first in order
  std::span<const ScoredToken> top;  // [≤ logprobs] in order, in the workspace until its next use
};

inline constexpr float kMinLogprob = -9999.0f;
inline constexpr std::int32_t kMaxLogprobs = 20;

/// A result before the logarithms, in integers and logits as they were: what a device computes and
/// copies back, the same bits on each. Fields after `token` are set only with logprobs ≥ 0.
struct SampledRow {
  SampleStatus status = SampleStatus::kOk;
  std::int32_t token = -1;
  std::uint64_t total = 0;     // weights of the row at temperature 1, together
  float largest = 0.0f;        // logit of the row
  float logit = 0.0f;          // of `token`
  std::int32_t rank = 0;       // of `token`
  std::int32_t top_count = 0;  // entries of the arrays that are set
  std::int32_t top_ids[kMaxLogprobs] = {};
  float top_logits[kMaxLogprobs] = {};
};

/// Takes the logarithms. `top` is where the result's list is kept: at least top_count entries.
[[nodiscard]] SampleResult finish_sample(const SampledRow& row, std::span<ScoredToken> top);

/// The scratch of one call, made once; calls that share one must not overlap.
struct SamplerWorkspace {
  /// Throws unless 1 ≤ vocab_size ≤ kMaxSamplerVocab.
  explicit SamplerWorkspace(std::int32_t vocab_size);

  std::vector<float> logits;        // [vocab_size] after steps 1 to 4
  std::vector<std::uint64_t> keys;  // [vocab_size] tokens as sortable keys
  std::vector<ScoredToken> top;     // [kMaxLogprobs]
};

/// Draws the token at row.position. `params` must have passed validate() for this vocabulary.
/// Allocates nothing; throws only on spans whose sizes differ from the workspace's vocabulary.
[[nodiscard]] SampleResult sample(const SampleRow& row, const SamplingParams& params,
                                  SamplerWorkspace& workspace);

/// The same without the logarithms.
[[nodiscard]] SampledRow sample_row(const SampleRow& row, const SamplingParams& params,
                                    std::uint64_t random, SamplerWorkspace& workspace);

/// sample() with the random bits given: 0 draws the first token in order, 2^64 - 1 the last kept.
[[nodiscard]] SampleResult sample_with(const SampleRow& row, const SamplingParams& params,
                                       std::uint64_t random, SamplerWorkspace& workspace);

/// The log-probability of a given token and of the `count` likeliest; nothing is drawn.
[[nodiscard]] SampleResult score(std::span<const float> logits, std::int32_t token,
                                 std::int32_t count, SamplerWorkspace& workspace);

}  // namespace quatrain

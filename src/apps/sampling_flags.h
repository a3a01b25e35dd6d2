// SPDX-License-Identifier: Apache-2.0
// Flags that say how tokens are drawn and where text ends, and the text that a run produces.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "runtime/generation.h"
#include "tokenizer/tokenizer.h"

namespace CLI {
class App;
}

namespace quatrain::apps {

struct SamplingFlags {
  SamplingParams params;
  std::vector<std::string> logit_bias;  // "ID=BIAS"
  std::vector<std::string> stop;
  std::vector<std::int32_t> stop_token_ids;
  bool ignore_eos = false;
  std::int64_t max_tokens = -1;
  std::int64_t seed = -1;  // −1: from the clock, printed at the end

  void add_to(CLI::App& app);

  /// Fills what depends on the model: biases, stop tokens, the seed. Call once.
  void resolve(const V4Config& config, const Tokenizer& tokenizer);

  std::vector<std::int32_t> stop_tokens;  // set by resolve()

 private:
  std::vector<TokenBias> biases_;
};

struct TextResult {
  GenerationStats stats;
  std::string text;
  bool stopped_by_text = false;  // a stop string ended it
};

/// Generates text: token ids → UTF-8 that is never cut → stop strings held back. `on_text` gets
/// each piece that is safe to show and ends the run by returning false.
TextResult generate_text(Session& session, const Tokenizer& tokenizer, const SamplingFlags& flags,
                         std::span<const std::int32_t> prompt,
                         const std::function<bool(const std::string&)>& on_text,
                         const std::function<void(const SampleResult&)>& on_token = {});

/// "prompt 12 tokens, 431.0 tokens/s · answer 200 tokens, 152.3 tokens/s · stop"
std::string describe(const TextResult& result);

}  // namespace quatrain::apps

// SPDX-License-Identifier: Apache-2.0
#include "apps/sampling_flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <chrono>

#include "tokenizer/stop_matcher.h"
#include "tokenizer/stream_decoder.h"

namespace quatrain::apps {
namespace {

TokenBias parse_bias(const std::string& text) {
  const std::size_t equals = text.find('=');
  TokenBias bias{};
  const char* end = text.data() + text.size();
  if (equals != std::string::npos) {
    const auto id = std::from_chars(text.data(), text.data() + equals, bias.id);
    const auto value = std::from_chars(text.data() + equals + 1, end, bias.bias);
    if (id.ec == std::errc() && id.ptr == text.data() + equals && value.ec == std::errc() &&
        value.ptr == end)
      return bias;
  }
  fail("--logit-bias: expected ID=BIAS, found '{}'", text);
}

}  // namespace

void SamplingFlags::add_to(CLI::App& app) {
  app.add_option("-n,--max-tokens,--n-predict", max_tokens,
                 "Tokens to write at most; -1 until the model stops or the context is full")
      ->check(CLI::Range(std::int64_t{-1}, std::int64_t{1} << 31))
      ->capture_default_str();
  app.add_option("--temp,--temperature", params.temperature, "0 always takes the likeliest token")
      ->capture_default_str();
  app.add_option("--top-k", params.top_k, "Keep the k likeliest tokens; 0 keeps all")
      ->capture_default_str();
  app.add_option("--top-p", params.top_p, "Keep the likeliest tokens that hold this mass")
      ->capture_default_str();
  app.add_option("--min-p", params.min_p, "Keep tokens this likely relative to the likeliest")
      ->capture_default_str();
  app.add_option("--repetition-penalty,--repeat-penalty", params.repetition_penalty,
                 "Divides the logits of tokens seen; 1 is off")
      ->capture_default_str();
  app.add_option("--presence-penalty", params.presence_penalty,
                 "Subtracted from the logits of tokens already written")
      ->capture_default_str();
  app.add_option("--frequency-penalty", params.frequency_penalty,
                 "The same, once for each time the token was written")
      ->capture_default_str();
  app.add_option("--logit-bias", logit_bias, "ID=BIAS, added to a token's logit; repeatable");
  app.add_option("-s,--seed", seed, "Same seed, same text; -1 takes the clock")
      ->capture_default_str();
  app.add_option("--stop", stop, "Text that ends the answer; repeatable");
  app.add_option("--stop-token-ids", stop_token_ids, "Token ids that end the answer")
      ->delimiter(',');
  app.add_flag("--ignore-eos", ignore_eos, "Go on after the end-of-sentence token");
}

void SamplingFlags::resolve(const V4Config& config, const Tokenizer& tokenizer) {
  for (const std::string& text : logit_bias) biases_.push_back(parse_bias(text));
  params.logit_bias = biases_;
  if (seed < 0) seed = std::chrono::system_clock::now().time_since_epoch().count() & 0x7FFFFFFF;
  params.seed = static_cast<std::uint64_t>(seed);
  stop_tokens = stop_token_ids;
  if (!ignore_eos) {
    for (const std::int64_t id : config.eos_token_ids)
      stop_tokens.push_back(static_cast<std::int32_t>(id));
    if (const auto eos = tokenizer.eos_id()) stop_tokens.push_back(*eos);
  }
  params.validate(static_cast<std::int32_t>(config.vocab_size));
}

TextResult generate_text(Session& session, const Tokenizer& tokenizer, const SamplingFlags& flags,
                         std::span<const std::int32_t> prompt,
                         const std::function<bool(const std::string&)>& on_text,
                         const std::function<void(const SampleResult&)>& on_token) {
  if (static_cast<std::int64_t>(prompt.size()) > session.capacity())
    fail("the prompt has {} tokens, the context room for {} (--max-model-len)", prompt.size(),
         session.capacity());
  TextResult result;
  StreamDecoder decoder(tokenizer);
  StopMatcher matcher(flags.stop);
  const auto show = [&](const std::string& text) {
    result.text += text;
    return text.empty() || on_text(text);
  };
  const GenerationRequest request{.prompt = prompt,
                                  .sampling = flags.params,
                                  .max_tokens = flags.max_tokens,
                                  .stop_tokens = flags.stop_tokens};
  result.stats = generate(session, request, [&](const SampleResult& token) {
    if (on_token) on_token(token);
    return show(matcher.feed(decoder.feed(token.token))) && !matcher.stopped();
  });
  if (!matcher.stopped()) show(matcher.feed(decoder.finish()) + matcher.finish());
  result.stopped_by_text = matcher.stopped();
  return result;
}

std::string describe(const TextResult& result) {
  const GenerationStats& s = result.stats;
  const auto rate = [](std::int64_t tokens, double seconds) {
    return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
  };
  const std::int64_t prompt = s.prompt_tokens - s.cached_tokens;
  return fmt::format(
      "prompt {} tokens{}, {:.1f} tokens/s · answer {} tokens, {:.1f} tokens/s · {}",
      s.prompt_tokens, s.cached_tokens > 0 ? fmt::format(" ({} cached)", s.cached_tokens) : "",
      rate(prompt, s.prompt_seconds), s.output_tokens, rate(s.output_tokens, s.output_seconds),
      result.stopped_by_text ? "stop" : name_of(s.finish));
}

}  // namespace quatrain::apps

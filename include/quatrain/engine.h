// SPDX-License-Identifier: Apache-2.0
// The public API: an engine that runs many token sequences at once and streams what it samples.
//
// It speaks token ids. Text, chat templates and stop strings are the caller's, who ends a request
// with cancel(). All methods may be called from any thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace quatrain {

using RequestId = std::uint64_t;

/// How one request is sampled. The defaults sample from the model's distribution unchanged.
struct RequestSampling {
  float temperature = 1.0f;  ///< 0 is greedy
  std::int32_t top_k = 0;    ///< 0: all
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float frequency_penalty = 0.0f;
  float presence_penalty = 0.0f;
  std::vector<std::pair<std::int32_t, float>> logit_bias;
  std::optional<std::uint64_t> seed;  ///< none: drawn once per request
  std::int64_t min_tokens = 0;        ///< stop tokens are suppressed until then
  std::int32_t logprobs = -1;         ///< alternatives per token; −1: none, 0: the token's own
};

/// Keeps a request's output within bounds of the caller's, such as a grammar. Called by the
/// engine's thread between steps, so it should answer in well under a millisecond. It belongs to
/// one request.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;
  /// Bit id % 32 of word id / 32: the token may come next. Words left out allow nothing. Stop
  /// tokens are tokens like others. Valid until the next call.
  virtual std::span<const std::uint32_t> allowed() = 0;
  /// The token that came.
  virtual void advance(std::int32_t token) = 0;
};

struct EngineRequest {
  std::vector<std::int32_t> prompt;  ///< the whole prefix, BOS included; not empty
  RequestSampling sampling;
  std::int64_t max_tokens = -1;           ///< −1: until the context is full
  std::vector<std::int32_t> stop_tokens;  ///< end the request; not handed out
  std::int32_t prompt_logprobs = -1;      ///< as RequestSampling::logprobs, of the prompt's tokens
  int priority = 0;                       ///< lower runs earlier
  /// May be null. Tokens that it does not allow have no probability, before any other rule applies;
  /// min_tokens must then be 0.
  std::shared_ptr<TokenConstraint> constraint;
};

struct TokenLogprob {
  std::int32_t token = 0;
  float logprob = 0;
  std::int32_t rank = 0;  ///< 1 is the likeliest
};

enum class RequestEnd : std::uint8_t {
  kStop,       ///< a stop token
  kLength,     ///< max_tokens, or the context is full
  kCancelled,  ///< cancel(), or the engine shut down
  kNonFinite,  ///< the request's logits were not finite; nothing was sampled from them
};

/// What happens to a request, in order; the last event has `end`.
struct RequestEvent {
  std::optional<std::int32_t> token;  ///< the token sampled, if one was
  float logprob = 0;                  ///< of `token`, with logprobs ≥ 0
  std::int32_t rank = 0;
  std::vector<TokenLogprob> alternatives;  ///< likeliest first
  /// Of prompt tokens 1, 2, … (each: its own first, then alternatives); before the first token.
  std::vector<std::vector<TokenLogprob>> prompt_logprobs;
  std::optional<RequestEnd> end;
  std::int64_t cached_tokens = 0;  ///< of the prompt, taken from the prefix cache
};

/// Why submit() refused a request.
enum class Refusal : std::uint8_t {
  kQueueFull,  ///< try again later
  kInvalid,    ///< it can never run: too long, or a value out of range
  kDraining,   ///< the engine is shutting down
};

struct EngineStats {
  std::int64_t running = 0;
  std::int64_t waiting = 0;
  std::int64_t waiting_tokens = 0;  ///< prompt tokens of the waiting requests
  std::int64_t kv_blocks_total = 0;
  std::int64_t kv_blocks_used = 0;    ///< by running requests
  std::int64_t kv_blocks_cached = 0;  ///< kept for later prefixes, free to be taken
  std::int64_t prompt_tokens = 0;     ///< since start
  std::int64_t cached_prompt_tokens = 0;
  std::int64_t output_tokens = 0;
  std::int64_t preemptions = 0;
  std::int64_t finished[4] = {0, 0, 0, 0};  ///< by RequestEnd
  std::int64_t steps = 0;
};

class Engine {
 public:
  /// Called from the engine's thread; must not block and must not call the engine's destructor.
  using OnEvent = std::function<void(RequestEvent&&)>;

  struct Submitted {
    RequestId id = 0;
    std::optional<Refusal> refusal;  ///< set: the request was not taken, no event will come
    std::string message;             ///< of a refusal
  };

  virtual ~Engine() = default;
  virtual Submitted submit(EngineRequest request, OnEvent on_event) = 0;
  /// Ends a request by the next step; its last event says kCancelled. Unknown ids are ignored.
  virtual void cancel(RequestId id) = 0;
  virtual EngineStats stats() const = 0;

  virtual std::int64_t max_model_len() const = 0;
  virtual std::int64_t vocab_size() const = 0;

  /// Refuses new requests, lets running ones finish until the timeout, then cancels the rest.
  /// Returns true if all finished by themselves.
  virtual bool drain(std::chrono::milliseconds timeout) = 0;
};

}  // namespace quatrain

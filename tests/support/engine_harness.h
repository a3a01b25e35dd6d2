// SPDX-License-Identifier: Apache-2.0
// What tests of the engine share: a model on the CPU with an engine, requests, and their outcomes.
#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <deque>
#include <future>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "backends/cpu/cpu_ops.h"
#include "runtime/batching_engine.h"
#include "runtime/generation.h"

namespace quatrain::testing {

/// Everything that happened to one request.
struct Outcome {
  std::vector<std::int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<std::vector<std::int32_t>> alternatives;
  std::vector<std::vector<TokenLogprob>> prompt_logprobs;
  std::int64_t cached_tokens = 0;
  std::int64_t events = 0;
  std::int64_t steps_at_first = 0;  ///< the engine's steps when the first token came
  std::optional<RequestEnd> end;
};

/// Submits requests and collects their events. Outlives the engine's work on them.
class Client {
 public:
  explicit Client(Engine& engine) : engine_(engine) {}

  /// Returns the number of the request, which must not be refused.
  std::size_t submit(EngineRequest request) {
    const std::size_t index = reserve();
    const Engine::Submitted submitted = engine_.submit(std::move(request), listener(index));
    EXPECT_FALSE(submitted.refusal) << submitted.message;
    const std::lock_guard lock(mutex_);
    ids_[index] = submitted.id;
    return index;
  }

  /// Submits requests so that the engine takes up all of them in one step: what comes of sharing
  /// memory then depends on them alone, not on when this thread runs. Nothing else may be running.
  void submit_together(std::span<const EngineRequest> requests) {
    std::promise<void> all_are_there;
    EngineRequest first;
    first.prompt = {0};
    first.max_tokens = 1;
    // The engine's thread stands still inside the event.
    const Engine::Submitted submitted = engine_.submit(
        std::move(first),
        [there = all_are_there.get_future().share()](RequestEvent&&) { there.wait(); });
    EXPECT_FALSE(submitted.refusal) << submitted.message;
    for (const EngineRequest& request : requests) submit(request);
    all_are_there.set_value();
  }

  void cancel(std::size_t index) {
    RequestId id = 0;
    {
      const std::lock_guard lock(mutex_);
      id = ids_[index];
    }
    engine_.cancel(id);
  }

  /// Waits for the last event of every request.
  void wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] {
      return std::ranges::all_of(outcomes_, [](const Outcome& o) { return o.end.has_value(); });
    });
  }
  /// Waits until a request has put out `count` tokens or ended.
  void wait_for_tokens(std::size_t index, std::size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock,
                  [&] { return outcomes_[index].end || outcomes_[index].tokens.size() >= count; });
  }

  /// A copy, so that it can be looked at while the request goes on.
  Outcome outcome(std::size_t index) {
    const std::lock_guard lock(mutex_);
    return outcomes_[index];
  }
  Outcome run(EngineRequest request) {
    const std::size_t index = submit(std::move(request));
    wait();
    return outcome(index);
  }

  Engine::OnEvent listener(std::size_t index) {
    return [this, index](RequestEvent&& event) { record(index, std::move(event)); };
  }
  std::size_t reserve() {
    const std::lock_guard lock(mutex_);
    ids_.push_back(0);
    outcomes_.emplace_back();
    return outcomes_.size() - 1;
  }

 private:
  void record(std::size_t index, RequestEvent&& event) {
    const std::lock_guard lock(mutex_);
    Outcome& outcome = outcomes_[index];
    EXPECT_FALSE(outcome.end) << "an event after the last one";
    ++outcome.events;
    outcome.cached_tokens = event.cached_tokens;
    if (event.token) {
      if (outcome.tokens.empty()) outcome.steps_at_first = engine_.stats().steps;
      outcome.tokens.push_back(*event.token);
      outcome.logprobs.push_back(event.logprob);
      outcome.alternatives.emplace_back();
      for (const TokenLogprob& t : event.alternatives)
        outcome.alternatives.back().push_back(t.token);
    }
    if (!event.prompt_logprobs.empty()) {
      EXPECT_TRUE(outcome.tokens.empty()) << "scores of the prompt after a token";
      outcome.prompt_logprobs = std::move(event.prompt_logprobs);
    }
    outcome.end = event.end;
    changed_.notify_all();
  }

  Engine& engine_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Outcome> outcomes_;
  std::deque<RequestId> ids_;
};

/// A runner on the plain CPU backend.
struct CpuModel {
  CpuModel(const std::filesystem::path& folder, const EngineOptions& options, int threads = 1)
      : ops(threads), runner(ops, folder, options) {}

  CpuOps ops;
  ModelRunner runner;
};

/// The tokens that the single-sequence path gives to a request whose seed is set.
inline std::vector<std::int32_t> alone(CpuModel& model, const EngineRequest& request) {
  const RequestSampling& s = request.sampling;
  std::vector<TokenBias> bias;
  for (const auto& [id, value] : s.logit_bias) bias.push_back({id, value});
  Session session(model.runner);
  std::vector<std::int32_t> out;
  generate(session,
           {.prompt = request.prompt,
            .sampling = {.temperature = s.temperature,
                         .top_k = s.top_k,
                         .top_p = s.top_p,
                         .min_p = s.min_p,
                         .repetition_penalty = s.repetition_penalty,
                         .presence_penalty = s.presence_penalty,
                         .frequency_penalty = s.frequency_penalty,
                         .logit_bias = bias,
                         .suppressed_ids = request.stop_tokens,
                         .min_tokens = static_cast<std::int32_t>(s.min_tokens),
                         .seed = s.seed.value()},
            .max_tokens = request.max_tokens,
            .stop_tokens = request.stop_tokens},
           [&](const SampleResult& token) {
             out.push_back(token.token);
             return true;
           });
  return out;
}

}  // namespace quatrain::testing

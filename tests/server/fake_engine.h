// SPDX-License-Identifier: Apache-2.0
// An engine that plays back a text, as fast or as slowly as a test wants.
#pragma once

#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "quatrain/engine.h"

namespace quatrain::testing {

class FakeEngine : public Engine {
 public:
  /// Of every request, before the stop token 1.
  std::vector<std::int32_t> output;
  std::chrono::microseconds delay{0};    // between tokens
  std::int64_t max_waiting = 1'000'000;  // refuses above
  bool fails = false;                    // the third token has logits not finite
  std::int64_t cached = 0;
  /// Picks tokens for a constrained request, where `output` is not allowed or has ended.
  std::function<std::int32_t(std::span<const std::uint32_t> allowed)> choose;

  FakeEngine() : thread_([this](const std::stop_token& stop) { work(stop); }) {}
  ~FakeEngine() override {
    thread_.request_stop();
    wake_.notify_all();
  }

  Submitted submit(EngineRequest request, OnEvent on_event) override {
    const std::lock_guard lock(mutex_);
    if (draining_) return {0, Refusal::kDraining, "draining"};
    if (static_cast<std::int64_t>(requests_.size()) >= max_waiting)
      return {0, Refusal::kQueueFull, "the queue is full"};
    if (static_cast<std::int64_t>(request.prompt.size()) >= max_model_len())
      return {0, Refusal::kInvalid, "the prompt is too long"};
    last_ = request;
    ++submitted_;
    requests_[++next_id_] = {std::move(request), std::move(on_event), 0, false};
    wake_.notify_all();
    return {next_id_, {}, ""};
  }
  void cancel(RequestId id) override {
    const std::lock_guard lock(mutex_);
    if (const auto it = requests_.find(id); it != requests_.end()) it->second.cancelled = true;
    wake_.notify_all();
  }
  EngineStats stats() const override {
    const std::lock_guard lock(mutex_);
    EngineStats stats = stats_;
    stats.running = static_cast<std::int64_t>(requests_.size());
    stats.waiting = waiting_;
    stats.kv_blocks_total = 100;
    stats.kv_blocks_used = stats.running;
    return stats;
  }
  std::int64_t max_model_len() const override { return 2048; }
  std::int64_t vocab_size() const override { return 4096; }
  bool drain(std::chrono::milliseconds timeout) override {
    std::unique_lock lock(mutex_);
    draining_ = true;
    const bool all = idle_.wait_for(lock, timeout, [this] { return requests_.empty(); });
    for (auto& [id, request] : requests_) request.cancelled = true;
    wake_.notify_all();
    idle_.wait(lock, [this] { return requests_.empty(); });
    return all;
  }

  /// Of the last request.
  EngineRequest last() const {
    const std::lock_guard lock(mutex_);
    return last_;
  }
  std::int64_t submitted() const {
    const std::lock_guard lock(mutex_);
    return submitted_;
  }
  /// Pretends that so many requests wait.
  void set_waiting(std::int64_t n) {
    const std::lock_guard lock(mutex_);
    waiting_ = n;
  }

 private:
  struct Running {
    EngineRequest request;
    OnEvent on_event;
    std::size_t done = 0;
    bool cancelled = false;
  };

  // One step gives every request one token.
  void work(const std::stop_token& stop) {
    std::unique_lock lock(mutex_);
    while (!stop.stop_requested()) {
      wake_.wait(lock, stop, [this] { return !requests_.empty(); });
      ++stats_.steps;
      for (auto it = requests_.begin(); it != requests_.end();) {
        RequestEvent event = next_event(it->second);
        const auto end = event.end;
        it->second.on_event(std::move(event));
        if (end) ++stats_.finished[static_cast<int>(*end)];
        it = end ? requests_.erase(it) : std::next(it);
      }
      if (requests_.empty()) idle_.notify_all();
      if (delay.count() == 0) continue;
      const auto until = std::chrono::steady_clock::now() + delay;
      lock.unlock();
      std::this_thread::sleep_until(until);
      lock.lock();
    }
  }

  RequestEvent next_event(Running& running) {
    RequestEvent event;
    event.cached_tokens = cached;
    if (running.done == 0 && running.request.prompt_logprobs >= 0)
      for (std::size_t i = 1; i < running.request.prompt.size(); ++i)
        event.prompt_logprobs.push_back({{running.request.prompt[i], -0.5f, 1}});
    if (running.cancelled) {
      event.end = RequestEnd::kCancelled;
    } else if (fails && running.done == 2) {
      event.end = RequestEnd::kNonFinite;
    } else if (const std::int32_t token = next_token(running); token == kStopToken) {
      event.end = RequestEnd::kStop;
    } else {
      event.token = token;
      ++running.done;
      event.logprob = -0.25f;
      event.rank = 1;
      for (std::int32_t i = 0; i < running.request.sampling.logprobs; ++i)
        event.alternatives.push_back(
            {i == 0 ? *event.token : 300 + i, -0.25f * static_cast<float>(i + 1), i + 1});
      ++stats_.output_tokens;
      if (static_cast<std::int64_t>(running.done) == running.request.max_tokens)
        event.end = RequestEnd::kLength;
    }
    return event;
  }

  static constexpr std::int32_t kStopToken = 1;

  std::int32_t next_token(Running& running) const {
    std::int32_t token = running.done < output.size() ? output[running.done] : kStopToken;
    TokenConstraint* const constraint = running.request.constraint.get();
    if (constraint == nullptr) return token;
    const auto allowed = constraint->allowed();
    const auto word = static_cast<std::size_t>(token) / 32;
    if (word >= allowed.size() || (allowed[word] >> (token % 32) & 1) == 0) token = choose(allowed);
    constraint->advance(token);
    return token;
  }

  mutable std::mutex mutex_;
  std::condition_variable_any wake_;
  std::condition_variable_any idle_;
  std::map<RequestId, Running> requests_;
  RequestId next_id_ = 0;
  EngineRequest last_;
  EngineStats stats_;
  std::int64_t submitted_ = 0;
  std::int64_t waiting_ = 0;
  bool draining_ = false;
  std::jthread thread_;
};

}  // namespace quatrain::testing

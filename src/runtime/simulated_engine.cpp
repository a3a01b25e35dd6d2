// SPDX-License-Identifier: Apache-2.0
#include "runtime/simulated_engine.h"

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>

#include "core/error.h"
#include "ops/op_args.h"
#include "runtime/waiting_room.h"

namespace quatrain {
namespace {

using Clock = std::chrono::steady_clock;

Clock::duration seconds(double count) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(count));
}

struct Simulated {
  RequestId id = 0;
  EngineRequest request;
  Engine::OnEvent on_event;
  std::int64_t outputs = 0;
  Clock::time_point due{};  // of its next token, while it runs
  bool running = false;

  std::int64_t size() const { return static_cast<std::int64_t>(request.prompt.size()) + outputs; }
  std::int64_t blocks() const { return (size() + kBlockTokens - 1) / kBlockTokens; }
};

class SimulatedEngine final : public Engine {
 public:
  explicit SimulatedEngine(SimulationOptions options)
      : options_(std::move(options)), thread_([this] { run(); }) {}

  ~SimulatedEngine() override {
    {
      const std::lock_guard lock(mutex_);
      draining_ = cancel_all_ = stopping_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

  Submitted submit(EngineRequest request, OnEvent on_event) override;
  void cancel(RequestId id) override;
  EngineStats stats() const override;
  std::int64_t max_model_len() const override { return options_.max_model_len; }
  std::int64_t vocab_size() const override { return options_.vocab_size; }
  bool drain(std::chrono::milliseconds timeout) override;

 private:
  struct Happened {
    OnEvent* on_event;
    RequestEvent event;
  };
  // All with the mutex held.
  void start_waiting(Clock::time_point now);
  void advance(Simulated& simulated);
  void end(Simulated& simulated, RequestEnd how, RequestEvent event = {});
  void take_cancelled();
  std::int32_t token_of(const Simulated& simulated) const;

  void run();

  const SimulationOptions options_;
  mutable std::mutex mutex_;
  std::condition_variable wake_, settled_;
  std::unordered_map<RequestId, std::unique_ptr<Simulated>> requests_;
  std::map<std::pair<int, RequestId>, Simulated*> waiting_;    // by priority, arrival
  std::set<std::pair<Clock::time_point, RequestId>> running_;  // by when their next token is due
  std::vector<RequestId> cancelled_;
  std::vector<Happened> happened_;
  std::vector<std::unique_ptr<Simulated>> ended_;  // until their last event is out
  WaitingRoom waiting_room_{options_.max_queued_requests, options_.max_queued_tokens};
  std::int64_t unfinished_ = 0;
  std::int64_t blocks_used_ = 0;
  EngineStats counts_;
  RequestId last_id_ = 0;
  bool draining_ = false, cancel_all_ = false, stopping_ = false;
  std::thread thread_;
};

Engine::Submitted SimulatedEngine::submit(EngineRequest request, OnEvent on_event) {
  const auto refuse = [](Refusal why, std::string message) {
    return Submitted{.id = 0, .refusal = why, .message = std::move(message)};
  };
  const auto tokens = static_cast<std::int64_t>(request.prompt.size());
  if (tokens == 0) return refuse(Refusal::kInvalid, "prompt: expected at least one token");
  if (tokens >= options_.max_model_len + (request.max_tokens == 0 ? 1 : 0))
    return refuse(Refusal::kInvalid, "prompt: it leaves no room in the context");
  for (const std::int32_t token : request.prompt)
    if (token < 0 || token >= options_.vocab_size)
      return refuse(Refusal::kInvalid, "prompt: a token id is outside the vocabulary");
  auto simulated = std::make_unique<Simulated>();
  simulated->request = std::move(request);
  simulated->on_event = std::move(on_event);
  RequestId id = 0;
  {
    const std::lock_guard lock(mutex_);
    if (draining_) return refuse(Refusal::kDraining, "the engine is shutting down");
    if (!waiting_room_.has_room(tokens))
      return refuse(Refusal::kQueueFull, waiting_room_.describe());
    id = simulated->id = ++last_id_;
    waiting_.emplace(std::pair(simulated->request.priority, id), simulated.get());
    waiting_room_.enter(tokens);
    ++unfinished_;
    requests_.emplace(id, std::move(simulated));
  }
  wake_.notify_one();
  return {.id = id, .refusal = {}, .message = {}};
}

void SimulatedEngine::cancel(RequestId id) {
  {
    const std::lock_guard lock(mutex_);
    cancelled_.push_back(id);
  }
  wake_.notify_one();
}

EngineStats SimulatedEngine::stats() const {
  const std::lock_guard lock(mutex_);
  EngineStats out = counts_;
  out.running = static_cast<std::int64_t>(running_.size());
  out.waiting = waiting_room_.requests();
  out.waiting_tokens = waiting_room_.tokens();
  out.kv_blocks_total = options_.max_num_seqs * ((options_.max_model_len - 1) / kBlockTokens + 1);
  out.kv_blocks_used = blocks_used_;
  return out;
}

bool SimulatedEngine::drain(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  draining_ = true;
  const auto settled = [&] { return unfinished_ == 0; };
  if (settled_.wait_for(lock, timeout, settled)) return true;
  cancel_all_ = true;
  wake_.notify_one();
  settled_.wait(lock, settled);
  return false;
}

std::int32_t SimulatedEngine::token_of(const Simulated& simulated) const {
  const std::vector<std::int32_t>& from =
      options_.output.empty() ? simulated.request.prompt : options_.output;
  return from[static_cast<std::size_t>(simulated.outputs) % from.size()];
}

void SimulatedEngine::start_waiting(Clock::time_point now) {
  while (!waiting_.empty() && static_cast<std::int64_t>(running_.size()) < options_.max_num_seqs) {
    Simulated& simulated = *waiting_.begin()->second;
    waiting_.erase(waiting_.begin());
    const auto tokens = static_cast<std::int64_t>(simulated.request.prompt.size());
    waiting_room_.leave(1, tokens);
    counts_.prompt_tokens += tokens;
    blocks_used_ += simulated.blocks();
    simulated.running = true;
    simulated.due = now + seconds(static_cast<double>(tokens) / options_.prompt_tokens_per_second);
    running_.emplace(simulated.due, simulated.id);
  }
}

// Its next token is due.
void SimulatedEngine::advance(Simulated& simulated) {
  if (simulated.request.max_tokens == 0) return end(simulated, RequestEnd::kLength);
  const std::int32_t token = token_of(simulated);
  const std::vector<std::int32_t>& stops = simulated.request.stop_tokens;
  if (simulated.outputs >= simulated.request.sampling.min_tokens &&
      std::ranges::find(stops, token) != stops.end())
    return end(simulated, RequestEnd::kStop);
  blocks_used_ -= simulated.blocks();
  ++simulated.outputs;
  blocks_used_ += simulated.blocks();
  ++counts_.output_tokens;
  RequestEvent event;
  event.token = token;
  if (simulated.request.sampling.logprobs >= 0) event.rank = 1;
  if (simulated.outputs == simulated.request.max_tokens ||
      simulated.size() == options_.max_model_len)
    return end(simulated, RequestEnd::kLength, std::move(event));
  running_.erase({simulated.due, simulated.id});
  simulated.due += seconds(1 / options_.tokens_per_second);
  running_.emplace(simulated.due, simulated.id);
  happened_.push_back({&simulated.on_event, std::move(event)});
}

void SimulatedEngine::end(Simulated& simulated, RequestEnd how, RequestEvent event) {
  if (simulated.running) {
    running_.erase({simulated.due, simulated.id});
    blocks_used_ -= simulated.blocks();
  } else {
    waiting_.erase({simulated.request.priority, simulated.id});
    waiting_room_.leave(1, static_cast<std::int64_t>(simulated.request.prompt.size()));
  }
  ++counts_.finished[static_cast<std::size_t>(how)];
  event.end = how;
  happened_.push_back({&simulated.on_event, std::move(event)});
  const auto found = requests_.find(simulated.id);
  ended_.push_back(std::move(found->second));
  requests_.erase(found);
}

void SimulatedEngine::take_cancelled() {
  if (std::exchange(cancel_all_, false))
    for (const auto& [id, simulated] : requests_) cancelled_.push_back(id);
  for (const RequestId id : cancelled_)
    if (const auto found = requests_.find(id); found != requests_.end())
      end(*found->second, RequestEnd::kCancelled);
  cancelled_.clear();
}

void SimulatedEngine::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    take_cancelled();
    const Clock::time_point now = Clock::now();
    bool any = false;
    while (!running_.empty() && running_.begin()->first <= now) {
      advance(*requests_.at(running_.begin()->second));
      any = true;
    }
    start_waiting(now);
    if (any) ++counts_.steps;
    if (!happened_.empty()) {
      const std::vector<Happened> events = std::exchange(happened_, {});
      const std::vector<std::unique_ptr<Simulated>> ended = std::exchange(ended_, {});
      lock.unlock();
      for (const Happened& happened : events) (*happened.on_event)(RequestEvent(happened.event));
      lock.lock();
      unfinished_ -= static_cast<std::int64_t>(ended.size());
      if (unfinished_ == 0) settled_.notify_all();
      continue;
    }
    if (stopping_ && requests_.empty()) return;
    const auto called = [&] {
      return stopping_ || cancel_all_ || !cancelled_.empty() ||
             (!waiting_.empty() &&
              static_cast<std::int64_t>(running_.size()) < options_.max_num_seqs);
    };
    if (running_.empty())
      wake_.wait(lock, called);
    else
      wake_.wait_until(lock, running_.begin()->first, called);
  }
}

}  // namespace

std::unique_ptr<Engine> make_simulated_engine(SimulationOptions options) {
  const auto positive = [](const char* name, auto value) {
    if (!(value > 0))
      fail("simulated engine: {}: expected a positive number, found {}", name, value);
  };
  positive("tokens_per_second", options.tokens_per_second);
  positive("prompt_tokens_per_second", options.prompt_tokens_per_second);
  positive("max_num_seqs", options.max_num_seqs);
  positive("max_model_len", options.max_model_len);
  positive("vocab_size", options.vocab_size);
  for (const std::int32_t id : options.output)
    if (id < 0 || id >= options.vocab_size)
      fail("simulated engine: output: expected token ids in [0, {}), found {}", options.vocab_size,
           id);
  return std::make_unique<SimulatedEngine>(std::move(options));
}

}  // namespace quatrain

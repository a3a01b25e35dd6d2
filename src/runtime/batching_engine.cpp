// SPDX-License-Identifier: Apache-2.0
#include "runtime/batching_engine.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <random>
#include <thread>
#include <unordered_map>

#include "core/log.h"
#include "runtime/constrained_sampler.h"
#include "runtime/request_sampler.h"
#include "runtime/scheduler.h"
#include "runtime/snapshot_store.h"
#include "runtime/waiting_room.h"

namespace quatrain {
namespace {

struct Request : Sequence {
  Request(EngineRequest&& taken, RequestSampler&& its_sampler, Engine::OnEvent&& callback)
      : sampler(std::move(its_sampler)),
        on_event(std::move(callback)),
        stop_tokens(std::move(taken.stop_tokens)),
        max_tokens(taken.max_tokens) {
    priority = taken.priority;
    prompt_size = static_cast<std::int64_t>(taken.prompt.size());
    score_prompt = taken.prompt_logprobs >= 0 && prompt_size > 1;
    if (taken.constraint) constrained.emplace(std::move(taken.constraint));
    tokens = std::move(taken.prompt);
  }

  std::int64_t outputs() const { return size() - prompt_size; }

  RequestSampler sampler;
  std::optional<ConstrainedSampler> constrained;  // draws in place of the device
  Engine::OnEvent on_event;
  std::vector<std::int32_t> stop_tokens;
  std::int64_t max_tokens;
  bool started = false;  // had a slot, or ended before it got one: no longer in the queue
  std::vector<std::vector<TokenLogprob>> prompt_logprobs;  // of prompt tokens 1, 2, …
};

std::uint64_t random_word() {
  std::random_device device;
  return std::uint64_t{device()} << 32 | device();
}

SchedulerLimits limits_of(const EngineOptions& engine, const SchedulerOptions& options) {
  const auto check_rows = [&](const char* flag, std::int64_t rows) {
    if (rows < engine.max_num_seqs)
      fail("{}: expected at least the {} of --max-num-seqs, found {}", flag, engine.max_num_seqs,
           rows);
  };
  check_rows("--max-num-batched-tokens", engine.max_num_batched_tokens);
  check_rows("max_logit_rows", engine.max_logit_rows);
  if (options.prefix_snapshots < 0)
    fail("prefix_snapshots: expected at least 0, found {}", options.prefix_snapshots);
  if (options.snapshot_interval < 0 || options.snapshot_interval % kBlockTokens != 0)
    fail("snapshot_interval: expected a multiple of {} tokens, found {}", kBlockTokens,
         options.snapshot_interval);
  return {.slots = engine.max_num_seqs,
          .blocks = engine.kv_blocks,
          .step_tokens = engine.max_num_batched_tokens,
          .step_logit_rows = engine.max_logit_rows,
          .snapshots = options.prefix_snapshots,
          .snapshot_interval = options.snapshot_interval,
          .snapshot_gain = options.snapshot_gain,
          .salt = options.prefix_salt ? *options.prefix_salt : random_word()};
}

class BatchingEngine final : public Engine {
 public:
  BatchingEngine(ModelRunner& runner, const SchedulerOptions& options)
      : runner_(runner),
        options_(options),
        scheduler_(limits_of(runner.options(), options)),
        store_(runner.ops(), runner.cache(), runner.options().max_num_seqs,
               options.prefix_snapshots),
        workspace_(static_cast<std::int32_t>(runner.config().vocab_size)),
        seeds_(random_word()),
        thread_([this] { run(); }) {}

  ~BatchingEngine() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = draining_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

  Submitted submit(EngineRequest request, OnEvent on_event) override;
  void cancel(RequestId id) override;
  EngineStats stats() const override;
  std::int64_t max_model_len() const override { return runner_.options().max_model_len; }
  std::int64_t vocab_size() const override { return runner_.config().vocab_size; }
  bool drain(std::chrono::milliseconds timeout) override;

 private:
  void check(const EngineRequest& request) const;

  // What a step computed and nobody took yet.
  struct Outcome {
    std::span<const float> logits;
    std::span<const SampleResult> samples;
  };

  // On the engine's thread.
  void run() noexcept;
  bool take_work();
  void step();
  void admit(const StepPlan& plan);
  void leave_queue(Request& request);
  void deal(const StepPlan::Chunk& chunk, bool sampled, Outcome& outcome);
  bool score_rows(Request& request, std::span<const float> rows);
  void append(Request& request, RequestEvent&& event);
  void end(Request& request, RequestEnd how, RequestEvent&& event = {});
  void put_out(Request& request, RequestEvent&& event);
  void publish();

  ModelRunner& runner_;
  const SchedulerOptions options_;

  // The engine thread's own.
  Scheduler scheduler_;
  SnapshotStore store_;
  SamplerWorkspace workspace_;
  std::unordered_map<RequestId, std::unique_ptr<Request>> requests_;
  std::vector<SequenceChunk> chunks_;
  std::vector<std::pair<Request*, RequestEvent>> events_;   // of this step
  std::vector<std::unique_ptr<Request>> ended_;             // until their last event is out
  std::int64_t started_requests_ = 0, started_tokens_ = 0;  // since publish(): left the queue
  EngineStats counts_;

  // Shared.
  mutable std::mutex mutex_;
  std::condition_variable wake_;     // the engine's thread has something to do
  std::condition_variable settled_;  // unfinished_ fell to 0
  std::vector<std::unique_ptr<Request>> inbox_;
  std::vector<RequestId> cancelled_;
  EngineStats stats_;
  std::mt19937_64 seeds_;
  RequestId last_id_ = 0;
  WaitingRoom waiting_room_{options_.max_queued_requests, options_.max_queued_tokens};
  std::int64_t unfinished_ = 0;  // last event not delivered yet
  bool draining_ = false;
  bool cancel_all_ = false;
  bool stopping_ = false;

  std::thread thread_;
};

// ---- Callers' side ----

void BatchingEngine::check(const EngineRequest& request) const {
  const auto prompt = static_cast<std::int64_t>(request.prompt.size());
  if (prompt == 0) fail("prompt: expected at least one token, found none");
  const std::int64_t room = max_model_len() - (request.max_tokens == 0 ? 0 : 1);
  if (prompt > room)
    fail("prompt: expected at most {} tokens in a context of {}, found {}", room, max_model_len(),
         prompt);
  if (request.max_tokens < -1)
    fail("max_tokens: expected at least 0, or -1 for no limit, found {}", request.max_tokens);
  const auto check_ids = [&](const char* field, std::span<const std::int32_t> ids) {
    for (const std::int32_t id : ids)
      if (id < 0 || id >= vocab_size())
        fail("{}: expected token ids in [0, {}), found {}", field, vocab_size(), id);
  };
  check_ids("prompt", request.prompt);
  check_ids("stop_tokens", request.stop_tokens);
}

Engine::Submitted BatchingEngine::submit(EngineRequest request, OnEvent on_event) {
  const auto refuse = [](Refusal why, std::string message) {
    return Submitted{.id = 0, .refusal = why, .message = std::move(message)};
  };
  std::uint64_t seed = 0;
  {
    const std::lock_guard lock(mutex_);
    seed = seeds_();
  }
  std::unique_ptr<Request> taken;
  try {
    check(request);
    RequestSampler sampler(request, vocab_size(), seed);
    taken = std::make_unique<Request>(std::move(request), std::move(sampler), std::move(on_event));
  } catch (const Error& error) {
    return refuse(Refusal::kInvalid, error.what());
  }

  const std::int64_t tokens = taken->prompt_size;
  RequestId id = 0;
  {
    const std::lock_guard lock(mutex_);
    if (draining_) return refuse(Refusal::kDraining, "the engine is shutting down");
    if (!waiting_room_.has_room(tokens))
      return refuse(Refusal::kQueueFull, waiting_room_.describe());
    id = taken->id = ++last_id_;
    waiting_room_.enter(tokens);
    ++unfinished_;
    inbox_.push_back(std::move(taken));
  }
  wake_.notify_one();
  return {.id = id, .refusal = {}, .message = {}};
}

void BatchingEngine::cancel(RequestId id) {
  {
    const std::lock_guard lock(mutex_);
    cancelled_.push_back(id);
  }
  wake_.notify_one();
}

EngineStats BatchingEngine::stats() const {
  const std::lock_guard lock(mutex_);
  EngineStats out = stats_;
  out.waiting += waiting_room_.requests();
  out.waiting_tokens = waiting_room_.tokens();
  return out;
}

bool BatchingEngine::drain(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  draining_ = true;
  const auto settled = [&] { return unfinished_ == 0; };
  if (settled_.wait_for(lock, timeout, settled)) return true;
  cancel_all_ = true;
  wake_.notify_one();
  settled_.wait(lock, settled);
  return false;
}

// ---- The engine's thread ----

void BatchingEngine::run() noexcept {
  try {
    while (take_work()) step();
  } catch (const std::exception& error) {
    // A fault of the program or the device, not of a request: no answer can be trusted any more.
    log_error("the engine's step failed: {}", error.what());
    std::terminate();
  }
}

// Waits for something to do; false when the engine stops, with every request ended.
bool BatchingEngine::take_work() {
  std::vector<std::unique_ptr<Request>> arrived;
  std::vector<RequestId> cancelled;
  bool cancel_all = false, stopping = false;
  {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [&] {
      return stopping_ || cancel_all_ || !inbox_.empty() || !cancelled_.empty() ||
             !requests_.empty();
    });
    arrived.swap(inbox_);
    cancelled.swap(cancelled_);
    stopping = stopping_;
    cancel_all = std::exchange(cancel_all_, false) || stopping;
  }
  for (std::unique_ptr<Request>& request : arrived) {
    scheduler_.add(*request);
    const RequestId id = request->id;
    requests_.emplace(id, std::move(request));
  }
  if (cancel_all)
    for (const auto& [id, request] : requests_) cancelled.push_back(id);
  for (const RequestId id : cancelled)
    if (const auto found = requests_.find(id); found != requests_.end())
      end(*found->second, RequestEnd::kCancelled);
  if (!ended_.empty()) publish();
  return !stopping;
}

void BatchingEngine::step() {
  const StepPlan plan = scheduler_.plan();
  if (plan.chunks.empty()) return;  // everything was cancelled
  admit(plan);
  chunks_.clear();
  for (const StepPlan::Chunk& chunk : plan.chunks) {
    Sequence& s = *chunk.sequence;
    const auto known = std::span(s.blocks).subspan(static_cast<std::size_t>(s.blocks_announced));
    runner_.set_blocks(s.slot, s.blocks_announced, known);
    s.blocks_announced = static_cast<std::int64_t>(s.blocks.size());
    const auto& request = static_cast<const Request&>(s);
    const bool draws = s.computed + chunk.count == s.size() && request.max_tokens != 0;
    const bool on_host = draws && request.constrained;
    chunks_.push_back(
        {.slot = s.slot,
         .position = s.computed,
         .tokens = std::span<const std::int32_t>(s.tokens).subspan(
             static_cast<std::size_t>(s.computed), static_cast<std::size_t>(chunk.count)),
         .logits = chunk.all_logits ? LogitRows::kAll
                   : on_host        ? LogitRows::kLast
                                    : LogitRows::kNone,
         .sample = draws && !on_host});
  }
  Outcome outcome{.logits = runner_.step(chunks_), .samples = runner_.samples()};
  ++counts_.steps;
  for (std::size_t i = 0; i < chunks_.size(); ++i) deal(plan.chunks[i], chunks_[i].sample, outcome);
  for (const BlockId block : scheduler_.take_spoiled()) runner_.cache().zero_block(block);
  publish();
}

void BatchingEngine::admit(const StepPlan& plan) {
  for (const auto& [sequence, place] : plan.admissions) {
    if (place) store_.restore(*place, sequence->slot);
    auto& request = static_cast<Request&>(*sequence);
    const auto prompt = static_cast<std::size_t>(request.prompt_size);
    const std::span<const std::int32_t> tokens = request.tokens;
    runner_.set_sampling(request.slot, request.sampler.params(), tokens.first(prompt),
                         tokens.subspan(prompt));
    if (request.started) continue;
    leave_queue(request);
    counts_.prompt_tokens += request.prompt_size;
    counts_.cached_prompt_tokens += request.cached_tokens;
  }
}

void BatchingEngine::leave_queue(Request& request) {
  if (std::exchange(request.started, true)) return;
  ++started_requests_;
  started_tokens_ += request.prompt_size;
}

// Takes what the step computed for one chunk off the front of `outcome`.
void BatchingEngine::deal(const StepPlan::Chunk& chunk, bool sampled, Outcome& outcome) {
  auto& request = static_cast<Request&>(*chunk.sequence);
  const bool ends = request.computed + chunk.count == request.size();

  // Rows are looked at before anybody may find the chunk's blocks.
  const bool on_host = ends && request.constrained && request.max_tokens != 0;
  const std::int64_t rows = chunk.all_logits ? chunk.count : on_host ? 1 : 0;
  const auto own = outcome.logits.first(static_cast<std::size_t>(rows * vocab_size()));
  outcome.logits = outcome.logits.subspan(own.size());
  bool sound = !chunk.all_logits || score_rows(request, own);
  RequestEvent event;
  if (sampled) {
    request.sampler.take(outcome.samples.front(), event);
    outcome.samples = outcome.samples.subspan(1);
  } else if (on_host && sound) {
    const auto last = own.last(static_cast<std::size_t>(vocab_size()));
    request.sampler.take(request.constrained->draw(last, request.tokens, request.prompt_size,
                                                   request.sampler.params(), workspace_),
                         event);
  }
  sound = sound && (event.token || !(sampled || on_host));
  if (!sound) {
    scheduler_.spoil(request);
    return end(request, RequestEnd::kNonFinite);
  }
  if (const auto place = scheduler_.complete(chunk)) store_.save(request.slot, *place);
  if (ends) append(request, std::move(event));
}

// Row i scores the prompt's token after position computed + i. False if a row is not finite.
bool BatchingEngine::score_rows(Request& request, std::span<const float> rows) {
  const auto vocab = static_cast<std::size_t>(vocab_size());
  request.prompt_logprobs.resize(static_cast<std::size_t>(request.computed));  // after preemption
  for (std::size_t i = 0; i < rows.size() / vocab; ++i) {
    const std::size_t token = static_cast<std::size_t>(request.computed) + i + 1;
    if (token >= static_cast<std::size_t>(request.prompt_size)) break;
    request.prompt_logprobs.push_back(request.sampler.score_prompt(
        rows.subspan(i * vocab, vocab), request.tokens[token], workspace_));
    if (request.prompt_logprobs.back().empty()) return false;
  }
  if (static_cast<std::int64_t>(request.prompt_logprobs.size()) < request.prompt_size - 1)
    return true;
  request.score_prompt = false;
  RequestEvent event;
  event.prompt_logprobs = std::move(request.prompt_logprobs);
  put_out(request, std::move(event));
  return true;
}

void BatchingEngine::append(Request& request, RequestEvent&& event) {
  if (!event.token) return end(request, RequestEnd::kLength);  // none was asked for
  if (std::ranges::find(request.stop_tokens, *event.token) != request.stop_tokens.end())
    return end(request, RequestEnd::kStop);
  request.tokens.push_back(*event.token);
  ++counts_.output_tokens;
  if (request.outputs() == request.max_tokens || request.size() == max_model_len())
    return end(request, RequestEnd::kLength, std::move(event));
  put_out(request, std::move(event));
}

void BatchingEngine::end(Request& request, RequestEnd how, RequestEvent&& event) {
  event.end = how;
  put_out(request, std::move(event));
  scheduler_.finish(request);
  leave_queue(request);
  ++counts_.finished[static_cast<std::size_t>(how)];
  const auto found = requests_.find(request.id);
  ended_.push_back(std::move(found->second));
  requests_.erase(found);
}

void BatchingEngine::put_out(Request& request, RequestEvent&& event) {
  event.cached_tokens = request.cached_tokens;
  events_.emplace_back(&request, std::move(event));
}

// Makes the step's outcome visible: first in the statistics, then as events.
void BatchingEngine::publish() {
  const BlockPool& pool = scheduler_.pool();
  counts_.running = scheduler_.running();
  counts_.kv_blocks_total = pool.total();
  counts_.kv_blocks_used = pool.used();
  counts_.kv_blocks_cached = pool.cached();
  counts_.preemptions = scheduler_.preemptions();
  const std::int64_t fresh =
      std::ranges::count_if(requests_, [](const auto& entry) { return !entry.second->started; });
  {
    const std::lock_guard lock(mutex_);
    stats_ = counts_;
    stats_.waiting = scheduler_.waiting() - fresh;  // preempted; stats() adds the queue
    waiting_room_.leave(std::exchange(started_requests_, 0), std::exchange(started_tokens_, 0));
  }
  for (auto& [request, event] : events_) request->on_event(std::move(event));
  events_.clear();
  if (ended_.empty()) return;
  const auto count = static_cast<std::int64_t>(ended_.size());
  ended_.clear();
  const std::lock_guard lock(mutex_);
  unfinished_ -= count;
  if (unfinished_ == 0) settled_.notify_all();
}

}  // namespace

std::unique_ptr<Engine> make_engine(ModelRunner& runner, const SchedulerOptions& options) {
  return std::make_unique<BatchingEngine>(runner, options);
}

}  // namespace quatrain

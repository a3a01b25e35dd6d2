// SPDX-License-Identifier: Apache-2.0
// The engine gives every request what it would get alone, whatever else runs, and ends it as asked.
#include <cmath>
#include <numeric>
#include <random>
#include <thread>

#include "support/engine_harness.h"
#include "support/random_model.h"

namespace quatrain::testing {
namespace {

constexpr std::int32_t kVocab = 61;

EngineOptions options(std::int64_t sequences = 8, std::int64_t length = 400) {
  EngineOptions o;
  o.max_model_len = length;
  o.max_num_seqs = sequences;
  o.max_num_batched_tokens = 80;
  o.max_logit_rows = 64;
  o.guard = true;
  return o;
}

class EngineTest : public ::testing::Test {
 protected:
  EngineRequest request(std::int64_t length, std::int64_t max_tokens) {
    EngineRequest r;
    for (std::int64_t i = 0; i < length; ++i) r.prompt.push_back(number(0, kVocab - 1));
    r.max_tokens = max_tokens;
    r.sampling.seed = random_();
    return r;
  }
  // With settings of every kind.
  EngineRequest random_request(std::int64_t longest, std::int64_t most) {
    EngineRequest r =
        request(number(1, static_cast<int>(longest)), number(1, static_cast<int>(most)));
    const auto chance = [&] { return number(0, 2) == 0; };
    if (chance()) r.sampling.temperature = 0;
    if (chance()) r.sampling.top_k = number(1, 20);
    if (chance()) r.sampling.top_p = 0.8f;
    if (chance()) r.sampling.min_p = 0.05f;
    if (chance()) r.sampling.repetition_penalty = 1.3f;
    if (chance()) r.sampling.frequency_penalty = 0.5f;
    if (chance()) r.sampling.logit_bias = {{number(0, kVocab - 1), 3.0f}};
    if (chance()) r.stop_tokens = {number(0, kVocab - 1), number(0, kVocab - 1)};
    if (chance()) r.sampling.min_tokens = number(0, 10);
    r.priority = number(-1, 1);
    return r;
  }
  static void expect_idle(const Engine& engine) {
    const EngineStats stats = engine.stats();
    EXPECT_EQ(stats.kv_blocks_used, 0);
    EXPECT_EQ(stats.running, 0);
    EXPECT_EQ(stats.waiting, 0);
    EXPECT_EQ(stats.waiting_tokens, 0);
  }
  std::int32_t number(int low, int high) {
    return std::uniform_int_distribution<std::int32_t>(low, high)(random_);
  }

  std::mt19937_64 random_{17};
  RandomModel model{TinyShape{}, 31};
  std::filesystem::path folder = model.write();
};

TEST_F(EngineTest, EachAmong64OthersGetsWhatItGetsAlone) {
  CpuModel batched(folder, options(64)), single(folder, options(1));
  const std::unique_ptr<Engine> engine = make_engine(batched.runner);
  for (int round = 0; round < 2; ++round) {
    Client client(*engine);
    std::vector<EngineRequest> requests;
    for (int i = 0; i < 65; ++i) requests.push_back(random_request(200, 30));
    for (const EngineRequest& r : requests) {
      client.submit(r);
      if (number(0, 3) == 0) std::this_thread::sleep_for(std::chrono::milliseconds(number(0, 5)));
    }
    client.wait();
    for (std::size_t i = 0; i < requests.size(); ++i)
      EXPECT_EQ(client.outcome(i).tokens, alone(single, requests[i])) << "request " << i;
    expect_idle(*engine);
  }
}

// The pool holds a quarter of what the requests want, so they are preempted and run again.
TEST_F(EngineTest, PreemptionChangesNoToken) {
  EngineOptions tight = options(8);
  tight.kv_blocks = 8;
  CpuModel batched(folder, tight), single(folder, options(1));
  for (const std::int64_t snapshots : {0, 6}) {
    const std::unique_ptr<Engine> engine =
        make_engine(batched.runner, {.prefix_snapshots = snapshots});
    Client client(*engine);
    std::vector<EngineRequest> requests;
    for (int i = 0; i < 10; ++i) requests.push_back(request(number(20, 120), 200));
    client.submit_together(requests);
    client.wait();
    for (std::size_t i = 0; i < requests.size(); ++i)
      EXPECT_EQ(client.outcome(i).tokens, alone(single, requests[i])) << "request " << i;
    EXPECT_GT(engine->stats().preemptions, 0);
    expect_idle(*engine);
  }
}

TEST_F(EngineTest, AbortsAtRandomMomentsLeaveNothingBehindAndDisturbNobody) {
  EngineOptions tight = options(6);
  tight.kv_blocks = 9;
  CpuModel batched(folder, tight), single(folder, options(1));
  const std::unique_ptr<Engine> engine = make_engine(batched.runner, {.prefix_snapshots = 5});
  std::int64_t cancelled = 0;
  for (int round = 0; round < 8; ++round) {
    Client client(*engine);
    std::vector<EngineRequest> requests;
    std::vector<std::size_t> doomed;
    for (int i = 0; i < 12; ++i) {
      requests.push_back(random_request(200, 60));
      client.submit(requests.back());
      if (number(0, 1) == 0) doomed.push_back(static_cast<std::size_t>(i));
    }
    for (const std::size_t i : doomed) {
      std::this_thread::sleep_for(std::chrono::microseconds(number(0, 8000)));
      client.cancel(i);
      client.cancel(i);
    }
    client.wait();
    for (std::size_t i = 0; i < requests.size(); ++i) {
      const Outcome got = client.outcome(i);
      std::vector<std::int32_t> want = alone(single, requests[i]);
      if (got.end == RequestEnd::kCancelled) {
        ++cancelled;
        ASSERT_LE(got.tokens.size(), want.size());
        want.resize(got.tokens.size());
      }
      EXPECT_EQ(got.tokens, want) << "request " << i;
    }
    expect_idle(*engine);
  }
  EXPECT_EQ(engine->stats().finished[2], cancelled);
  EXPECT_GT(cancelled, 10);
  engine->cancel(1u << 30);  // unknown
}

// A token whose embedding is NaN poisons the requests that contain it.
TEST_F(EngineTest, NonFiniteLogitsEndThatRequestAloneAndLeaveNoPrefix) {
  RandomModel sick(TinyShape{}, 31);
  std::vector<float>& embed = sick.floats("embed.weight");
  std::fill(embed.end() - sick.shape().hidden, embed.end(), NAN);
  CpuModel batched(sick.write(), options()), single(folder, options(1));
  const std::unique_ptr<Engine> engine = make_engine(batched.runner);
  for (int round = 0; round < 3; ++round) {
    Client client(*engine);
    std::vector<EngineRequest> requests;
    for (int i = 0; i < 8; ++i) {
      requests.push_back(request(number(130, 300), 20));
      requests.back().sampling.logit_bias = {{kVocab - 1, -100.0f}};
      for (std::int32_t& token : requests.back().prompt) token %= kVocab - 1;
      if (i % 3 == 0) requests.back().prompt[100] = kVocab - 1;
      if (i == 3) requests.back().prompt_logprobs = 0;
    }
    for (const EngineRequest& r : requests) client.submit(r);
    client.wait();
    for (std::size_t i = 0; i < requests.size(); ++i) {
      const Outcome got = client.outcome(i);
      if (i % 3 == 0) {
        EXPECT_EQ(got.end, RequestEnd::kNonFinite);
        EXPECT_TRUE(got.tokens.empty());
        EXPECT_EQ(client.run(requests[i]).cached_tokens, 0) << "a poisoned prefix was kept";
      } else {
        EXPECT_EQ(got.tokens, alone(single, requests[i])) << "request " << i;
      }
    }
    expect_idle(*engine);
  }
  // No block keeps a NaN for those who come after.
  for (std::int64_t l = 0; l < batched.runner.config().num_layers; ++l)
    for (const RowPool* pool :
         {&batched.runner.cache().layer(l).entries, &batched.runner.cache().layer(l).index_keys}) {
      if (!pool->rows) continue;
      const std::span rows(pool->rows.f32(), static_cast<std::size_t>(pool->rows.elements()));
      EXPECT_TRUE(std::ranges::none_of(rows, [](float v) { return std::isnan(v); }));
    }
}

TEST_F(EngineTest, EndsAsAsked) {
  CpuModel batched(folder, options()), single(folder, options(1));
  const std::unique_ptr<Engine> engine = make_engine(batched.runner);
  Client client(*engine);
  EngineRequest base = request(20, 50);
  const std::vector<std::int32_t> plain = alone(single, base);
  ASSERT_EQ(plain.size(), 50u);

  EngineRequest stops = base;
  stops.stop_tokens = {plain[4]};
  const auto first = std::ranges::find(plain, plain[4]) - plain.begin();
  Outcome got = client.run(stops);
  EXPECT_EQ(got.end, RequestEnd::kStop);
  EXPECT_EQ(got.tokens, std::vector(plain.begin(), plain.begin() + first));

  stops.sampling.min_tokens = 30;
  got = client.run(stops);
  EXPECT_EQ(got.tokens, alone(single, stops));
  EXPECT_GE(got.tokens.size(), 30u);
  EXPECT_TRUE(std::ranges::count(got.tokens, plain[4]) == 0);

  EngineRequest none = base;
  none.max_tokens = 0;
  got = client.run(none);
  EXPECT_EQ(got.end, RequestEnd::kLength);
  EXPECT_TRUE(got.tokens.empty());

  EngineRequest full = base;
  full.max_tokens = -1;
  full.stop_tokens.clear();
  got = client.run(full);
  EXPECT_EQ(got.end, RequestEnd::kLength);
  EXPECT_EQ(std::ssize(got.tokens) + 20, engine->max_model_len());
  EXPECT_EQ(engine->stats().finished[0] + engine->stats().finished[1], 4);
}

TEST_F(EngineTest, SeedsAreDrawnWhereNoneIsGiven) {
  CpuModel batched(folder, options());
  const std::unique_ptr<Engine> engine = make_engine(batched.runner);
  Client client(*engine);
  EngineRequest r = request(5, 40);
  r.sampling.seed.reset();
  r.sampling.temperature = 2;
  EXPECT_NE(client.run(r).tokens, client.run(r).tokens);
}

// Log-probabilities of prompt and output against those of whole-sequence logits in FP64.
TEST_F(EngineTest, LogprobsAreThoseOfTheRows) {
  CpuModel batched(folder, options(4)), single(folder, [] {
    EngineOptions o = options(1);
    o.max_num_batched_tokens = o.max_logit_rows = 400;
    return o;
  }());
  const std::unique_ptr<Engine> engine = make_engine(batched.runner);
  Client client(*engine);
  EngineRequest r = request(150, 12);
  r.sampling.logprobs = 3;
  r.prompt_logprobs = 2;
  const std::size_t noise[] = {client.submit(request(90, 30)), client.submit(request(200, 30))};
  const Outcome got = client.run(r);
  EXPECT_EQ(client.outcome(noise[0]).end, RequestEnd::kLength);
  std::vector<std::int32_t> all = r.prompt;
  all.insert(all.end(), got.tokens.begin(), got.tokens.end());
  ASSERT_EQ(all.size(), 162u);
  ASSERT_EQ(got.prompt_logprobs.size(), 149u);
  const SequenceChunk chunk{.tokens = all, .logits = LogitRows::kAll};
  const std::span<const float> logits = single.runner.step({&chunk, 1});
  for (std::size_t p = 1; p < all.size(); ++p) {
    const std::span<const float> row = logits.subspan((p - 1) * kVocab, kVocab);
    double total = 0;
    for (const float v : row) total += std::exp(static_cast<double>(v));
    const auto own = static_cast<std::size_t>(all[p]);
    const double want = row[own] - std::log(total);
    std::vector<std::int32_t> order(kVocab);
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, std::greater{}, [&](std::int32_t id) { return row[id]; });
    if (p < r.prompt.size()) {
      const std::vector<TokenLogprob>& scored = got.prompt_logprobs[p - 1];
      ASSERT_EQ(scored.size(), 3u);
      EXPECT_EQ(scored[0].token, all[p]);
      EXPECT_NEAR(scored[0].logprob, want, 1e-5);
      EXPECT_EQ(order[static_cast<std::size_t>(scored[0].rank - 1)], all[p]);
      EXPECT_EQ(scored[1].token, order[0]);
      EXPECT_EQ(scored[2].token, order[1]);
    } else {
      EXPECT_NEAR(got.logprobs[p - r.prompt.size()], want, 1e-5);
      EXPECT_EQ(got.alternatives[p - r.prompt.size()],
                (std::vector<std::int32_t>{order[0], order[1], order[2]}));
    }
  }
}

TEST_F(EngineTest, PromptScoresSurvivePreemption) {
  EngineOptions tight = options(4);
  tight.kv_blocks = 5;
  tight.max_logit_rows = 6;  // scoring a prompt takes many steps
  CpuModel batched(folder, tight), roomy(folder, options(4));
  const std::unique_ptr<Engine> engine = make_engine(batched.runner),
                                calm = make_engine(roomy.runner);
  Client client(*engine), reference(*calm);
  std::vector<EngineRequest> requests;
  for (int i = 0; i < 12; ++i) {
    requests.push_back(request(number(60, 125), 200));
    requests.back().prompt_logprobs = 1;
  }
  client.submit_together(requests);
  client.wait();
  EXPECT_GT(engine->stats().preemptions, 0);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const Outcome got = client.outcome(i), want = reference.run(requests[i]);
    EXPECT_EQ(got.tokens, want.tokens);
    ASSERT_EQ(got.prompt_logprobs.size(), want.prompt_logprobs.size());
    for (std::size_t p = 0; p < got.prompt_logprobs.size(); ++p)
      EXPECT_EQ(got.prompt_logprobs[p][0].logprob, want.prompt_logprobs[p][0].logprob);
  }
}

TEST_F(EngineTest, RefusesWhatCanNeverRun) {
  CpuModel batched(folder, options());
  const std::unique_ptr<Engine> engine = make_engine(batched.runner);
  const auto expect_invalid = [&](const char* field, auto&& change) {
    EngineRequest r = request(10, 5);
    change(r);
    const Engine::Submitted got = engine->submit(r, [](RequestEvent&&) { FAIL(); });
    EXPECT_EQ(got.refusal, Refusal::kInvalid) << field;
    EXPECT_TRUE(got.message.starts_with(field)) << got.message;
  };
  expect_invalid("prompt", [](EngineRequest& r) { r.prompt.clear(); });
  expect_invalid("prompt", [](EngineRequest& r) { r.prompt.assign(400, 1); });
  expect_invalid("prompt", [](EngineRequest& r) { r.prompt[3] = kVocab; });
  expect_invalid("prompt", [](EngineRequest& r) { r.prompt[3] = -1; });
  expect_invalid("max_tokens", [](EngineRequest& r) { r.max_tokens = -2; });
  expect_invalid("stop_tokens", [](EngineRequest& r) { r.stop_tokens = {kVocab}; });
  expect_invalid("prompt_logprobs", [](EngineRequest& r) { r.prompt_logprobs = 21; });
  expect_invalid("temperature", [](EngineRequest& r) { r.sampling.temperature = NAN; });
  expect_invalid("top_p", [](EngineRequest& r) { r.sampling.top_p = 0; });
  expect_invalid("min_tokens", [](EngineRequest& r) { r.sampling.min_tokens = -1; });
  expect_invalid("min_tokens", [](EngineRequest& r) {
    r.sampling.min_tokens = 1;
    for (std::int32_t id = 0; id < kVocab; ++id) r.stop_tokens.push_back(id);
  });
  expect_invalid("logprobs", [](EngineRequest& r) { r.sampling.logprobs = 99; });
  expect_invalid("logit_bias", [](EngineRequest& r) { r.sampling.logit_bias = {{-1, 1.0f}}; });
  EXPECT_EQ(engine->stats().waiting, 0);
}

TEST_F(EngineTest, RefusesOptionsThatCannotWork) {
  EngineOptions narrow = options(8);
  narrow.max_num_batched_tokens = 7;
  CpuModel few_rows(folder, narrow);
  EXPECT_THROW(make_engine(few_rows.runner), Error);
  CpuModel batched(folder, options());
  EXPECT_THROW(make_engine(batched.runner, {.max_queued_requests = 0}), Error);
  EXPECT_THROW(make_engine(batched.runner, {.prefix_snapshots = -1}), Error);
  EXPECT_THROW(make_engine(batched.runner, {.snapshot_interval = 100}), Error);
}

// Holds the engine inside a callback, so that nothing leaves the queue meanwhile.
class Gate {
 public:
  Engine::OnEvent hold() {
    return [this](RequestEvent&&) {
      std::unique_lock lock(mutex_);
      held_ = true;
      changed_.notify_all();
      changed_.wait(lock, [&] { return open_; });
    };
  }
  void wait_until_held() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return held_; });
  }
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false, open_ = false;
};

TEST_F(EngineTest, QueueIsBoundedInRequestsAndInTokens) {
  CpuModel batched(folder, options(1));
  const std::unique_ptr<Engine> engine =
      make_engine(batched.runner, {.max_queued_requests = 3, .max_queued_tokens = 100});
  Gate gate;
  EXPECT_FALSE(engine->submit(request(5, 4), gate.hold()).refusal);
  gate.wait_until_held();
  Client client(*engine);
  client.submit(request(300, 1));  // above the bound, but nothing else waits
  const auto refused = [&](std::int64_t length) {
    return engine->submit(request(length, 1), [](RequestEvent&&) { FAIL(); }).refusal ==
           Refusal::kQueueFull;
  };
  EXPECT_TRUE(refused(1));
  client.cancel(0);
  gate.open();
  client.wait();
  EXPECT_EQ(engine->stats().waiting_tokens, 0);

  Gate second;
  EXPECT_FALSE(engine->submit(request(5, 4), second.hold()).refusal);
  second.wait_until_held();
  client.submit(request(40, 1));
  client.submit(request(40, 1));
  EXPECT_TRUE(refused(21));
  client.submit(request(20, 1));
  EXPECT_EQ(engine->stats().waiting, 3);
  EXPECT_EQ(engine->stats().waiting_tokens, 100);
  EXPECT_TRUE(refused(1));
  second.open();
  client.wait();
  EXPECT_TRUE(engine->drain(std::chrono::seconds(60)));
  expect_idle(*engine);
}

TEST_F(EngineTest, DrainLetsRequestsFinishAndRefusesNewOnes) {
  CpuModel batched(folder, options());
  const std::unique_ptr<Engine> engine = make_engine(batched.runner);
  Client client(*engine);
  for (int i = 0; i < 12; ++i) client.submit(request(30, 20));
  EXPECT_TRUE(engine->drain(std::chrono::seconds(60)));
  for (std::size_t i = 0; i < 12; ++i) EXPECT_EQ(client.outcome(i).end, RequestEnd::kLength);
  EXPECT_EQ(engine->submit(request(3, 1), [](RequestEvent&&) {}).refusal, Refusal::kDraining);
}

TEST_F(EngineTest, DrainCancelsWhatTakesTooLong) {
  CpuModel batched(folder, options(2, 4000));
  const std::unique_ptr<Engine> engine = make_engine(batched.runner);
  Client client(*engine);
  for (int i = 0; i < 5; ++i) client.submit(request(10, -1));
  EXPECT_FALSE(engine->drain(std::chrono::milliseconds(20)));
  for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(client.outcome(i).end, RequestEnd::kCancelled);
  expect_idle(*engine);
}

TEST_F(EngineTest, DestructionCancelsEverything) {
  CpuModel batched(folder, options(2, 4000));
  std::unique_ptr<Engine> engine = make_engine(batched.runner);
  Client client(*engine);
  for (int i = 0; i < 5; ++i) client.submit(request(10, -1));
  client.wait_for_tokens(0, 1);
  engine.reset();
  for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(client.outcome(i).end, RequestEnd::kCancelled);
}

// Chunks of one step that want rows for the host, a drawn token, both or nothing get just that.
TEST_F(EngineTest, AStepGivesEveryChunkWhatItAsksFor) {
  CpuModel mixed(folder, options(6)), plain(folder, options(6));
  std::vector<std::vector<std::int32_t>> prompts;
  for (int s = 0; s < 6; ++s) prompts.push_back(request(5 + s, 1).prompt);
  const LogitRows rows[] = {LogitRows::kNone, LogitRows::kLast, LogitRows::kAll,
                            LogitRows::kNone, LogitRows::kAll,  LogitRows::kLast};
  const bool samples[] = {true, false, true, false, false, true};
  std::vector<SequenceChunk> chunks;
  std::vector<float> logits;
  std::vector<std::int32_t> drawn;
  SamplerWorkspace workspace(kVocab);
  for (int s = 0; s < 6; ++s) {
    const SamplingParams params = {.seed = static_cast<std::uint64_t>(s)};
    mixed.runner.set_sampling(s, params, {});
    chunks.push_back({.slot = s, .tokens = prompts[s], .logits = rows[s], .sample = samples[s]});
    const SequenceChunk all = {.slot = s, .tokens = prompts[s], .logits = LogitRows::kAll};
    const std::span<const float> own = plain.runner.step({&all, 1});
    const std::span<const float> last = own.last(kVocab);
    if (rows[s] == LogitRows::kAll) logits.insert(logits.end(), own.begin(), own.end());
    if (rows[s] == LogitRows::kLast) logits.insert(logits.end(), last.begin(), last.end());
    if (samples[s])
      drawn.push_back(
          sample({.logits = last, .position = prompts[s].size()}, params, workspace).token);
  }
  const std::span<const float> got = mixed.runner.step(chunks);
  EXPECT_EQ(std::vector(got.begin(), got.end()), logits);
  ASSERT_EQ(mixed.runner.samples().size(), drawn.size());
  for (std::size_t i = 0; i < drawn.size(); ++i)
    EXPECT_EQ(mixed.runner.samples()[i].token, drawn[i]) << "sample " << i;
}

TEST_F(EngineTest, AShortRequestBesideLongPromptsHasItsTokenWithinThreeSteps) {
  CpuModel batched(folder, options(16, 4000));
  const std::unique_ptr<Engine> engine = make_engine(batched.runner, {.prefix_snapshots = 0});
  Client client(*engine);
  for (int i = 0; i < 8; ++i) client.submit(request(3900, 1));
  while (engine->stats().steps < 3) std::this_thread::yield();
  const std::int64_t before = engine->stats().steps;
  const std::size_t brief = client.submit(request(25, 3));
  client.wait_for_tokens(brief, 1);
  EXPECT_LE(client.outcome(brief).steps_at_first, before + 3);
  for (std::size_t i = 0; i < 8; ++i) client.cancel(i);
  client.wait();
}

}  // namespace
}  // namespace quatrain::testing

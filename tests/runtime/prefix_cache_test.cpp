// SPDX-License-Identifier: Apache-2.0
// Resuming a prefix from the cache gives the bits of a cold run, and says how much was resumed.
#include <cstring>
#include <random>

#include "runtime/snapshot_store.h"
#include "support/engine_harness.h"
#include "support/random_model.h"

namespace quatrain::testing {
namespace {

constexpr std::int32_t kVocab = 61;

EngineOptions options(std::int64_t sequences = 4) {
  EngineOptions o;
  o.max_model_len = 1400;
  o.max_num_seqs = sequences;
  o.max_num_batched_tokens = 300;
  o.guard = true;
  return o;
}

// Whether the second model has quantised weights and an odd window.
class PrefixCache : public ::testing::TestWithParam<bool> {
 protected:
  static TinyShape shape() {
    TinyShape s;
    s.ratios = {0, 4, 128, 4};
    s.mtp_layers = 1;
    if (GetParam()) {
      s.quantised = true;
      s.window = 100;
    }
    return s;
  }
  std::vector<std::int32_t> tokens(std::int64_t count) {
    std::vector<std::int32_t> out;
    for (std::int64_t i = 0; i < count; ++i)
      out.push_back(std::uniform_int_distribution<std::int32_t>(0, kVocab - 1)(random_));
    return out;
  }
  // `shared` tokens of one stem, then others.
  EngineRequest request(std::int64_t shared, std::int64_t rest, std::int64_t max_tokens = 20) {
    EngineRequest r;
    r.prompt.assign(stem_.begin(), stem_.begin() + shared);
    const std::vector<std::int32_t> tail = tokens(rest);
    r.prompt.insert(r.prompt.end(), tail.begin(), tail.end());
    r.max_tokens = max_tokens;
    r.sampling.seed = random_();
    r.sampling.logprobs = 20;
    return r;
  }
  static void expect_same_bits(const Outcome& got, const Outcome& want) {
    EXPECT_EQ(got.tokens, want.tokens);
    EXPECT_EQ(got.alternatives, want.alternatives);
    ASSERT_EQ(got.logprobs.size(), want.logprobs.size());
    EXPECT_EQ(
        std::memcmp(got.logprobs.data(), want.logprobs.data(), got.logprobs.size() * sizeof(float)),
        0);
  }

  std::mt19937_64 random_{5};
  std::vector<std::int32_t> stem_ = tokens(1300);
  RandomModel model{shape(), 77};
  std::filesystem::path folder = model.write();
};

TEST_P(PrefixCache, SharedPrefixesGiveTheBitsOfAColdRun) {
  CpuModel warm(folder, options()), cold(folder, options());
  const auto cached = make_engine(warm.runner);
  const auto uncached = make_engine(cold.runner, {.prefix_snapshots = 0});
  Client client(*cached), reference(*uncached);
  const auto expect_cached = [&](const EngineRequest& r, std::int64_t tokens) {
    const Outcome got = client.run(r), want = reference.run(r);
    EXPECT_EQ(got.cached_tokens, tokens);
    EXPECT_EQ(want.cached_tokens, 0);
    expect_same_bits(got, want);
  };
  expect_cached(request(1000, 200), 0);
  for (const auto& [shared, hit] : {std::pair(130, 128), {257, 256}, {1000, 896}, {127, 0}})
    for (const std::int64_t rest : {1, 100, 250}) expect_cached(request(shared, rest), hit);
  for (const auto& [length, hit] : {std::pair(128, 0), {129, 128}, {256, 128}, {640, 512}})
    expect_cached(request(length, 0), hit);
  const EngineRequest twice = request(0, 700);
  expect_cached(twice, 0);
  expect_cached(twice, 640);
  const EngineStats stats = cached->stats();
  EXPECT_EQ(stats.cached_prompt_tokens, 3 * (128 + 256 + 896) + 128 + 128 + 512 + 640);
}

// A second turn holds the first one's output, so it resumes inside it.
TEST_P(PrefixCache, TheNextTurnResumesInsideTheOutput) {
  CpuModel warm(folder, options()), cold(folder, options());
  const auto cached = make_engine(warm.runner, {.snapshot_interval = 0});
  const auto uncached = make_engine(cold.runner, {.prefix_snapshots = 0});
  Client client(*cached), reference(*uncached);
  EngineRequest first = request(300, 0, 250);
  const Outcome answer = client.run(first);
  EngineRequest second = first;
  second.prompt.insert(second.prompt.end(), answer.tokens.begin(), answer.tokens.end());
  const std::vector<std::int32_t> question = tokens(40);
  second.prompt.insert(second.prompt.end(), question.begin(), question.end());
  const Outcome got = client.run(second);
  EXPECT_EQ(got.cached_tokens, 512);  // of 550 tokens, the last of which was never run
  expect_same_bits(got, reference.run(second));
}

// Without regular snapshots the second prompt resumes where a chunk of the first one ended, and
// learns the border where they part.
TEST_P(PrefixCache, WherePromptsPartIsLearned) {
  CpuModel warm(folder, options());
  const auto engine = make_engine(warm.runner, {.snapshot_interval = 0});
  Client client(*engine);
  EXPECT_EQ(client.run(request(400, 500)).cached_tokens, 0);
  EXPECT_EQ(client.run(request(400, 500)).cached_tokens, 256);  // of steps of 300 rows
  EXPECT_EQ(client.run(request(400, 500)).cached_tokens, 384);
}

TEST_P(PrefixCache, AnswersToOnePromptShareIt) {
  CpuModel warm(folder, options()), cold(folder, options());
  const auto cached = make_engine(warm.runner);
  const auto uncached = make_engine(cold.runner, {.prefix_snapshots = 0});
  Client client(*cached), reference(*uncached);
  const EngineRequest first = request(400, 0);
  for (std::uint64_t i = 0; i < 4; ++i) {
    EngineRequest r = first;
    r.sampling.seed = i;
    client.submit(r);
    reference.submit(r);
  }
  client.wait();
  reference.wait();
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(client.outcome(i).cached_tokens, i == 0 ? 0 : 384);
    expect_same_bits(client.outcome(i), reference.outcome(i));
  }
}

// Few snapshots and blocks, requests that evict each other's: still the bits of a cold run.
TEST_P(PrefixCache, EvictionAndSharingUnderPressureChangeNoBit) {
  EngineOptions tight = options();
  tight.kv_blocks = 14;
  CpuModel warm(folder, tight), cold(folder, options());
  const auto cached = make_engine(warm.runner, {.prefix_snapshots = 7});
  const auto uncached = make_engine(cold.runner, {.prefix_snapshots = 0});
  Client client(*cached), reference(*uncached);
  std::vector<EngineRequest> requests;
  for (int i = 0; i < 24; ++i) {
    const std::int64_t shared[] = {0, 130, 257, 400, 650};
    requests.push_back(request(shared[random_() % 5],
                               1 + static_cast<std::int64_t>(random_() % 200),
                               1 + static_cast<std::int64_t>(random_() % 150)));
  }
  for (const EngineRequest& r : requests) client.submit(r), reference.submit(r);
  client.wait();
  reference.wait();
  for (std::size_t i = 0; i < requests.size(); ++i)
    expect_same_bits(client.outcome(i), reference.outcome(i));
  EXPECT_GT(cached->stats().cached_prompt_tokens, 0);
  EXPECT_EQ(cached->stats().kv_blocks_used, 0);
}

// Below the engine: a state saved at a border, restored to another slot over shared blocks.
TEST_P(PrefixCache, ARestoredSlotContinuesToTheBit) {
  CpuModel loaded(folder, options(3), 2);
  ModelRunner& runner = loaded.runner;
  SnapshotStore store(loaded.ops, runner.cache(), 3, 2);
  const std::vector<std::int32_t> ids = tokens(600);
  const auto run = [&](std::int64_t slot, std::int64_t from, std::int64_t to) {
    std::vector<float> last;
    for (std::int64_t p = from; p < to;) {
      const std::int64_t n =
          std::min<std::int64_t>(to - p, 1 + static_cast<std::int64_t>(random_() % 90));
      const SequenceChunk chunk{.slot = slot,
                                .position = p,
                                .tokens = std::span(ids).subspan(static_cast<std::size_t>(p),
                                                                 static_cast<std::size_t>(n))};
      const std::span<const float> logits = runner.step({&chunk, 1});
      last.assign(logits.begin(), logits.end());
      p += n;
    }
    return last;
  };
  runner.cache().poison(loaded.ops);
  const std::int32_t shared[] = {2, 9, 4}, own[] = {11, 13}, others[] = {20, 21};
  runner.set_blocks(0, 0, shared);
  runner.set_blocks(0, 3, own);
  run(0, 0, 384);
  store.save(0, 1);
  const std::vector<float> want = run(0, 384, 600);
  runner.set_blocks(2, 0, shared);
  runner.set_blocks(2, 3, others);
  store.restore(1, 2);
  const std::vector<float> got = run(2, 384, 600);
  EXPECT_EQ(std::memcmp(got.data(), want.data(), got.size() * sizeof(float)), 0);
}

INSTANTIATE_TEST_SUITE_P(Models, PrefixCache, ::testing::Values(false, true),
                         [](const auto& test) { return test.param ? "Quantised" : "Full"; });

}  // namespace
}  // namespace quatrain::testing

// SPDX-License-Identifier: Apache-2.0
// The simulated engine keeps the promises of the interface: rates, queue, cancelling, draining.
#include "runtime/simulated_engine.h"

#include "support/engine_harness.h"

namespace quatrain::testing {
namespace {

EngineRequest request(std::int64_t length, std::int64_t max_tokens) {
  EngineRequest r;
  for (std::int64_t i = 0; i < length; ++i) r.prompt.push_back(static_cast<std::int32_t>(i % 100));
  r.max_tokens = max_tokens;
  return r;
}

TEST(SimulatedEngine, RepeatsItsOutputAtTheRateAskedFor) {
  const auto engine = make_simulated_engine({.tokens_per_second = 200, .output = {5, 6, 7}});
  Client client(*engine);
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 20; ++i) client.submit(request(10, 41));
  client.wait();
  const double took =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  EXPECT_GE(took, 0.2);  // 40 intervals of 5 ms, all requests at the same time
  for (std::size_t i = 0; i < 20; ++i) {
    const Outcome got = client.outcome(i);
    ASSERT_EQ(got.tokens.size(), 41u);
    for (std::size_t t = 0; t < 41; ++t) EXPECT_EQ(got.tokens[t], 5 + static_cast<int>(t % 3));
    EXPECT_EQ(got.end, RequestEnd::kLength);
  }
  EXPECT_EQ(engine->stats().output_tokens, 20 * 41);
  EXPECT_EQ(engine->stats().kv_blocks_used, 0);
}

TEST(SimulatedEngine, StopsCancelsAndCountsBlocks) {
  const auto engine =
      make_simulated_engine({.tokens_per_second = 1000, .max_num_seqs = 2, .output = {5, 6, 7}});
  Client client(*engine);
  EngineRequest stops = request(3, 100);
  stops.stop_tokens = {7};
  EXPECT_EQ(client.run(stops).tokens, (std::vector<std::int32_t>{5, 6}));
  EXPECT_EQ(client.outcome(0).end, RequestEnd::kStop);
  const std::size_t endless = client.submit(request(129, -1));
  client.wait_for_tokens(endless, 3);
  EXPECT_EQ(engine->stats().kv_blocks_used, 2);
  client.cancel(endless);
  client.wait();
  EXPECT_EQ(client.outcome(endless).end, RequestEnd::kCancelled);
  EXPECT_EQ(engine->stats().kv_blocks_used, 0);
  EXPECT_EQ(client.run(request(3, 0)).end, RequestEnd::kLength);
}

TEST(SimulatedEngine, QueueIsBoundedAndDrainEndsEverything) {
  const auto engine =
      make_simulated_engine({.tokens_per_second = 10, .max_num_seqs = 1, .max_queued_requests = 2});
  Client client(*engine);
  client.submit(request(3, -1));
  client.wait_for_tokens(0, 1);
  for (int i = 0; i < 2; ++i) client.submit(request(3, -1));
  EXPECT_EQ(engine->submit(request(3, 1), [](RequestEvent&&) {}).refusal, Refusal::kQueueFull);
  EXPECT_EQ(engine->submit(request(0, 1), [](RequestEvent&&) {}).refusal, Refusal::kInvalid);
  EXPECT_EQ(engine->submit(request(8192, 1), [](RequestEvent&&) {}).refusal, Refusal::kInvalid);
  EXPECT_FALSE(engine->drain(std::chrono::milliseconds(10)));
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(client.outcome(i).end, RequestEnd::kCancelled);
  EXPECT_EQ(engine->submit(request(3, 1), [](RequestEvent&&) {}).refusal, Refusal::kDraining);
}

TEST(SimulatedEngine, RefusesNonsense) {
  EXPECT_THROW(make_simulated_engine({.tokens_per_second = 0}), Error);
  EXPECT_THROW(make_simulated_engine({.vocab_size = 5, .output = {5}}), Error);
}

}  // namespace
}  // namespace quatrain::testing

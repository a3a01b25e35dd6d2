// SPDX-License-Identifier: Apache-2.0
// The engine gives every request what it would get alone, whatever else runs, and ends it as asked.
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
  o.max_num_batched_tokens = 64;
  o.max_logit_rows = 32;
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
  std::int32_t number(int low, int high) {
    return std::uniform_int_distribution<std::int32_t>(low, high)(random_);
  }

  std::mt19937_64 random_{17};
  RandomModel model{TinyShape{}, 31};
  std::filesystem::path folder = model.write();
};

TEST_F(EngineTest, ManyRequestsGetWhatEachGetsAlone) {
  CpuModel batched(folder, options()), single(folder, options(1));
  const std::unique_ptr<Engine> engine = make_engine(batched.runner);
  for (int round = 0; round < 3; ++round) {
    Client client(*engine);
    std::vector<EngineRequest> requests;
    for (int i = 0; i < 20; ++i) requests.push_back(random_request(200, 40));
    for (const EngineRequest& r : requests) {
      client.submit(r);
      if (number(0, 3) == 0) std::this_thread::sleep_for(std::chrono::milliseconds(number(0, 5)));
    }
    client.wait();
    for (std::size_t i = 0; i < requests.size(); ++i)
      EXPECT_EQ(client.outcome(i).tokens, alone(single, requests[i])) << "request " << i;
    EXPECT_EQ(engine->stats().kv_blocks_used, 0);
    EXPECT_EQ(engine->stats().running + engine->stats().waiting, 0);
  }
}

}  // namespace
}  // namespace quatrain::testing

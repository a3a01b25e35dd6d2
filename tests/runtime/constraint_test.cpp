// SPDX-License-Identifier: Apache-2.0
// Constrained requests get only tokens that are allowed, and nobody else notices.
#include <cmath>
#include <numeric>
#include <random>

#include "support/engine_harness.h"
#include "support/random_model.h"

namespace quatrain::testing {
namespace {

constexpr std::int32_t kVocab = 61;
constexpr std::int32_t kStop = 7;

// Allows the ids whose remainder by `modulus` is that of the number of tokens so far; after
// `length` tokens only kStop.
class Remainders final : public TokenConstraint {
 public:
  Remainders(std::int32_t modulus, std::size_t length) : modulus_(modulus), length_(length) {}

  std::span<const std::uint32_t> allowed() override {
    mask_.assign(2, 0);
    for (std::int32_t id = 0; id < kVocab; ++id)
      if (allows(id)) mask_[static_cast<std::size_t>(id) / 32] |= std::uint32_t{1} << (id % 32);
    return mask_;
  }
  void advance(std::int32_t token) override {
    EXPECT_TRUE(allows(token));
    ++count_;
  }
  [[nodiscard]] bool allows(std::int32_t id) const {
    if (count_ == length_) return id == kStop;
    return id != kStop && id % modulus_ == static_cast<std::int32_t>(count_) % modulus_;
  }

 private:
  std::int32_t modulus_;
  std::size_t length_, count_ = 0;
  std::vector<std::uint32_t> mask_;
};

class ConstraintTest : public ::testing::Test {
 protected:
  EngineRequest request(std::int64_t length, std::int64_t max_tokens) {
    EngineRequest r;
    for (std::int64_t i = 0; i < length; ++i)
      r.prompt.push_back(static_cast<std::int32_t>(random_() % kVocab));
    r.max_tokens = max_tokens;
    r.sampling.seed = random_();
    r.stop_tokens = {kStop};
    return r;
  }
  static EngineOptions options(std::int64_t sequences) {
    EngineOptions o;
    o.max_model_len = 400;
    o.max_num_seqs = sequences;
    o.max_num_batched_tokens = 80;
    o.max_logit_rows = 64;
    o.guard = true;
    return o;
  }

  std::mt19937_64 random_{3};
  RandomModel model{TinyShape{}, 31};
  std::filesystem::path folder = model.write();
};

TEST_F(ConstraintTest, OthersGetWhatTheyGetAlone) {
  EngineOptions tight = options(8);
  tight.kv_blocks = 8;  // some are preempted
  CpuModel batched(folder, tight), single(folder, options(1));
  const std::unique_ptr<Engine> engine = make_engine(batched.runner);
  const std::unique_ptr<Engine> other = make_engine(single.runner);
  Client client(*engine), lonely(*other);
  std::vector<EngineRequest> requests;
  for (std::size_t i = 0; i < 24; ++i) {
    requests.push_back(request(1 + static_cast<std::int64_t>(random_() % 150), 30));
    RequestSampling& s = requests.back().sampling;
    if (i % 3 == 0) s.temperature = 0;
    if (i % 4 == 0) s.frequency_penalty = 0.7f;
    if (i % 5 == 0) requests.back().prompt_logprobs = 1;
    s.logprobs = 3;
  }
  const auto is_constrained = [](std::size_t i) { return i % 2 == 0; };
  const auto constrain = [&](std::size_t i) {
    if (is_constrained(i)) requests[i].constraint = std::make_shared<Remainders>(5, 10 + i);
    return requests[i];
  };
  for (std::size_t i = 0; i < requests.size(); ++i) client.submit(constrain(i));
  client.wait();
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const Outcome outcome = client.outcome(i);
    const Outcome same = lonely.run(constrain(i));
    EXPECT_EQ(outcome.tokens, same.tokens) << "request " << i;
    EXPECT_EQ(outcome.logprobs, same.logprobs) << "request " << i;
    EXPECT_EQ(outcome.prompt_logprobs.size(), same.prompt_logprobs.size()) << "request " << i;
    if (!is_constrained(i)) continue;
    EXPECT_EQ(outcome.tokens.size(), std::min<std::size_t>(30, 10 + i));
    EXPECT_EQ(outcome.end, 10 + i < 30 ? RequestEnd::kStop : RequestEnd::kLength);
    for (std::size_t k = 0; k < outcome.tokens.size(); ++k) {
      EXPECT_EQ(outcome.tokens[k] % 5, static_cast<std::int32_t>(k % 5));
      for (const std::int32_t id : outcome.alternatives[k])
        EXPECT_EQ(id % 5, static_cast<std::int32_t>(k % 5));
    }
  }
}

TEST_F(ConstraintTest, LogprobsAreThoseOfWhatIsAllowed) {
  CpuModel batched(folder, options(2));
  const std::unique_ptr<Engine> engine = make_engine(batched.runner);
  Client client(*engine);
  EngineRequest r = request(20, 1);
  r.sampling.temperature = 0;
  r.sampling.logprobs = 20;
  const auto bias_only = [&] {  // the same distribution by other means
    EngineRequest biased = r;
    for (std::int32_t id = 0; id < kVocab; ++id)
      if (id % 31 != 0) biased.sampling.logit_bias.emplace_back(id, -100.0f);
    return biased;
  };
  const Outcome expected = client.run(bias_only());
  r.constraint = std::make_shared<Remainders>(31, 5);
  const std::size_t index = client.submit(r);
  client.wait();
  const Outcome outcome = client.outcome(index);
  EXPECT_EQ(outcome.tokens, expected.tokens);
  EXPECT_EQ(outcome.alternatives[0].size(), 2u) << "0 and 31 are all that is possible";
  EXPECT_GT(outcome.logprobs[0], std::log(0.5f) - 1e-4f) << "the likelier of two";
}

TEST_F(ConstraintTest, NothingAllowedEndsTheRequestAlone) {
  class Nothing final : public TokenConstraint {
    std::span<const std::uint32_t> allowed() override { return {}; }
    void advance(std::int32_t /*token*/) override { ADD_FAILURE(); }
  };
  CpuModel batched(folder, options(2));
  const std::unique_ptr<Engine> engine = make_engine(batched.runner);
  Client client(*engine);
  EngineRequest r = request(20, 5);
  r.constraint = std::make_shared<Nothing>();
  const std::size_t stuck = client.submit(r), free = client.submit(request(20, 5));
  client.wait();
  EXPECT_EQ(client.outcome(stuck).end, RequestEnd::kNonFinite);
  EXPECT_TRUE(client.outcome(stuck).tokens.empty());
  EXPECT_NE(client.outcome(free).end, RequestEnd::kNonFinite);
  r.sampling.min_tokens = 2;
  EXPECT_EQ(engine->submit(r, [](RequestEvent&&) {}).refusal, Refusal::kInvalid);
}

}  // namespace
}  // namespace quatrain::testing

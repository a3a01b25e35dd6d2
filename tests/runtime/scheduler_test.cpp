// SPDX-License-Identifier: Apache-2.0
// Block accounting, prefixes, preemption and fairness of the scheduler, on a device that is a list
// of tokens.
#include "runtime/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>

#include "core/error.h"
#include "ops/op_args.h"

namespace quatrain::testing {
namespace {

using Tokens = std::vector<std::int32_t>;

std::int64_t ceil_blocks(std::int64_t tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }

// Runs plans on memory that remembers which token wrote what. It stands for the caches: a block
// holds its tokens, a slot's state the whole prefix that it belongs to.
class FakeDevice {
 public:
  explicit FakeDevice(const SchedulerLimits& limits)
      : limits_(limits),
        scheduler(limits),
        blocks_(static_cast<std::size_t>(limits.blocks), Tokens(kBlockTokens, -1)),
        slots_(static_cast<std::size_t>(limits.slots)),
        snapshots_(static_cast<std::size_t>(limits.snapshots)) {}

  /// Plans and runs a step. Returns the sequences whose last token has run.
  std::vector<Sequence*> step() {
    const StepPlan plan = scheduler.plan();
    scheduler.verify();
    for (const auto& [sequence, place] : plan.admissions) {
      EXPECT_EQ(sequence->computed > 0, place.has_value());
      Tokens& state = slots_[static_cast<std::size_t>(sequence->slot)];
      state = place ? snapshots_[static_cast<std::size_t>(*place)] : Tokens{};
    }
    std::int64_t rows = 0, logit_rows = 0;
    std::vector<Sequence*> ended;
    for (const StepPlan::Chunk& chunk : plan.chunks) {
      rows += chunk.count;
      run(chunk);
      const bool ends = chunk.sequence->remaining() == 0;
      logit_rows += chunk.all_logits ? chunk.count : ends ? 1 : 0;
      if (ends) ended.push_back(chunk.sequence);
    }
    EXPECT_LE(rows, limits_.step_tokens);
    EXPECT_LE(logit_rows, limits_.step_logit_rows);
    scheduler.verify();
    return ended;
  }

 private:
  void run(const StepPlan::Chunk& chunk) {
    Sequence& s = *chunk.sequence;
    EXPECT_GT(chunk.count, 0);
    EXPECT_LE(chunk.count, s.remaining());
    EXPECT_EQ(std::ssize(s.blocks), ceil_blocks(s.size()));
    Tokens& state = slots_[static_cast<std::size_t>(s.slot)];
    const Tokens before(s.tokens.begin(), s.tokens.begin() + s.computed);
    EXPECT_EQ(state, before) << "the slot's state is of another prefix";
    Tokens held;
    for (std::int64_t p = 0; p < s.computed; ++p) held.push_back(row(s, p));
    EXPECT_EQ(held, before) << "the blocks hold other rows";
    for (std::int64_t p = s.computed; p < s.computed + chunk.count; ++p) {
      row(s, p) = s.tokens[static_cast<std::size_t>(p)];
      state.push_back(row(s, p));
    }
    if (const auto place = scheduler.complete(chunk)) {
      EXPECT_EQ(s.computed % kBlockTokens, 0);
      snapshots_[static_cast<std::size_t>(*place)] = state;
    }
  }

  std::int32_t& row(const Sequence& s, std::int64_t position) {
    const BlockId block = s.blocks[static_cast<std::size_t>(position / kBlockTokens)];
    return blocks_[static_cast<std::size_t>(block)]
                  [static_cast<std::size_t>(position % kBlockTokens)];
  }

  SchedulerLimits limits_;

 public:
  Scheduler scheduler;

 private:
  std::vector<Tokens> blocks_;
  std::vector<Tokens> slots_;
  std::vector<Tokens> snapshots_;
};

SchedulerLimits limits(std::int64_t slots, std::int64_t blocks, std::int64_t rows,
                       std::int64_t snapshots = 0) {
  return {.slots = slots,
          .blocks = blocks,
          .step_tokens = rows,
          .step_logit_rows = slots + 3,
          .snapshots = snapshots,
          .snapshot_interval = kBlockTokens,
          .salt = 5};
}

std::unique_ptr<Sequence> sequence(RequestId id, Tokens tokens, int priority = 0) {
  auto out = std::make_unique<Sequence>();
  out->id = id;
  out->priority = priority;
  out->prompt_size = static_cast<std::int64_t>(tokens.size());
  out->tokens = std::move(tokens);
  return out;
}

// What one random mix did, so that the test can tell that it saw every kind of event.
struct Seen {
  std::int64_t finished = 0, aborted = 0, spoiled = 0, preempted = 0, resumed = 0;
};

// Requests with shared prefixes come, run, are aborted, spoiled and preempted until all are gone.
void random_mix(unsigned seed, Seen& seen) {
  std::mt19937 random(seed);
  const auto number = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  constexpr int kLongest = 700;
  SchedulerLimits l = limits(number(1, 5), number(static_cast<int>(ceil_blocks(kLongest)), 14),
                             number(5, 300), number(0, 2) == 0 ? 0 : number(1, 8));
  l.snapshot_interval = number(0, 2) * kBlockTokens;
  FakeDevice device(l);
  Tokens stems[2];
  for (Tokens& stem : stems)
    for (int i = 0; i < kLongest; ++i) stem.push_back(number(0, 9));
  struct Live {
    std::unique_ptr<Sequence> sequence;
    std::int64_t longest;
  };
  std::vector<Live> live;
  const auto remove = [&](const Sequence* gone) {
    std::erase_if(live, [&](const Live& l2) { return l2.sequence.get() == gone; });
  };
  const int requests = number(3, 14);
  for (int made = 0; made < requests || !live.empty();) {
    if (made < requests && number(0, 2) == 0) {
      const Tokens& stem = stems[number(0, 1)];
      Tokens tokens(stem.begin(), stem.begin() + number(0, 450));
      for (int i = number(1, 100); i > 0; --i) tokens.push_back(number(0, 9));
      const std::int64_t longest = number(static_cast<int>(tokens.size()), kLongest);
      live.push_back(
          {sequence(static_cast<RequestId>(++made), std::move(tokens), number(-1, 1)), longest});
      live.back().sequence->score_prompt = number(0, 5) == 0;
      device.scheduler.add(*live.back().sequence);
    }
    for (Sequence* ended : device.step()) {
      ended->score_prompt = false;
      const auto at =
          std::ranges::find_if(live, [&](const Live& l2) { return l2.sequence.get() == ended; });
      const bool spoil = number(0, 1500) == 0;
      if (spoil) device.scheduler.spoil(*ended);
      if (!spoil && ended->size() < at->longest) {
        ended->tokens.push_back(number(0, 9));
        continue;
      }
      seen.resumed += ended->cached_tokens > 0 ? 1 : 0;
      ++(spoil ? seen.spoiled : seen.finished);
      device.scheduler.finish(*ended);
      remove(ended);
    }
    if (!live.empty() && number(0, 300) == 0) {
      Sequence* aborted =
          live[static_cast<std::size_t>(number(0, static_cast<int>(live.size()) - 1))]
              .sequence.get();
      device.scheduler.finish(*aborted);
      remove(aborted);
      ++seen.aborted;
    }
    device.scheduler.take_spoiled();
    device.scheduler.verify();
  }
  EXPECT_EQ(device.scheduler.pool().used(), 0);
  EXPECT_EQ(device.scheduler.pool().available(), l.blocks);
  seen.preempted += device.scheduler.preemptions();
}

TEST(Scheduler, RandomMixesKeepExactAccountsAndRightContents) {
  Seen seen;
  for (unsigned seed = 0; seed < 2000 && !::testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    random_mix(seed, seen);
  }
  EXPECT_GT(seen.finished, 5000);
  for (const std::int64_t count : {seen.aborted, seen.spoiled, seen.preempted, seen.resumed})
    EXPECT_GT(count, 100);
  RecordProperty("preemptions", static_cast<int>(seen.preempted));
  RecordProperty("aborts", static_cast<int>(seen.aborted));
}

TEST(Scheduler, AShortPromptBesideLongOnesRunsInTheNextStep) {
  FakeDevice device(limits(16, 400, 64));
  std::vector<std::unique_ptr<Sequence>> all;
  for (RequestId id = 1; id <= 8; ++id) {
    all.push_back(sequence(id, Tokens(4000, 1)));
    device.scheduler.add(*all.back());
  }
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(device.step().empty());
  Sequence& brief = *all.emplace_back(sequence(9, Tokens(30, 2)));
  device.scheduler.add(brief);
  EXPECT_EQ(device.step(), std::vector<Sequence*>{&brief});
}

TEST(Scheduler, ALongPromptIsNotStarvedByShortOnes) {
  FakeDevice device(limits(8, 400, 64));
  const auto patient = sequence(1, Tokens(1000, 1));
  device.scheduler.add(*patient);
  std::vector<std::unique_ptr<Sequence>> all;
  int steps = 0;
  for (RequestId id = 2; patient->remaining() > 0; ++steps) {
    for (int i = 0; i < 2; ++i) {
      all.push_back(sequence(++id, Tokens(40, 2)));
      device.scheduler.add(*all.back());
    }
    for (Sequence* ended : device.step())
      if (ended != patient.get()) device.scheduler.finish(*ended);
    ASSERT_LT(steps, 100);
  }
  EXPECT_LE(steps, 1000 / 32 + 1);
}

TEST(Scheduler, DecodeRowsComeFirstAndNeverWait) {
  FakeDevice device(limits(4, 100, 8));
  std::vector<std::unique_ptr<Sequence>> all;
  for (RequestId id = 1; id <= 3; ++id) {
    all.push_back(sequence(id, Tokens(1, 1)));
    device.scheduler.add(*all.back());
  }
  all.push_back(sequence(4, Tokens(50, 1), -5));
  device.scheduler.add(*all.back());
  for (int i = 0; i < 9; ++i) {
    const auto ended = device.step();
    ASSERT_EQ(ended.size(), 3u);
    for (Sequence* s : ended) s->tokens.push_back(1);
    EXPECT_EQ(all[3]->computed, 5 * (i + 1)) << "the prompt has the rest of the step";
  }
}

TEST(Scheduler, WaitingRequestsStartByPriorityThenArrival) {
  FakeDevice device(limits(1, 100, 64));
  std::vector<std::unique_ptr<Sequence>> all;
  const int priorities[] = {1, 0, 2, 0, -1};
  for (RequestId id = 1; id <= 5; ++id) {
    all.push_back(sequence(id, Tokens(10, 1), priorities[id - 1]));
    device.scheduler.add(*all.back());
  }
  std::vector<RequestId> order;
  while (order.size() < 5)
    for (Sequence* ended : device.step()) {
      order.push_back(ended->id);
      device.scheduler.finish(*ended);
    }
  EXPECT_EQ(order, (std::vector<RequestId>{5, 2, 4, 1, 3}));
}

TEST(Scheduler, TheFirstInOrderIsNeverPreempted) {
  FakeDevice device(limits(3, 6, 200));
  std::vector<std::unique_ptr<Sequence>> all;
  for (RequestId id = 1; id <= 3; ++id) {
    all.push_back(sequence(id, Tokens(120, 1)));
    device.scheduler.add(*all.back());
  }
  for (int i = 0; i < 550; ++i) {
    const std::int64_t before = all[0]->size();
    for (Sequence* ended : device.step())
      if (ended->size() < 700) ended->tokens.push_back(3);
    if (i > 3) {
      EXPECT_EQ(all[0]->size(), before + 1) << "step " << i;
    }
  }
  EXPECT_GT(device.scheduler.preemptions(), 0);
}

// As when a client asks for several answers to one prompt, or many send the same instructions.
TEST(Scheduler, PromptsThatArriveTogetherRunTheirCommonPrefixOnce) {
  for (const std::int64_t interval : {std::int64_t{0}, kBlockTokens}) {
    SchedulerLimits l = limits(8, 400, 256, 20);
    l.snapshot_interval = interval;
    FakeDevice device(l);
    std::vector<std::unique_ptr<Sequence>> all;
    for (RequestId id = 1; id <= 6; ++id) {
      Tokens tokens(1000, 1);
      tokens.resize(1100, static_cast<std::int32_t>(id));
      all.push_back(sequence(id, tokens));
      device.scheduler.add(*all.back());
    }
    all.push_back(sequence(7, Tokens(50, 9)));  // needs not wait with them
    device.scheduler.add(*all.back());
    EXPECT_EQ(device.step(), std::vector<Sequence*>{all.back().get()});
    for (int i = 0; i < 40; ++i) device.step();
    for (std::size_t i = 0; i < 6; ++i) {
      EXPECT_EQ(all[i]->remaining(), 0);
      EXPECT_EQ(all[i]->cached_tokens, i == 0 ? 0 : 896);
    }
  }
}

TEST(Scheduler, ChunksThatStepsCutShortEndAtBordersAndAreResumedThere) {
  SchedulerLimits l = limits(3, 400, 1000, 20);
  l.snapshot_interval = 0;
  FakeDevice device(l);
  Tokens tokens(2500, 1);
  auto first = sequence(1, tokens);
  auto decoding = sequence(2, Tokens(1, 5));
  device.scheduler.add(*decoding);
  device.step();
  decoding->tokens.push_back(6);
  device.scheduler.add(*first);
  // 999 rows are left; the last border is one chunk's end, and the rest another.
  for (const std::int64_t end : {896, 1792, 2432, 2500}) {
    device.step();
    EXPECT_EQ(first->computed, end);
    decoding->tokens.push_back(6);
  }
  // Parts from the first after 1000 tokens, and finds what the first chunk left.
  std::fill(tokens.begin() + 1000, tokens.end(), 2);
  auto second = sequence(3, tokens);
  device.scheduler.add(*second);
  device.step();
  EXPECT_EQ(second->cached_tokens, 896);

  // Without a prefix cache steps are full.
  l.snapshots = 0;
  FakeDevice other(l);
  auto alone = sequence(4, Tokens(2500, 1));
  other.scheduler.add(*alone);
  other.step();
  EXPECT_EQ(alone->computed, 1000);
}

TEST(Scheduler, PromptsAreCutAtTheirLastBorderWhereThatSavesEnough) {
  SchedulerLimits l = limits(2, 400, 1500, 20);
  l.snapshot_interval = 0;
  l.snapshot_gain = 1024;
  FakeDevice device(l);
  const auto steps_of = [&](RequestId id, std::size_t size, std::int32_t token) {
    auto one = sequence(id, Tokens(size, token));
    device.scheduler.add(*one);
    std::vector<std::int64_t> ends;
    while (one->remaining() > 0) {
      device.step();
      ends.push_back(one->computed);
    }
    device.scheduler.finish(*one);
    return ends;
  };
  using Ends = std::vector<std::int64_t>;
  EXPECT_EQ(steps_of(1, 1000, 1), (Ends{1000}));
  EXPECT_EQ(steps_of(2, 1200, 2), (Ends{1152, 1200}));
  EXPECT_EQ(steps_of(3, 2000, 3), (Ends{1408, 2000}));  // what is left of it saves too little
  EXPECT_EQ(steps_of(4, 2000, 2), (Ends{2000}));        // the same behind 1152 of the second
}

TEST(Scheduler, AnotherSaltKnowsNoPrefix) {
  const Tokens block(kBlockTokens, 7);
  const PrefixKey a = extend_prefix({.low = 1, .high = 0}, block);
  EXPECT_NE(a, extend_prefix({.low = 2, .high = 0}, block));
  EXPECT_EQ(a, extend_prefix({.low = 1, .high = 0}, block));
  EXPECT_NE(extend_prefix(a, block), a);
}

TEST(BlockPool, EqualHashesOfOtherTokensAreNoHit) {
  BlockPool pool(2);
  const PrefixKey key{.low = 1, .high = 2};
  const BlockId block = pool.take().block;
  pool.publish(block, key, Tokens{1, 2, 3});
  EXPECT_EQ(pool.find(key, Tokens{1, 2, 3}), block);
  EXPECT_FALSE(pool.find(key, Tokens{1, 2, 4}));
}

TEST(BlockPool, OldestReleasedIsTakenFirstAndMisuseIsRefused) {
  BlockPool pool(3);
  std::vector<BlockId> blocks;
  for (std::uint64_t i = 0; i < 3; ++i) {
    blocks.push_back(pool.take().block);
    pool.publish(blocks.back(), {.low = i, .high = 0}, Tokens{static_cast<std::int32_t>(i)});
  }
  EXPECT_THROW(pool.take(), Error);
  for (const std::size_t i : {1, 0, 2}) pool.release(blocks[i]);
  EXPECT_THROW(pool.release(blocks[0]), Error);
  EXPECT_EQ(pool.cached(), 3);
  pool.share(blocks[1]);
  pool.release(blocks[1]);  // used again: now the last to go
  for (const std::size_t i : {0, 2, 1}) {
    const BlockPool::Taken taken = pool.take();
    EXPECT_EQ(taken.block, blocks[i]);
    EXPECT_EQ(taken.evicted, (PrefixKey{.low = i, .high = 0}));
  }
}

}  // namespace
}  // namespace quatrain::testing

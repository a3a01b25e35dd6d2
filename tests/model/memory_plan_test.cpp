// SPDX-License-Identifier: Apache-2.0
// The memory plan is what loading takes, and a lack of memory is told before weights are read.
#include "runtime/memory_plan.h"

#include <gtest/gtest.h>

#include <charconv>

#include "backends/cpu/cpu_ops.h"
#include "runtime/model_runner.h"
#include "support/random_model.h"

namespace quatrain::testing {
namespace {

// A machine with as much memory as the test says; counts what is taken.
class SmallMachine final : public Interceptor {
 public:
  SmallMachine(Ops& ops, std::int64_t free) : Interceptor(ops), free_(free) {}
  MemoryInfo memory() override { return {.free = free_, .total = free_}; }
  Buffer allocate(std::int64_t bytes) override {
    allocated += bytes;
    return Interceptor::allocate(bytes);
  }
  Buffer allocate_host(std::int64_t bytes) override { return inner().allocate(bytes); }
  std::unique_ptr<PackedLinear> pack_linear(const QuantMatrix& w) override {
    auto packed = Interceptor::pack_linear(w);
    packed_bytes += packed->bytes;
    return packed;
  }

  std::int64_t allocated = 0;
  std::int64_t packed_bytes = 0;

 private:
  std::int64_t free_;
};

EngineOptions options() {
  EngineOptions o;
  o.max_model_len = 2048;
  o.max_num_seqs = 3;
  o.max_num_batched_tokens = 64;
  return o;
}

constexpr std::int64_t kPlenty = std::int64_t{1} << 40;

TEST(MemoryPlan, IsWhatLoadingTakes) {
  for (const bool quantised : {false, true}) {
    RandomModel model({.quantised = quantised});
    CpuOps cpu(2);
    SmallMachine machine(cpu, kPlenty);
    ModelRunner runner(machine, model.write(), options());
    const MemoryPlan& plan = runner.plan();
    EXPECT_EQ(plan.missing(), 0);
    EXPECT_EQ(plan.caches + plan.state,
              runner.cache().bytes() + SlotSampler::bytes(runner.config().vocab_size, 3, 3));
    EXPECT_EQ(plan.arena, runner.scratch_bytes());
    EXPECT_EQ(plan.cache_per_token * 3 * 2048, plan.caches);

    // Linears are the backend's; the rest went through allocate().
    std::int64_t experts = 0;
    for (const LayerWeights& layer : runner.weights().layers) experts += layer.ffn.experts->bytes;
    EXPECT_EQ(plan.weights[static_cast<int>(WeightGroup::kExperts)], experts);
    const std::int64_t linears = experts + machine.packed_bytes;
    const std::int64_t planned =
        plan.weight_bytes() + plan.caches + plan.state + plan.arena + plan.step;
    const std::int64_t taken = linears + machine.allocated;
    // The embedding may widen to FP32, and rotation frequencies are not of the checkpoint.
    EXPECT_NEAR(static_cast<double>(planned), static_cast<double>(taken),
                0.01 * static_cast<double>(taken) + 8192);
  }
}

TEST(MemoryPlan, RefusesBeforeReadingAndNamesTheFlags) {
  RandomModel model;
  CpuOps cpu(2);
  SmallMachine machine(cpu, 1 << 20);
  bool told = false, read = false;
  std::string message;
  try {
    ModelRunner(machine, model.write(), options(),
                LoadEvents{.plan =
                               [&](const MemoryPlan& plan) {
                                 told = true;
                                 EXPECT_NE(plan.describe().find("experts"), std::string::npos);
                               },
                           .weights = [&](std::int64_t, std::int64_t) { read = true; }});
  } catch (const Error& error) {
    message = error.what();
  }
  EXPECT_TRUE(told);
  EXPECT_FALSE(read);
  EXPECT_EQ(machine.packed_bytes, 0);
  EXPECT_EQ(machine.allocated, 0);
  for (const char* part : {"not enough memory", "missing", "--max-num-seqs below 3",
                           "--max-num-batched-tokens below 64"})
    EXPECT_NE(message.find(part), std::string::npos) << part << " in: " << message;
}

// The context that the message suggests fits; a sequence of it is not much shorter than needed.
TEST(MemoryPlan, TheContextItSuggestsFits) {
  RandomModel model;
  const V4Config config = read_config(model.write());
  const Checkpoint checkpoint = Checkpoint::open(model.write());
  const WeightList list = list_weights(checkpoint, config, false);
  CpuOps cpu(2);
  EngineOptions o = options();
  o.resolve(config, cpu);
  const MemoryPlan roomy = plan_memory(cpu, config, o, list);
  const std::int64_t free = (roomy.total() - roomy.caches / 3) * 100 / 99;
  SmallMachine machine(cpu, free);
  const MemoryPlan plan = plan_memory(machine, config, o, list);
  ASSERT_GT(plan.missing(), 0);
  std::string message;
  try {
    plan.check();
  } catch (const Error& error) {
    message = error.what();
  }
  const std::string flag = "--max-model-len ";
  const std::size_t at = message.find(flag);
  ASSERT_NE(at, std::string::npos) << message;
  std::int64_t suggested = 0;
  std::from_chars(message.data() + at + flag.size(), message.data() + message.size(), suggested);
  EXPECT_GT(suggested, 1024);
  EXPECT_LT(suggested, 2048);
  o.max_model_len = suggested;
  o.kv_blocks = 0;
  o.resolve(config, cpu);
  EXPECT_EQ(plan_memory(machine, config, o, list).missing(), 0);
}

// A backend that likes long steps, on a machine with as much memory as the test says.
class LongSteps final : public Interceptor {
 public:
  LongSteps(Ops& ops, std::int64_t free) : Interceptor(ops), free_(free) {}
  MemoryInfo memory() override { return {.free = free_, .total = free_}; }
  std::int64_t prompt_rows() const override { return 4096; }

 private:
  std::int64_t free_;
};

TEST(MemoryPlan, RowsOfAStepThatNobodyChoseAreTheBackendsAndFitItsMemory) {
  RandomModel model;
  CpuOps cpu(2);
  EngineOptions o = options();
  const auto rows_of = [&](std::int64_t free) {
    LongSteps machine(cpu, free);
    const ModelRunner runner(machine, model.write(), o);
    EXPECT_EQ(runner.plan().missing(), 0);
    EXPECT_EQ(runner.plan().options.max_num_batched_tokens,
              runner.options().max_num_batched_tokens);
    return runner.options().max_num_batched_tokens;
  };
  EXPECT_EQ(rows_of(kPlenty), 64);  // as asked for
  o.max_num_batched_tokens = 0;
  EXPECT_EQ(rows_of(kPlenty), 4096);
  LongSteps machine(cpu, kPlenty);
  o.max_num_batched_tokens = 1024;
  const std::int64_t for_1024 = ModelRunner(machine, model.write(), o).plan().total() * 100 / 98;
  o.max_num_batched_tokens = 0;
  EXPECT_EQ(rows_of(for_1024), 1024);
  EXPECT_THROW(rows_of(1 << 20), Error);

  o.max_model_len = 300;  // three sequences of it have no more
  EXPECT_EQ(rows_of(kPlenty), 900);
  EXPECT_EQ(ModelRunner(cpu, model.write(), o).options().max_num_batched_tokens, 512);
}

TEST(MemoryPlan, DecodeBuckets) {
  EngineOptions o;
  o.max_num_batched_tokens = o.max_logit_rows = 512;
  const auto buckets = [&](std::int64_t most) {
    o.max_num_seqs = most;
    return decode_buckets(o);
  };
  using Rows = std::vector<std::int64_t>;
  EXPECT_EQ(buckets(1), (Rows{1}));
  EXPECT_EQ(buckets(2), (Rows{1, 2}));
  EXPECT_EQ(buckets(3), (Rows{1, 2, 3}));
  EXPECT_EQ(buckets(8), (Rows{1, 2, 4, 8}));
  EXPECT_EQ(buckets(40), (Rows{1, 2, 4, 8, 16, 24, 32, 40}));
  EXPECT_EQ(buckets(41), (Rows{1, 2, 4, 8, 16, 24, 32, 40, 41}));
  o.max_num_batched_tokens = 5;
  EXPECT_EQ(buckets(41), (Rows{1, 2, 4, 5}));
}

}  // namespace
}  // namespace quatrain::testing

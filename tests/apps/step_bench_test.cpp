// SPDX-License-Identifier: Apache-2.0
// Measurements of a small synthetic model on the CPU: what they count, not how fast it is.
#include "apps/step_bench.h"

#include <gtest/gtest.h>

#include <set>

#include "apps/op_cases.h"
#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/probe.h"
#include "model/synthetic.h"

namespace quatrain::apps {
namespace {

EngineOptions options(std::int64_t context, std::int64_t sequences) {
  EngineOptions out;
  out.max_model_len = context;
  out.max_num_seqs = sequences;
  out.max_num_batched_tokens = 8;
  return out;
}

TEST(StepBench, RunsPromptsInChunksAndSingleTokens) {
  CpuOps cpu(2);
  ModelRunner runner(cpu, synthetic_model("storyteller", 3), options(300, 2));
  StepBench bench(runner, cpu);
  BenchTest prompt{.prompt = 20, .depth = 250, .batch = 2, .seconds = {}};
  bench.run(prompt, 2);
  EXPECT_EQ(prompt.seconds.size(), 2u);
  BenchTest output{.output = 3, .depth = 290, .batch = 2, .seconds = {}};
  bench.run(output, 1);
  EXPECT_GT(output.seconds.at(0), 0);
  BenchTest too_deep{.output = 3, .depth = 299, .batch = 1, .seconds = {}};
  EXPECT_THROW(bench.run(too_deep, 1), Error);
}

TEST(StepBench, TheBreakdownHoldsEveryOperationOfAStepOnce) {
  CpuOps cpu(2);
  ModelRunner runner(cpu, synthetic_model("storyteller", 3), options(300, 1));
  StepBench bench(runner, cpu);
  const Breakdown breakdown =
      bench.break_down({.output = 1, .depth = 200, .batch = 1, .seconds = {}}, 3);
  EXPECT_FALSE(breakdown.recorded);
  EXPECT_EQ(breakdown.rows, 1);
  std::set<std::string> kinds, operations;
  for (const BreakdownLine& line : breakdown.lines) {
    kinds.insert(line.where);
    EXPECT_TRUE(operations.insert(line.where + " " + line.operation).second) << line.operation;
    EXPECT_GT(line.microseconds, 0) << line.operation;
    EXPECT_GT(line.cost.bytes, 0) << line.operation;
  }
  EXPECT_EQ(kinds, (std::set<std::string>{"model", "window", "CSA", "HCA"}));
  for (const char* wanted :
       {"model embed", "model linear head", "CSA linears attn", "HCA attend_store",
        "window experts", "CSA hc_post_pre_norm ffn", "CSA swiglu_linear shared_experts.w2"})
    EXPECT_TRUE(operations.contains(wanted)) << wanted;
  EXPECT_FALSE(operations.contains("HCA index_select"));
}

TEST(OpCases, CoverEveryOperationOfALayer) {
  CpuOps cpu(2);
  const ModelSource source = synthetic_model("storyteller", 3);
  std::set<std::string> operations;
  const OpCaseOptions wanted{
      .filter = "", .rows = {1}, .contexts = {130}, .activations = ExpertActivations::kFull};
  measure_operations(cpu, source, "storyteller", wanted, 1, [&](const OpResult& result) {
    EXPECT_GT(result.microseconds, 0) << result.operation;
    EXPECT_GT(result.cost.bytes, 0) << result.operation;
    EXPECT_EQ(result.rows, 1);
    operations.insert(result.operation.substr(0, result.operation.find(' ')));
  });
  for (const char* name :
       {"embed", "hc_pre", "hc_post", "hc_head", "rms_norm", "linear", "grouped_linear", "rope",
        "compress", "index_select", "attend", "route", "swiglu", "experts"})
    EXPECT_TRUE(operations.contains(name)) << name;
}

TEST(OpCases, TheFilterSelects) {
  CpuOps cpu(1);
  const OpCaseOptions wanted{.filter = "route", .rows = {1, 3}, .contexts = {8}};
  std::vector<std::int64_t> rows;
  measure_operations(cpu, synthetic_model("storyteller", 3), "storyteller", wanted, 1,
                     [&](const OpResult& result) {
                       EXPECT_EQ(result.operation, "route");
                       rows.push_back(result.rows);
                     });
  EXPECT_EQ(rows, (std::vector<std::int64_t>{1, 3}));
}

TEST(OpBench, CopiesMakeUpACycle) {
  CpuOps cpu(1);
  const OpBench bench(cpu, 1, 1 << 20);
  EXPECT_EQ(bench.copies(3 << 20), 1);
  EXPECT_EQ(bench.copies(1 << 18), 4);
  EXPECT_EQ(bench.copies(1), 128);
}

TEST(CpuLimits, AreThoseOfAMachine) {
  ThreadPool pool(1);
  const DeviceLimits limits = measure_cpu_limits(pool, best_isa());
  EXPECT_GT(limits.read_bytes, 1e8);
  EXPECT_GT(limits.flops, 1e8);
  EXPECT_DOUBLE_EQ(limits.seconds({.bytes = limits.read_bytes}), 1);
  EXPECT_DOUBLE_EQ(limits.seconds({.flops = 2 * limits.flops}), 2);
}

}  // namespace
}  // namespace quatrain::apps

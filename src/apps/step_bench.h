// SPDX-License-Identifier: Apache-2.0
// Measuring a loaded model: prompts, single-token steps, and the operations of one step.
#pragma once

#include "apps/bench_report.h"
#include "ops/timing_ops.h"
#include "runtime/model_runner.h"

namespace quatrain::apps {

/// Steps for `batch` sequences that begin at the same depth, on made-up tokens.
class StepBench {
 public:
  /// Fills the caches with random numbers: every depth is as if that many tokens had run.
  StepBench(ModelRunner& runner, Ops& ops);

  /// Seconds of one prompt of `prompt` tokens per sequence, in steps as large as the runner takes.
  double run_prompt(std::int64_t prompt, std::int64_t depth, std::int64_t batch);
  /// Seconds of `output` single-token steps of all sequences.
  double run_output(std::int64_t output, std::int64_t depth, std::int64_t batch);

  /// Fills test.seconds with `repetitions` runs, after one that does not count.
  void run(BenchTest& test, int repetitions);

  /// The operations of the test's first step, each the median of `repetitions` runs.
  Breakdown break_down(const BenchTest& test, int repetitions);

 private:
  std::vector<SequenceChunk> chunks(std::int64_t position, std::int64_t count, std::int64_t batch,
                                    LogitRows logits) const;
  std::vector<std::vector<double>> time_operations(Breakdown& breakdown, TimingOps& timing,
                                                   std::span<const SequenceChunk> step,
                                                   int repetitions);

  ModelRunner& runner_;
  Ops& ops_;
  std::vector<std::int32_t> tokens_;
};

}  // namespace quatrain::apps

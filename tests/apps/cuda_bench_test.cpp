// SPDX-License-Identifier: Apache-2.0
// On a GPU: true dimensions against the CPU, clocks inside recorded steps, and the probes.
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "apps/compare_report.h"
#include "apps/step_bench.h"
#include "backends/cpu/cpu_ops.h"
#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/device_info.h"
#include "backends/cuda/probe.h"
#include "model/synthetic.h"

namespace quatrain::apps {
namespace {

class OnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    const CudaSystemInfo info = cuda_system_info();
    if (!info.problem.empty()) GTEST_SKIP() << "no GPU: " << info.problem;
    if (info.devices.front().major != 9) GTEST_SKIP() << "the GPU is no Hopper";
    cuda_ = std::make_unique<CudaOps>();
  }

  // A prompt of a few rows that ends before the last position of each context, then that position.
  void compare(const char* preset, std::int64_t layers, std::vector<std::int64_t> contexts,
               double tolerance) {
    CpuOps cpu;
    CompareOps compare(*cuda_, cpu);
    const bool packed = cuda_->cache_dtype() == DType::kU8;
    EngineOptions options;
    options.max_model_len = contexts.back();
    options.max_num_batched_tokens = 5;
    options.record = false;
    options.numerics.expert_activations = ExpertActivations::kBf16;
    options.numerics.sim = packed;
    ModelRunner runner(compare, synthetic_model(preset, layers), options);
    const std::vector<std::int32_t> tokens = {11, 222, 3333, 4, 55, 666};
    for (const std::int64_t context : contexts) {
      runner.cache().randomise(compare, static_cast<std::uint64_t>(context));
      compare.clear();
      const SequenceChunk steps[] = {
          {.position = context - 6, .tokens = std::span(tokens).first(5)},
          {.position = context - 1, .tokens = std::span(tokens).subspan(5)}};
      for (const SequenceChunk& step : steps) runner.step({&step, 1});
      EXPECT_EQ(first_above(compare.differences(), tolerance), nullptr)
          << "context " << context << "\n"
          << format_differences(runner.config(), compare.differences(), tolerance);
    }
  }

  std::unique_ptr<CudaOps> cuda_;
};

TEST_F(OnGpu, SmallModelsAgreeWithTheCpuOperationByOperation) {
  compare("storyteller", 5, {6, 1024, 32768, 262144}, 5e-3);
}

// A value near the middle of two codes may land on either, so single ones differ by a code.
TEST_F(OnGpu, PackedCachesHoldWhatTheCpuRoundsTo) {
  cuda_.reset();
  cuda_ = std::make_unique<CudaOps>(0, DType::kU8);
  compare("flash", 3, {1024, 32768}, 1e-2);
}

TEST_F(OnGpu, FlashDimensionsAgreeWithTheCpuUpTo256K) {
  compare("flash", 2, {1024, 32768, 262144}, 5e-3);
}

// Bytes of host memory that the process holds.
std::int64_t resident_bytes() {
  std::ifstream status("/proc/self/statm");
  std::int64_t pages = 0, resident = 0;
  status >> pages >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

// While 13 GB of weights pass through, the device never holds more than the loaded model and 1 %,
// and the host no more than the readers' ring, which has room for the head.
TEST_F(OnGpu, LoadingTakesNoMoreThanTheLoadedModel) {
  const std::int64_t device_before = cuda_->memory().free, host_before = resident_bytes();
  std::int64_t least_free = device_before, most_resident = host_before, ticks = 0;
  EngineOptions options;
  options.max_model_len = 8192;
  const LoadEvents events{.weights = [&](std::int64_t, std::int64_t) {
    least_free = std::min(least_free, cuda_->memory().free);
    most_resident = std::max(most_resident, resident_bytes());
    ++ticks;
  }};
  const ModelRunner runner(*cuda_, synthetic_model("flash", 3), options, events);
  const double taken = static_cast<double>(device_before - cuda_->memory().free);
  const double peak = static_cast<double>(device_before - least_free);
  RecordProperty("memory",
                 fmt::format("{:.3f} GB at the end, {:.3f} GB at most in {} looks; host {:.3f} GB",
                             taken * 1e-9, peak * 1e-9, ticks,
                             static_cast<double>(most_resident - host_before) * 1e-9));
  EXPECT_GT(ticks, 50);
  EXPECT_GT(taken, 13e9);
  EXPECT_LE(peak, 1.01 * taken);
  const std::int64_t head = std::int64_t{129280} * 4096 * 2;
  EXPECT_LE(most_resident - host_before, head + (std::int64_t{256} << 20));
}

TEST_F(OnGpu, MarksInARecordedStepTellTheTimeOfEachOperation) {
  EngineOptions options;
  options.max_model_len = 2048;
  ModelRunner runner(*cuda_, synthetic_model("storyteller", 3), options);
  StepBench bench(runner, *cuda_);
  const Breakdown breakdown =
      bench.break_down({.output = 1, .depth = 1000, .batch = 1, .seconds = {}}, 9);
  EXPECT_TRUE(breakdown.recorded);
  for (const BreakdownLine& line : breakdown.lines) {
    EXPECT_GT(line.microseconds, 0.3) << line.operation;
    EXPECT_LT(line.microseconds, 1e5) << line.operation;
  }
  // Marks cost little and hide no time.
  EXPECT_GT(breakdown.sum_microseconds(), 0.8 * breakdown.step_microseconds);
  EXPECT_LT(breakdown.sum_microseconds(), 2.0 * breakdown.step_microseconds);
}

TEST_F(OnGpu, ProbesReachMostOfAHopper) {
  const DeviceLimits limits = measure_cuda_limits(*cuda_);
  EXPECT_GT(limits.read_bytes, 1.5e12);
  EXPECT_LT(limits.read_bytes, 5e12);
  EXPECT_GT(limits.flops, 4e14);
  EXPECT_LT(limits.flops, 1.1e15);
  EXPECT_GT(limits.fp8_flops, 1.5 * limits.flops);
  EXPECT_LT(limits.fp8_flops, 2.2 * limits.flops);
}

}  // namespace
}  // namespace quatrain::apps

// SPDX-License-Identifier: Apache-2.0
// Greedy text of the shipped model on a GPU against the CPU backend: token for token, and with
// rounded inputs, which may part texts on any backend, by what they do to logits.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "backends/cpu/cpu_ops.h"
#include "backends/cuda/cuda_ops.h"
#include "runtime/session.h"
#include "support/loaded_model.h"

namespace quatrain::testing {
namespace {

constexpr std::size_t kPrompts = 10;
constexpr std::size_t kPromptTokens = 24;
constexpr std::size_t kNewTokens = 200;

using Logits = std::vector<std::vector<float>>;  // by step

struct GreedyText {
  std::vector<std::int32_t> tokens;
  Logits logits;

  /// Between the two largest logits of a step.
  float gap(std::size_t step) const {
    std::vector<float> all = logits[step];
    std::partial_sort(all.begin(), all.begin() + 2, all.end(), std::greater<>());
    return all[0] - all[1];
  }
};

GreedyText greedy(ModelRunner& runner, std::span<const std::int32_t> prompt) {
  Session session(runner);
  GreedyText text;
  std::span<const float> logits = session.feed(prompt);
  for (;;) {
    text.logits.emplace_back(logits.begin(), logits.end());
    const auto best = std::max_element(logits.begin(), logits.end());
    text.tokens.push_back(static_cast<std::int32_t>(best - logits.begin()));
    if (text.tokens.size() == kNewTokens) return text;
    logits = session.append(text.tokens.back());
  }
}

/// The shipped model and some prompts.
class Shipped {
 public:
  explicit Shipped(Ops& ops, const Numerics& numerics = {})
      : runner_(ops, folder(), with(numerics)) {}

  static std::span<const std::int32_t> prompt(std::size_t p) {
    static const std::vector<std::int32_t> windows =
        Golden(QUATRAIN_SOURCE_DIR "/tests/golden/storyteller/windows.safetensors").ints("windows");
    return std::span<const std::int32_t>(windows).subspan(p * 1025, kPromptTokens);
  }
  GreedyText greedy(std::size_t p) { return testing::greedy(runner_, prompt(p)); }
  /// Logits at every step of a text that is given.
  Logits logits(std::size_t p, const std::vector<std::int32_t>& text) {
    Session session(runner_);
    Logits all;
    std::span<const float> next = session.feed(prompt(p));
    for (const std::int32_t token : text) {
      all.emplace_back(next.begin(), next.end());
      next = session.append(token);
    }
    return all;
  }

 private:
  static std::string folder() { return QUATRAIN_SOURCE_DIR "/models/storyteller-nvfp4"; }
  static EngineOptions with(const Numerics& numerics) {
    EngineOptions options;
    options.max_model_len = 512;
    options.numerics = numerics;
    return options;
  }
  ModelRunner runner_;
};

bool has_device() {
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
}

// Caches are F16 on the GPU, so a text may part at a near-tie; most must not, and none elsewhere.
TEST(CudaGreedy, TextIsThatOfTheCpu) {
  if (!has_device()) GTEST_SKIP() << "there is no CUDA device";
  CpuOps cpu;
  CudaOps gpu;
  Shipped on_cpu(cpu), on_gpu(gpu);
  std::size_t equal = 0;
  for (std::size_t p = 0; p < kPrompts; ++p) {
    const GreedyText wanted = on_cpu.greedy(p), found = on_gpu.greedy(p);
    const auto parting =
        std::mismatch(wanted.tokens.begin(), wanted.tokens.end(), found.tokens.begin()).first;
    if (parting == wanted.tokens.end()) {
      ++equal;
      continue;
    }
    const auto step = static_cast<std::size_t>(parting - wanted.tokens.begin());
    EXPECT_LE(wanted.gap(step), 0.1f) << "prompt " << p << " parts at token " << step;
    fmt::print("prompt {} parts at token {}, where the two best are {:.4f} apart\n", p, step,
               wanted.gap(step));
  }
  fmt::print("{} of {} texts are equal\n", equal, kPrompts);
  EXPECT_GE(equal, 8u);
}

// What `quatrain run` does on a GPU. Rounding parts texts wherever an expert is a near-tie, also on
// the CPU; so logits are compared, along the texts of exact inputs. Those of the GPU may be as far
// from exact ones as the same rounding puts the CPU's, and little more for caches in F16.
TEST(CudaGreedy, RoundedInputsCostWhatTheyCostOnTheCpu) {
  if (!has_device()) GTEST_SKIP() << "there is no CUDA device";
  const Numerics rounded = {.expert_activations = ExpertActivations::kBf16,
                            .linear_activations = LinearActivations::kF16};
  CpuOps cpu;
  CudaOps gpu;
  Shipped exact(cpu), on_cpu(cpu, rounded), on_gpu(gpu, rounded);
  double of_cpu = 0, of_gpu = 0, of_exact = 0;
  std::size_t same = 0, steps = 0;
  for (std::size_t p = 0; p < kPrompts; ++p) {
    const auto [text, wanted] = exact.greedy(p);
    const Logits cpus = on_cpu.logits(p, text), gpus = on_gpu.logits(p, text);
    for (std::size_t t = 0; t < text.size(); ++t, ++steps) {
      for (std::size_t i = 0; i < wanted[t].size(); ++i) {
        const double x = wanted[t][i];
        of_exact += x * x;
        of_cpu += (cpus[t][i] - x) * (cpus[t][i] - x);
        of_gpu += (gpus[t][i] - x) * (gpus[t][i] - x);
      }
      const auto best = std::max_element(gpus[t].begin(), gpus[t].end());
      same += best - gpus[t].begin() == text[t] ? 1 : 0;
    }
  }
  const double cost = std::sqrt(of_cpu / of_exact), found = std::sqrt(of_gpu / of_exact);
  fmt::print(
      "relative L2 of logits {:.2e} on the CPU and {:.2e} on the GPU; {} of {} tokens same\n", cost,
      found, same, steps);
  EXPECT_LE(found, 1.25 * cost);
  EXPECT_GE(same, steps * 99 / 100);
}

}  // namespace
}  // namespace quatrain::testing

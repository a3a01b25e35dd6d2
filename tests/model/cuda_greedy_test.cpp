// SPDX-License-Identifier: Apache-2.0
// Greedy text of the shipped model on a GPU, token for token against the CPU backend.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include "backends/cpu/cpu_ops.h"
#include "backends/cuda/cuda_ops.h"
#include "runtime/session.h"
#include "support/loaded_model.h"

namespace quatrain::testing {
namespace {

constexpr std::size_t kPrompts = 10;
constexpr std::size_t kPromptTokens = 24;
constexpr std::size_t kNewTokens = 200;

struct GreedyText {
  std::vector<std::int32_t> tokens;
  std::vector<float> gaps;  // between the two largest logits of each step
};

GreedyText greedy(ModelRunner& runner, std::span<const std::int32_t> prompt) {
  Session session(runner);
  GreedyText text;
  std::span<const float> logits = session.feed(prompt);
  for (;;) {
    const auto best = std::max_element(logits.begin(), logits.end());
    float second = -INFINITY;
    for (auto it = logits.begin(); it != logits.end(); ++it)
      if (it != best) second = std::max(second, *it);
    text.gaps.push_back(*best - second);
    text.tokens.push_back(static_cast<std::int32_t>(best - logits.begin()));
    if (text.tokens.size() == kNewTokens) return text;
    logits = session.append(text.tokens.back());
  }
}

// Caches are F16 on the GPU, so a text may part at a near-tie; most must not, and none elsewhere.
void expect_texts_of_the_cpu(const Numerics& on_the_gpu) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)
    GTEST_SKIP() << "there is no CUDA device";
  const std::string folder = QUATRAIN_SOURCE_DIR "/models/storyteller-nvfp4";
  const Golden golden(QUATRAIN_SOURCE_DIR "/tests/golden/storyteller/windows.safetensors");
  const std::vector<std::int32_t> windows = golden.ints("windows");
  EngineOptions options;
  options.max_model_len = 512;
  CpuOps cpu;
  CudaOps gpu;
  ModelRunner on_cpu(cpu, folder, options);
  options.numerics = on_the_gpu;
  ModelRunner on_gpu(gpu, folder, options);

  std::size_t equal = 0;
  for (std::size_t p = 0; p < kPrompts; ++p) {
    const auto prompt = std::span<const std::int32_t>(windows).subspan(p * 1025, kPromptTokens);
    const GreedyText wanted = greedy(on_cpu, prompt), found = greedy(on_gpu, prompt);
    const auto parting =
        std::mismatch(wanted.tokens.begin(), wanted.tokens.end(), found.tokens.begin()).first;
    if (parting == wanted.tokens.end()) {
      ++equal;
      continue;
    }
    const auto step = static_cast<std::size_t>(parting - wanted.tokens.begin());
    EXPECT_LE(wanted.gaps[step], 0.1f) << "prompt " << p << " parts at token " << step;
    fmt::print("prompt {} parts at token {}, where the two best are {:.4f} apart\n", p, step,
               wanted.gaps[step]);
  }
  fmt::print("{} of {} texts are equal\n", equal, kPrompts);
  EXPECT_GE(equal, 8u);
}

TEST(CudaGreedy, TextIsThatOfTheCpu) { expect_texts_of_the_cpu({}); }

// What `quatrain run` does on a GPU.
TEST(CudaGreedy, TextOfRoundedInputsIsThatOfTheCpu) {
  expect_texts_of_the_cpu({.expert_activations = ExpertActivations::kBf16,
                           .linear_activations = LinearActivations::kF16});
}

}  // namespace
}  // namespace quatrain::testing

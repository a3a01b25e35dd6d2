// SPDX-License-Identifier: Apache-2.0
// Tokens per second of the engine for 1, 2, 4, … concurrent streams, and how long a short request
// waits beside long prompts. A program for measurements, not a test.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <random>
#include <thread>

#include "apps/backend.h"
#include "runtime/batching_engine.h"

namespace quatrain {
namespace {

using Clock = std::chrono::steady_clock;

struct Settings {
  std::string model;
  std::string backend = "auto";
  int threads = 0;
  std::int64_t streams = 64;
  std::int64_t prompt = 32;
  std::int64_t output = 64;
  std::int64_t long_prompt = 3000;
  std::int64_t chunk = 512;
};

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Runs requests and notes when each had its first and its last event.
class Load {
 public:
  explicit Load(Engine& engine) : engine_(engine) {}

  std::size_t submit(std::int64_t prompt, std::int64_t output) {
    EngineRequest request;
    std::uniform_int_distribution<std::int32_t> ids(
        2, static_cast<std::int32_t>(engine_.vocab_size()) - 1);
    for (std::int64_t i = 0; i < prompt; ++i) request.prompt.push_back(ids(random_));
    request.max_tokens = output;
    request.sampling.seed = random_();
    std::size_t index = 0;
    {
      const std::lock_guard lock(mutex_);
      index = first_.size();
      first_.push_back(0);
      ++open_;
    }
    const Clock::time_point begin = Clock::now();
    const auto submitted = engine_.submit(std::move(request), [=, this](RequestEvent&& event) {
      const std::lock_guard lock(mutex_);
      if (event.token && first_[index] == 0) first_[index] = seconds_since(begin);
      if (event.end && --open_ == 0) done_.notify_all();
    });
    if (submitted.refusal) fail("the engine refused a request: {}", submitted.message);
    return index;
  }
  void wait() {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return open_ == 0; });
  }
  double first_token_seconds(std::size_t index) {
    const std::lock_guard lock(mutex_);
    return first_[index];
  }

 private:
  Engine& engine_;
  std::mt19937_64 random_{1};
  std::mutex mutex_;
  std::condition_variable done_;
  std::vector<double> first_;
  std::int64_t open_ = 0;
};

void measure_streams(Engine& engine, const Settings& s) {
  fmt::print("{:>8} {:>12} {:>10} {:>8}\n", "streams", "tokens/s", "of one", "steps");
  double one = 0;
  for (std::int64_t streams = 1; streams <= s.streams; streams *= 2) {
    Load load(engine);
    const EngineStats before = engine.stats();
    const Clock::time_point begin = Clock::now();
    for (std::int64_t i = 0; i < streams; ++i) load.submit(s.prompt, s.output);
    load.wait();
    const EngineStats after = engine.stats();
    const double rate =
        static_cast<double>(after.output_tokens - before.output_tokens) / seconds_since(begin);
    if (streams == 1) one = rate;
    fmt::print("{:>8} {:>12.1f} {:>9.2f}x {:>8}\n", streams, rate, rate / one,
               after.steps - before.steps);
  }
}

void measure_fairness(Engine& engine, const Settings& s) {
  const Clock::time_point begin = Clock::now();
  const std::int64_t steps = engine.stats().steps;
  Load load(engine);
  for (int i = 0; i < 8; ++i) load.submit(s.long_prompt, 1);
  while (engine.stats().steps < steps + 2) std::this_thread::yield();
  const std::size_t brief = load.submit(s.prompt, 4);
  load.wait();
  const double chunk = seconds_since(begin) / static_cast<double>(engine.stats().steps - steps);
  fmt::print(
      "a prompt of {} tokens beside 8 of {}: first token after {:.0f} ms, {:.2f} mean steps of "
      "{:.0f} "
      "ms\n",
      s.prompt, s.long_prompt, 1e3 * load.first_token_seconds(brief),
      load.first_token_seconds(brief) / chunk, 1e3 * chunk);
}

void run(const Settings& s) {
  apps::Backend backend = apps::make_backend(s.backend, {.threads = s.threads}, "auto");
  EngineOptions options;
  options.max_num_seqs = std::max<std::int64_t>(s.streams, 9);
  options.max_num_batched_tokens = std::max(s.chunk, options.max_num_seqs);
  options.max_model_len = s.long_prompt + s.output + 1;
  ModelRunner runner(*backend.ops, s.model, options);
  fmt::print("{}\n{} prompt and {} output tokens per stream, steps of at most {} rows\n",
             backend.description, s.prompt, s.output, options.max_num_batched_tokens);
  const std::unique_ptr<Engine> engine = make_engine(runner, {.prefix_snapshots = 0});
  measure_streams(*engine, s);
  measure_fairness(*engine, s);
}

}  // namespace
}  // namespace quatrain

int main(int argc, char** argv) {
  quatrain::Settings s;
  CLI::App app("Measures the serving engine.");
  app.add_option("model", s.model, "folder of a checkpoint")->required();
  app.add_option("--backend", s.backend, "auto, cpu or cuda")->capture_default_str();
  app.add_option("--threads", s.threads, "of the CPU; 0: one per core")->capture_default_str();
  app.add_option("--streams", s.streams, "most at once")->capture_default_str();
  app.add_option("--prompt", s.prompt, "tokens of each prompt")->capture_default_str();
  app.add_option("--output", s.output, "tokens of each output")->capture_default_str();
  app.add_option("--long-prompt", s.long_prompt, "tokens")->capture_default_str();
  app.add_option("--chunk", s.chunk, "rows of a step")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    quatrain::run(s);
  } catch (const std::exception& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return 1;
  }
}

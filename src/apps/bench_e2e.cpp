// SPDX-License-Identifier: Apache-2.0
// quatrain bench e2e: tokens per second of a model, in llama-bench's terms, and where a step's time
// goes.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>

#include "apps/bench.h"
#include "apps/model_flags.h"
#include "apps/number_list.h"
#include "apps/step_bench.h"
#include "core/file.h"
#include "model/weight_table.h"

namespace quatrain::apps {
namespace {

constexpr std::int64_t kMostTokens = std::int64_t{1} << 24;

struct E2eFlags {
  ModelFlags model;
  std::string prompts = "512";
  std::string outputs = "128";
  std::string depths = "0";
  std::string batches = "1";
  int repetitions = 5;
  int breakdown_repetitions = 21;
  std::string format = "md";
  std::string save;
  bool breakdown = false;
};

// Every combination, prompts first, as llama-bench orders them.
std::vector<BenchTest> make_tests(const E2eFlags& flags) {
  const auto prompts = parse_numbers(flags.prompts, "--n-prompt", 0, kMostTokens);
  const auto outputs = parse_numbers(flags.outputs, "--n-gen", 0, kMostTokens);
  const auto depths = parse_numbers(flags.depths, "--depth", 0, kMostTokens);
  const auto batches = parse_numbers(flags.batches, "--batch", 1, 1 << 16);
  std::vector<BenchTest> tests;
  for (const std::int64_t depth : depths)
    for (const std::int64_t batch : batches) {
      for (const std::int64_t n : prompts)
        if (n > 0) tests.push_back({.prompt = n, .depth = depth, .batch = batch, .seconds = {}});
      for (const std::int64_t n : outputs)
        if (n > 0) tests.push_back({.output = n, .depth = depth, .batch = batch, .seconds = {}});
    }
  if (tests.empty()) fail("nothing to measure: every -p and -n is 0");
  return tests;
}

void size_for(const std::vector<BenchTest>& tests, EngineOptions& options) {
  for (const BenchTest& test : tests) {
    options.max_model_len = std::max(options.max_model_len, test.depth + test.prompt + test.output);
    options.max_num_seqs = std::max(options.max_num_seqs, test.batch);
  }
  options.make_room_for_sequences();
}

double count_parameters(const V4Config& config) {
  double count = 0;
  for_each_weight(config, false, [&](const WeightEntry& entry) {
    double elements = 1;
    for (const std::int64_t extent : entry.shape) elements *= static_cast<double>(extent);
    count += elements;
  });
  return count;
}

void bench_e2e(E2eFlags& flags) {
  std::vector<BenchTest> tests = make_tests(flags);
  size_for(tests, flags.model.options);
  flags.model.verbose = true;  // times mean little without the kernels that took them
  LoadedEngine engine(flags.model);
  BenchReport report;
  report.subject = {.version = QUATRAIN_VERSION,
                    .model = engine.name(),
                    .bytes = static_cast<double>(engine.runner().weight_bytes()),
                    .parameters = count_parameters(engine.config()),
                    .backend = std::string(engine.ops().backend_name()),
                    .device = engine.backend().device};
  StepBench bench(engine.runner(), engine.ops());
  for (BenchTest& test : tests) {
    bench.run(test, flags.repetitions);
    const Spread speed = test.tokens_per_second();
    fmt::print(stderr, "{}: {:.2f} ± {:.2f} tokens/s\n", test.name(), speed.mean, speed.deviation);
  }
  if (flags.breakdown) {
    const DeviceLimits limits = engine.backend().measure_limits();
    for (const BenchTest& test : tests) {
      report.breakdowns.push_back(bench.break_down(test, flags.breakdown_repetitions));
      report.breakdowns.back().limits = limits;
    }
  }
  report.tests = std::move(tests);
  if (!flags.save.empty()) write_text_file(flags.save, format_report(report, "json"));
  fmt::print("{}", format_report(report, flags.format));
}

}  // namespace

void add_bench_e2e(CLI::App& bench) {
  auto flags = std::make_shared<E2eFlags>();
  CLI::App* verb = bench.add_subcommand(
      "e2e", "Tokens per second of prompts (pp) and of single-token steps (tg)");
  verb->footer(
      "Numbers may be lists and ranges: 512,1024 or 128-1024*2 or 0-4096+1024. Sequences begin at "
      "a\n"
      "depth whose caches hold random numbers, so that deep contexts cost no prompt. Times are of\n"
      "whole steps: of prompts with the last row's logits read back, of single tokens with the\n"
      "backend taking the likeliest next one. Tokenising is left out.");
  flags->model.add_to(*verb);
  flags->model.add_synthetic_to(*verb);
  verb->add_option("-p,--n-prompt", flags->prompts, "Prompt tokens per sequence; 0 for none")
      ->capture_default_str();
  verb->add_option("-n,--n-gen", flags->outputs, "Single-token steps; 0 for none")
      ->capture_default_str();
  verb->add_option("-d,--depth,--n-depth", flags->depths,
                   "Tokens that each sequence holds when a test begins")
      ->capture_default_str();
  verb->add_option("-b,--batch", flags->batches, "Sequences that run together")
      ->capture_default_str();
  verb->add_option("-r,--repetitions", flags->repetitions, "Runs of each test that count")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  verb->add_option("-o,--output", flags->format, "md, csv or json")
      ->check(CLI::IsMember({"md", "csv", "json"}))
      ->capture_default_str();
  verb->add_option("--save", flags->save, "Also write the results to this file, as JSON");
  verb->add_flag("--breakdown", flags->breakdown,
                 "Also time every operation of each test's first step, beside the device's limits");
  verb->add_option("--breakdown-repetitions", flags->breakdown_repetitions,
                   "Runs of that step; the median counts")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  verb->callback([flags] { bench_e2e(*flags); });
}

}  // namespace quatrain::apps

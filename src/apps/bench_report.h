// SPDX-License-Identifier: Apache-2.0
// Results of benchmarks, and how they are printed: Markdown as llama-bench prints it, CSV, JSON.
//
// Data and text only; measures nothing.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ops/cost_ops.h"
#include "ops/device_limits.h"

namespace quatrain::apps {

struct Spread {
  double mean = 0;
  double deviation = 0;  ///< of the sample (n − 1); 0 for one value
  double median = 0;
};
Spread spread_of(std::vector<double> values);

/// What was measured, and on what.
struct BenchSubject {
  std::string version;  ///< of the program
  std::string model;
  double bytes = 0;       ///< of weights
  double parameters = 0;  ///< weights as numbers
  std::string backend;    ///< "cuda"
  std::string device;     ///< "NVIDIA H200", "8 threads"
};

/// One test of `bench e2e`: a prompt of `prompt` tokens or `output` single-token steps, for `batch`
/// sequences that are `depth` tokens long when it begins.
struct BenchTest {
  std::int64_t prompt = 0;
  std::int64_t output = 0;
  std::int64_t depth = 0;
  std::int64_t batch = 1;
  std::vector<double> seconds;  ///< of each repetition

  double tokens() const { return static_cast<double>((prompt + output) * batch); }
  /// "pp512", "tg128 b4 @ d4096"
  std::string name() const;
  Spread tokens_per_second() const;
};

/// All calls of one operation on one kind of layer.
struct BreakdownLine {
  std::string where;      ///< "window", "CSA", "HCA", or "model" outside layers
  std::string operation;  ///< "linear wq_b"
  std::int64_t calls = 0;
  double microseconds = 0;  ///< of all calls, as is what follows
  OpCost cost;
};

/// Where the time of one step goes.
struct Breakdown {
  std::string test;
  std::int64_t rows = 0;
  double step_microseconds = 0;  ///< the step as it runs: one replay, or eagerly
  bool recorded = false;         ///< the step is one replay of a recording
  std::vector<BreakdownLine> lines;
  DeviceLimits limits;

  double sum_microseconds() const;
};

/// One line of `bench ops`: an operation at one shape.
struct OpResult {
  std::string model;      ///< whose shape: "flash"
  std::string operation;  ///< "linear wq_b"
  std::string shape;      ///< "FP8 128x128 [32768, 1024]"
  std::int64_t rows = 0;
  std::int64_t context = 0;  ///< 0 where it does not matter
  double microseconds = 0;   ///< median of one call
  OpCost cost;
};

struct OpsReport {
  BenchSubject subject;
  DeviceLimits limits;
  std::vector<OpResult> results;
};

struct BenchReport {
  BenchSubject subject;
  std::vector<BenchTest> tests;
  std::vector<Breakdown> breakdowns;
};

/// `format` is "md", "csv" or "json". Throws on any other.
std::string format_report(const BenchReport& report, const std::string& format);

std::string format_report(const OpsReport& report, const std::string& format);

/// Share of the device's limit: time at the limit over time taken, 0 to 1.
double share_of_limit(const DeviceLimits& limits, const OpCost& cost, double microseconds);

/// "12.3 GB/s read, 456 TFLOP/s": one line about a device.
std::string describe(const DeviceLimits& limits);

}  // namespace quatrain::apps

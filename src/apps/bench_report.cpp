// SPDX-License-Identifier: Apache-2.0
#include "apps/bench_report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"
#include "core/json.h"

namespace quatrain::apps {
namespace {

// ---- Markdown ----

std::string markdown_tests(const BenchReport& report) {
  std::string out =
      "| model | size | params | backend | test | t/s |\n|---|---:|---:|---|---:|---:|\n";
  const BenchSubject& s = report.subject;
  for (const BenchTest& test : report.tests) {
    const Spread speed = test.tokens_per_second();
    out += fmt::format("| {} | {:.2f} GiB | {:.2f} B | {} | {} | {:.2f} ± {:.2f} |\n", s.model,
                       s.bytes / 0x1p30, s.parameters / 1e9, s.backend, test.name(), speed.mean,
                       speed.deviation);
  }
  return out;
}

// Some lines together. Their limit is the sum of theirs: each must read and multiply by itself.
struct Sum {
  BreakdownLine line;
  double seconds_at_limit = 0;

  void add(const BreakdownLine& other, const DeviceLimits& limits) {
    line.calls += other.calls;
    line.microseconds += other.microseconds;
    line.cost += other.cost;
    seconds_at_limit += limits.seconds(other.cost);
  }
};

std::string markdown_row(const std::string& where, const std::string& operation, const Sum& sum,
                         double all_microseconds) {
  const BreakdownLine& l = sum.line;
  const double seconds = l.microseconds * 1e-6;
  return fmt::format(
      "| {} | {} | {} | {:.1f} | {:.1f} % | {:.2f} | {:.3f} | {:.0f} | {:.1f} | {:.1f} % |\n",
      where, operation, l.calls, l.microseconds, 100 * l.microseconds / all_microseconds,
      l.cost.bytes / 1e6, l.cost.flops / 1e9, l.cost.bytes / seconds / 1e9,
      l.cost.flops / seconds / 1e12, 100 * sum.seconds_at_limit / seconds);
}

std::string markdown_breakdown(const Breakdown& breakdown) {
  const double whole = breakdown.sum_microseconds();
  std::string out = fmt::format(
      "\n{}, one step of {} rows: {:.1f} µs {}; operations one by one {:.1f} µs.\nLimits: {}.\n\n"
      "| layers | operation | calls | µs | of all | MB | GFLOP | GB/s | TFLOP/s | of limit |\n"
      "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|\n",
      breakdown.test, breakdown.rows, breakdown.step_microseconds,
      breakdown.recorded ? "as one replay" : "run eagerly", whole, describe(breakdown.limits));
  // Lines of one kind of layer stand together; a sum follows each kind, and one of all.
  Sum kind, all;
  for (std::size_t i = 0; i < breakdown.lines.size(); ++i) {
    const BreakdownLine& line = breakdown.lines[i];
    Sum one;
    for (Sum* sum : {&one, &kind, &all}) sum->add(line, breakdown.limits);
    out += markdown_row(line.where, line.operation, one, whole);
    if (i + 1 < breakdown.lines.size() && breakdown.lines[i + 1].where == line.where) continue;
    out += markdown_row(fmt::format("**{}**", line.where), "", kind, whole);
    kind = {};
  }
  return out + markdown_row("all", "", all, whole);
}

// ---- CSV ----

std::string csv_quote(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) out += c == '"' ? std::string("\"\"") : std::string(1, c);
  return out + "\"";
}

std::string csv(const BenchReport& report) {
  const BenchSubject& s = report.subject;
  std::string out =
      "version,model,model_bytes,model_params,backend,device,test,n_prompt,n_gen,n_depth,n_batch,"
      "repetitions,avg_ts,stddev_ts\n";
  for (const BenchTest& test : report.tests) {
    const Spread speed = test.tokens_per_second();
    out += fmt::format("{},{},{:.0f},{:.0f},{},{},{},{},{},{},{},{},{:.4f},{:.4f}\n",
                       csv_quote(s.version), csv_quote(s.model), s.bytes, s.parameters,
                       csv_quote(s.backend), csv_quote(s.device), csv_quote(test.name()),
                       test.prompt, test.output, test.depth, test.batch, test.seconds.size(),
                       speed.mean, speed.deviation);
  }
  if (report.breakdowns.empty()) return out;
  out += "\ntest,layers,operation,calls,microseconds,bytes,flops,share_of_limit\n";
  for (const Breakdown& breakdown : report.breakdowns)
    for (const BreakdownLine& line : breakdown.lines)
      out += fmt::format("{},{},{},{},{:.3f},{:.0f},{:.0f},{:.5f}\n", csv_quote(breakdown.test),
                         csv_quote(line.where), csv_quote(line.operation), line.calls,
                         line.microseconds, line.cost.bytes, line.cost.flops,
                         share_of_limit(breakdown.limits, line.cost, line.microseconds));
  return out;
}

// ---- JSON ----

std::string json_test(const BenchTest& test) {
  const Spread speed = test.tokens_per_second();
  std::vector<double> nanoseconds;
  for (const double s : test.seconds) nanoseconds.push_back(std::round(s * 1e9));
  const Spread time = spread_of(nanoseconds);
  return fmt::format(
      R"({{"test": {}, "n_prompt": {}, "n_gen": {}, "n_depth": {}, "n_batch": {}, "avg_ns": {:.0f}, )"
      R"("stddev_ns": {:.0f}, "avg_ts": {:.6f}, "stddev_ts": {:.6f}, "samples_ns": [{:.0f}]}})",
      json_quote(test.name()), test.prompt, test.output, test.depth, test.batch, time.mean,
      time.deviation, speed.mean, speed.deviation, fmt::join(nanoseconds, ", "));
}

std::string json_limits(const DeviceLimits& limits) {
  return fmt::format(R"({{"read_bytes_per_s": {:.6g}, "flops": {:.6g}, "fp8_flops": {:.6g}, )"
                     R"("int8_flops": {:.6g}, "tile_flops": {:.6g}}})",
                     limits.read_bytes, limits.flops, limits.fp8_flops, limits.int8_flops,
                     limits.tile_flops);
}

std::string json_breakdown(const Breakdown& breakdown) {
  std::string out = fmt::format(
      R"({{"test": {}, "rows": {}, "recorded": {}, "step_us": {:.3f}, "sum_us": {:.3f}, )"
      R"("limits": {}, "operations": [)",
      json_quote(breakdown.test), breakdown.rows, breakdown.recorded, breakdown.step_microseconds,
      breakdown.sum_microseconds(), json_limits(breakdown.limits));
  const char* comma = "";
  for (const BreakdownLine& line : breakdown.lines) {
    out += fmt::format(
        "{}\n    "
        R"({{"layers": {}, "operation": {}, "calls": {}, "us": {:.3f}, "bytes": {:.0f}, )"
        R"("flops": {:.0f}, "share_of_limit": {:.5f}}})",
        comma, json_quote(line.where), json_quote(line.operation), line.calls, line.microseconds,
        line.cost.bytes, line.cost.flops,
        share_of_limit(breakdown.limits, line.cost, line.microseconds));
    comma = ",";
  }
  return out + "]}";
}

std::string json(const BenchReport& report) {
  const BenchSubject& s = report.subject;
  std::string out =
      fmt::format(R"({{"version": {}, "model": {}, "model_bytes": {:.0f}, "model_params": {:.0f}, )"
                  R"("backend": {}, "device": {}, "tests": [)",
                  json_quote(s.version), json_quote(s.model), s.bytes, s.parameters,
                  json_quote(s.backend), json_quote(s.device));
  const char* comma = "";
  for (const BenchTest& test : report.tests) {
    out += fmt::format("{}\n  {}", comma, json_test(test));
    comma = ",";
  }
  out += "],\n \"breakdowns\": [";
  comma = "";
  for (const Breakdown& breakdown : report.breakdowns) {
    out += fmt::format("{}\n  {}", comma, json_breakdown(breakdown));
    comma = ",";
  }
  return out + "]}\n";
}

// ---- operations ----

std::string markdown(const OpsReport& report) {
  std::string out = fmt::format(
      "{}: {}\n\n"
      "| model | operation | weights, widths | rows | context | µs | GB/s | TFLOP/s | of limit |\n"
      "|---|---|---|---:|---:|---:|---:|---:|---:|\n",
      report.subject.device, describe(report.limits));
  for (const OpResult& r : report.results)
    out += fmt::format("| {} | {} | {} | {} | {} | {:.2f} | {:.0f} | {:.2f} | {:.1f} % |\n",
                       r.model, r.operation, r.shape, r.rows,
                       r.context > 0 ? fmt::to_string(r.context) : "", r.microseconds,
                       r.cost.bytes / r.microseconds / 1e3, r.cost.flops / r.microseconds / 1e6,
                       100 * share_of_limit(report.limits, r.cost, r.microseconds));
  return out;
}

std::string csv(const OpsReport& report) {
  std::string out =
      "version,backend,device,model,operation,shape,rows,context,microseconds,bytes,flops,"
      "share_of_limit\n";
  for (const OpResult& r : report.results)
    out += fmt::format("{},{},{},{},{},{},{},{},{:.3f},{:.0f},{:.0f},{:.5f}\n",
                       csv_quote(report.subject.version), csv_quote(report.subject.backend),
                       csv_quote(report.subject.device), csv_quote(r.model), csv_quote(r.operation),
                       csv_quote(r.shape), r.rows, r.context, r.microseconds, r.cost.bytes,
                       r.cost.flops, share_of_limit(report.limits, r.cost, r.microseconds));
  return out;
}

std::string json(const OpsReport& report) {
  std::string out =
      fmt::format(R"({{"version": {}, "backend": {}, "device": {}, "limits": {}, "results": [)",
                  json_quote(report.subject.version), json_quote(report.subject.backend),
                  json_quote(report.subject.device), json_limits(report.limits));
  const char* comma = "";
  for (const OpResult& r : report.results) {
    out += fmt::format(
        "{}\n  "
        R"({{"model": {}, "operation": {}, "shape": {}, "rows": {}, "context": {}, "us": {:.3f}, )"
        R"("bytes": {:.0f}, "flops": {:.0f}, "share_of_limit": {:.5f}}})",
        comma, json_quote(r.model), json_quote(r.operation), json_quote(r.shape), r.rows, r.context,
        r.microseconds, r.cost.bytes, r.cost.flops,
        share_of_limit(report.limits, r.cost, r.microseconds));
    comma = ",";
  }
  return out + "]}\n";
}

}  // namespace

Spread spread_of(std::vector<double> values) {
  if (values.empty()) return {};
  std::ranges::sort(values);
  const auto n = static_cast<double>(values.size());
  Spread out;
  out.mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  double squares = 0;
  for (const double v : values) squares += (v - out.mean) * (v - out.mean);
  if (values.size() > 1) out.deviation = std::sqrt(squares / (n - 1));
  const std::size_t middle = values.size() / 2;
  out.median = values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
  return out;
}

std::string BenchTest::name() const {
  std::string out = prompt > 0 ? fmt::format("pp{}", prompt) : fmt::format("tg{}", output);
  if (batch > 1) out += fmt::format(" b{}", batch);
  if (depth > 0) out += fmt::format(" @ d{}", depth);
  return out;
}

Spread BenchTest::tokens_per_second() const {
  std::vector<double> speeds;
  for (const double s : seconds) speeds.push_back(tokens() / s);
  return spread_of(speeds);
}

double Breakdown::sum_microseconds() const {
  double sum = 0;
  for (const BreakdownLine& line : lines) sum += line.microseconds;
  return sum;
}

double share_of_limit(const DeviceLimits& limits, const OpCost& cost, double microseconds) {
  return microseconds > 0 ? limits.seconds(cost) * 1e6 / microseconds : 0.0;
}

std::string describe(const DeviceLimits& limits) {
  std::string out =
      fmt::format("{:.0f} GB/s read, {:.2f} TFLOP/s", limits.read_bytes / 1e9, limits.flops / 1e12);
  if (limits.fp8_flops > 0) out += fmt::format(", {:.2f} in FP8", limits.fp8_flops / 1e12);
  if (limits.int8_flops > 0) out += fmt::format(", {:.2f} in INT8", limits.int8_flops / 1e12);
  if (limits.tile_flops > 0)
    out += fmt::format(", {:.2f} in BF16 on tiles", limits.tile_flops / 1e12);
  return out;
}

std::string format_report(const OpsReport& report, const std::string& format) {
  if (format == "csv") return csv(report);
  if (format == "json") return json(report);
  if (format != "md") fail("--output: expected md, csv or json, found '{}'", format);
  return markdown(report);
}

std::string format_report(const BenchReport& report, const std::string& format) {
  if (format == "csv") return csv(report);
  if (format == "json") return json(report);
  if (format != "md") fail("--output: expected md, csv or json, found '{}'", format);
  std::string out = markdown_tests(report);
  for (const Breakdown& breakdown : report.breakdowns) out += markdown_breakdown(breakdown);
  return out;
}

}  // namespace quatrain::apps

// SPDX-License-Identifier: Apache-2.0
// Benchmark results as text: the columns that people paste, and formats that tools read.
#include "apps/bench_report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "apps/number_list.h"
#include "core/error.h"

namespace quatrain::apps {
namespace {

BenchReport report() {
  BenchReport out;
  out.subject = {.version = "0.1.0",
                 .model = "a \"model\", quoted",
                 .bytes = 0x1p31,
                 .parameters = 20.8e9,
                 .backend = "cuda",
                 .device = "GPU"};
  out.tests = {{.prompt = 512, .output = 0, .depth = 0, .batch = 1, .seconds = {1.0, 2.0}},
               {.prompt = 0, .output = 128, .depth = 4096, .batch = 4, .seconds = {2.0}}};
  Breakdown breakdown;
  breakdown.test = "tg128 b4 @ d4096";
  breakdown.rows = 4;
  breakdown.step_microseconds = 90;
  breakdown.recorded = true;
  breakdown.limits = {.read_bytes = 1e12, .flops = 1e12, .fp8_flops = 0};
  // 60 µs for 20 MB at 1 TB/s: a third of the limit; 40 µs for 30 MFLOP at 1 TFLOP/s: 75 %.
  breakdown.lines = {{"CSA", "experts", 2, 60, {.bytes = 20e6, .flops = 1e3}},
                     {"HCA", "attend", 1, 40, {.bytes = 1e3, .flops = 30e6}}};
  out.breakdowns = {breakdown};
  return out;
}

TEST(Spread, OfASample) {
  const Spread spread = spread_of({4, 1, 7});
  EXPECT_DOUBLE_EQ(spread.mean, 4);
  EXPECT_DOUBLE_EQ(spread.deviation, 3);
  EXPECT_DOUBLE_EQ(spread.median, 4);
  EXPECT_DOUBLE_EQ(spread_of({1, 2}).median, 1.5);
  EXPECT_EQ(spread_of({5}).deviation, 0);
  EXPECT_EQ(spread_of({}).mean, 0);
}

TEST(BenchTest, NamesAreLlamaBenchs) {
  EXPECT_EQ((BenchTest{.prompt = 512, .seconds = {}}).name(), "pp512");
  EXPECT_EQ((BenchTest{.output = 128, .depth = 4096, .seconds = {}}).name(), "tg128 @ d4096");
  EXPECT_EQ((BenchTest{.output = 128, .batch = 8, .seconds = {}}).name(), "tg128 b8");
}

TEST(BenchTest, TokensOfAllSequencesCount) {
  const Spread speed = report().tests[1].tokens_per_second();
  EXPECT_DOUBLE_EQ(speed.mean, 4 * 128 / 2.0);
  const Spread prompts = report().tests[0].tokens_per_second();
  EXPECT_DOUBLE_EQ(prompts.mean, (512 + 256) / 2.0) << "the mean of speeds, not of times";
}

TEST(ShareOfLimit, IsTheSlowerOfReadingAndComputing) {
  const auto breakdown = report().breakdowns.front();
  EXPECT_NEAR(share_of_limit(breakdown.limits, breakdown.lines[0].cost, 60), 20.0 / 60, 1e-9);
  EXPECT_NEAR(share_of_limit(breakdown.limits, breakdown.lines[1].cost, 40), 0.75, 1e-9);
  EXPECT_EQ(share_of_limit(breakdown.limits, breakdown.lines[0].cost, 0), 0);
  // 40 MFLOP in FP32 at 1 TFLOP/s and 80 in 8 bits at the faster of 2 and 8.
  const DeviceLimits cpu{.read_bytes = 1e12, .flops = 1e12, .int8_flops = 2e12, .tile_flops = 8e12};
  EXPECT_NEAR(share_of_limit(cpu, {.bytes = 1, .flops = 120e6, .int8_flops = 80e6}, 100), 0.5,
              1e-9);
  EXPECT_NEAR(share_of_limit({.flops = 1e12}, {.flops = 50e6, .int8_flops = 50e6}, 100), 0.5, 1e-9)
      << "without such a unit they are products like any other";
  const DeviceLimits gpu{.flops = 1e12, .fp8_flops = 2e12};
  EXPECT_NEAR(share_of_limit(gpu, {.flops = 120e6, .fp8_flops = 80e6}, 100), 0.8, 1e-9);
}

TEST(Report, MarkdownHasLlamaBenchsColumns) {
  std::istringstream lines(format_report(report(), "md"));
  std::string header, rule, first, second;
  std::getline(lines, header);
  std::getline(lines, rule);
  std::getline(lines, first);
  std::getline(lines, second);
  EXPECT_EQ(header, "| model | size | params | backend | test | t/s |");
  EXPECT_EQ(first, "| a \"model\", quoted | 2.00 GiB | 20.80 B | cuda | pp512 | 384.00 ± 181.02 |");
  EXPECT_NE(second.find("| tg128 b4 @ d4096 | 256.00 ± 0.00 |"), std::string::npos) << second;
}

TEST(Report, MarkdownBreaksDownAndAddsUp) {
  const std::string text = format_report(report(), "md");
  EXPECT_NE(text.find("90.0 µs as one replay; operations one by one 100.0 µs"), std::string::npos);
  EXPECT_NE(text.find("| CSA | experts | 2 | 60.0 | 60.0 % |"), std::string::npos) << text;
  EXPECT_NE(text.find("| 33.3 % |"), std::string::npos);
  EXPECT_NE(text.find("| **HCA** |  | 1 | 40.0 | 40.0 % |"), std::string::npos);
  EXPECT_NE(text.find("| all |  | 3 | 100.0 | 100.0 % |"), std::string::npos);
  EXPECT_NE(text.find("| 50.0 % |"), std::string::npos)
      << "20 µs of reading and 30 µs of products can not overlap in 100 µs";
}

TEST(Report, CsvQuotesWhatNeedsIt) {
  const std::string text = format_report(report(), "csv");
  EXPECT_NE(text.find("\"a \"\"model\"\", quoted\""), std::string::npos) << text;
  std::istringstream lines(text);
  std::string header;
  std::getline(lines, header);
  EXPECT_EQ(std::ranges::count(header, ','), 13);
}

TEST(Report, JsonParsesAndHoldsEverySample) {
  const auto json = nlohmann::json::parse(format_report(report(), "json"));
  EXPECT_EQ(json["model"], "a \"model\", quoted");
  EXPECT_EQ(json["tests"][0]["samples_ns"], nlohmann::json({1000000000, 2000000000}));
  EXPECT_EQ(json["tests"][1]["n_depth"], 4096);
  EXPECT_NEAR(json["tests"][1]["avg_ts"].get<double>(), 256, 1e-6);
  const auto& breakdown = json["breakdowns"][0];
  EXPECT_EQ(breakdown["recorded"], true);
  EXPECT_NEAR(breakdown["sum_us"].get<double>(), 100, 1e-6);
  EXPECT_NEAR(breakdown["operations"][1]["share_of_limit"].get<double>(), 0.75, 1e-4);
}

TEST(Report, OfOperationsInAllFormats) {
  OpsReport ops;
  ops.subject = {.version = "1", .model = "", .backend = "cpu", .device = "2 threads"};
  ops.limits = {.read_bytes = 1e10, .flops = 1e11};
  ops.results = {{"flash", "linear wq_b", "FP8 [4, 2]", 16, 0, 100, {.bytes = 5e5, .flops = 1e6}}};
  EXPECT_NE(format_report(ops, "md").find(
                "| flash | linear wq_b | FP8 [4, 2] | 16 |  | 100.00 | 5 | 0.01 | 50.0 % |"),
            std::string::npos)
      << format_report(ops, "md");
  const auto json = nlohmann::json::parse(format_report(ops, "json"));
  EXPECT_EQ(json["results"][0]["operation"], "linear wq_b");
  EXPECT_NEAR(json["results"][0]["share_of_limit"].get<double>(), 0.5, 1e-4);
  EXPECT_NE(format_report(ops, "csv").find("\"FP8 [4, 2]\",16,0,100.000"), std::string::npos);
}

TEST(Report, UnknownFormatsAreRefused) {
  EXPECT_THROW(format_report(report(), "xml"), Error);
  EXPECT_THROW(format_report(OpsReport(), "xml"), Error);
}

TEST(NumberList, ListsAndRanges) {
  const auto parse = [](const char* text) { return parse_numbers(text, "-p", 0, 4096); };
  using List = std::vector<std::int64_t>;
  EXPECT_EQ(parse("512"), List({512}));
  EXPECT_EQ(parse("0,7,7"), List({0, 7, 7}));
  EXPECT_EQ(parse("1-8*2"), List({1, 2, 4, 8}));
  EXPECT_EQ(parse("1-9*2"), List({1, 2, 4, 8}));
  EXPECT_EQ(parse("0-4096+2048,3"), List({0, 2048, 4096, 3}));
  EXPECT_EQ(parse("2-4"), List({2, 3, 4}));
}

TEST(NumberList, AnythingElseIsRefused) {
  for (const char* text : {"", ",", "1,", "a", "-1", "1-", "5-1", "1-4*1", "1-4*0", "0-4*2",
                           "1-4+0", "4097", "1-4097", "1.5", "1 2", "99999999999999999999", "1-2*"})
    EXPECT_THROW(parse_numbers(text, "-p", 0, 4096), Error) << text;
  EXPECT_THROW(parse_numbers("0-4096", "-p", 0, 4096), Error) << "too many";
}

}  // namespace
}  // namespace quatrain::apps

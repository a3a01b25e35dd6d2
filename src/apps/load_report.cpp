// SPDX-License-Identifier: Apache-2.0
#include "apps/load_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <limits>
#include <numeric>
#include <sstream>

#include "core/error.h"
#include "core/json.h"

namespace quatrain::apps {
namespace {

constexpr double kMilli = 1e3;

bool within(double value, double bound) { return bound <= 0 || value <= bound; }

double tokens_of(const LoadRecord& record) {
  return record.completion_tokens > 0 ? static_cast<double>(record.completion_tokens)
                                      : static_cast<double>(record.tokens.size());
}

// Mean milliseconds of each token after the first; 0 for a single one.
double per_token(const LoadRecord& record) {
  const double tokens = tokens_of(record);
  if (tokens < 2 || record.tokens.empty()) return 0;
  return (record.tokens.back() - record.tokens.front()) * kMilli / (tokens - 1);
}

bool is_good(const LoadRecord& record, const LoadGoals& goals) {
  const double first = record.tokens.empty() ? record.end : record.tokens.front();
  return within(first * kMilli, goals.first_token) && within(per_token(record), goals.per_token) &&
         within(record.end * kMilli, goals.whole);
}

// Token k of a steady stream comes at c + k · interval. The token that came earliest against that
// gives c; the others are late against it.
void add_lags(const LoadRecord& record, double interval, std::vector<double>& lags) {
  double least = std::numeric_limits<double>::infinity();
  const auto offset = [&](std::size_t k) {
    return record.tokens[k] - static_cast<double>(k) * interval;
  };
  for (std::size_t k = 0; k < record.tokens.size(); ++k) least = std::min(least, offset(k));
  for (std::size_t k = 0; k < record.tokens.size(); ++k)
    lags.push_back((offset(k) - least) * kMilli);
}

constexpr std::pair<const char*, const char*> kRows[] = {{"first byte", "first_byte_ms"},
                                                         {"time to first token", "ttft_ms"},
                                                         {"time per token", "tpot_ms"},
                                                         {"between tokens", "itl_ms"},
                                                         {"whole request", "e2el_ms"},
                                                         {"refusal", "refusal_ms"},
                                                         {"lag", "lag_ms"}};

std::vector<const TimeSpread*> spreads(const LoadReport& r) {
  return {&r.first_byte, &r.first_token, &r.per_token, &r.between_tokens,
          &r.whole,      &r.refusal,     &r.lag};
}

}  // namespace

LoadGoals parse_goals(const std::string& text) {
  LoadGoals goals;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    const auto colon = part.find(':');
    const std::string name = part.substr(0, colon);
    double* goal = name == "ttft"   ? &goals.first_token
                   : name == "tpot" ? &goals.per_token
                   : name == "e2el" ? &goals.whole
                                    : nullptr;
    std::size_t used = 0;
    try {
      if (goal != nullptr && colon != part.npos) *goal = std::stod(part.substr(colon + 1), &used);
    } catch (const std::exception&) {
      used = 0;
    }
    if (goal == nullptr || used == 0 || colon + 1 + used != part.size() || !(*goal > 0))
      fail("--goodput: expected ttft:MS, tpot:MS or e2el:MS with commas between, found '{}'", part);
  }
  return goals;
}

TimeSpread time_spread(std::vector<double> times) {
  TimeSpread spread;
  spread.count = times.size();
  if (times.empty()) return spread;
  std::ranges::sort(times);
  const auto at = [&](double share) {
    const auto rank = static_cast<std::size_t>(share * static_cast<double>(times.size()));
    return times[std::min(rank, times.size() - 1)];
  };
  spread.mean =
      std::accumulate(times.begin(), times.end(), 0.0) / static_cast<double>(times.size());
  spread.median = at(0.5);
  spread.p90 = at(0.9);
  spread.p99 = at(0.99);
  spread.max = times.back();
  return spread;
}

LoadReport make_report(const std::vector<LoadRecord>& records, const LoadGoals& goals,
                       double interval) {
  LoadReport report;
  std::vector<double> first_byte, first_token, per, between, whole, refusal, lag;
  double first = std::numeric_limits<double>::infinity(), last = 0;
  for (const LoadRecord& record : records) {
    ++report.requests;
    ++report.status[record.status];
    first = std::min(first, record.begin);
    last = std::max(last, record.begin + record.end);
    if (record.status != 0 && record.status != 200) {
      ++report.refused;
      refusal.push_back(record.end * kMilli);
    } else if (!record.complete) {
      ++report.failed;
    } else {
      ++report.complete;
      report.good += is_good(record, goals) ? 1 : 0;
      report.prompt_tokens += record.prompt_tokens;
      report.output_tokens += static_cast<std::int64_t>(tokens_of(record));
      first_byte.push_back(record.first_byte * kMilli);
      whole.push_back(record.end * kMilli);
      if (record.tokens.empty()) continue;
      first_token.push_back(record.tokens.front() * kMilli);
      if (tokens_of(record) >= 2) per.push_back(per_token(record));
      for (std::size_t k = 1; k < record.tokens.size(); ++k)
        between.push_back((record.tokens[k] - record.tokens[k - 1]) * kMilli);
      if (interval > 0) add_lags(record, interval, lag);
    }
  }
  report.seconds = records.empty() ? 0 : last - first;
  report.first_byte = time_spread(std::move(first_byte));
  report.first_token = time_spread(std::move(first_token));
  report.per_token = time_spread(std::move(per));
  report.between_tokens = time_spread(std::move(between));
  report.whole = time_spread(std::move(whole));
  report.refusal = time_spread(std::move(refusal));
  report.lag = time_spread(std::move(lag));
  return report;
}

std::string format_text(const LoadReport& r) {
  std::string out;
  const auto to = std::back_inserter(out);
  const auto line = [&](const char* name, const std::string& value) {
    fmt::format_to(to, "{:<28} {:>14}\n", name, value);
  };
  line("requests", std::to_string(r.requests));
  line("complete", std::to_string(r.complete));
  line("refused", std::to_string(r.refused));
  line("failed", std::to_string(r.failed));
  for (const auto& [status, count] : r.status)
    if (status != 200 && status != 0)
      line(fmt::format("  status {}", status).c_str(), std::to_string(count));
  line("duration, s", fmt::format("{:.2f}", r.seconds));
  line("prompt tokens", std::to_string(r.prompt_tokens));
  line("output tokens", std::to_string(r.output_tokens));
  line("requests/s", fmt::format("{:.2f}", r.per_second(r.complete)));
  line("goodput, requests/s", fmt::format("{:.2f}", r.per_second(r.good)));
  line("output tokens/s", fmt::format("{:.2f}", r.per_second(r.output_tokens)));
  line("all tokens/s", fmt::format("{:.2f}", r.per_second(r.output_tokens + r.prompt_tokens)));
  fmt::format_to(to, "\n{:<20} {:>10} {:>10} {:>10} {:>10} {:>10}\n", "ms", "mean", "median", "p90",
                 "p99", "max");
  const auto list = spreads(r);
  for (std::size_t i = 0; i < list.size(); ++i)
    if (const TimeSpread& s = *list[i]; s.count > 0)
      fmt::format_to(to, "{:<20} {:>10.2f} {:>10.2f} {:>10.2f} {:>10.2f} {:>10.2f}\n",
                     kRows[i].first, s.mean, s.median, s.p90, s.p99, s.max);
  return out;
}

std::string format_json(const LoadReport& r, const std::string& url, const LoadOptions& options) {
  std::string out = fmt::format(
      R"({{"bench":"serve","url":{},"path":{},"num_prompts":{},"max_concurrency":{},)"
      R"("request_rate":{},"duration":{:.4f},"completed":{},"refused":{},"failed":{},)"
      R"("total_input_tokens":{},"total_output_tokens":{},"request_throughput":{:.4f},)"
      R"("request_goodput":{:.4f},"output_throughput":{:.4f},"total_token_throughput":{:.4f})",
      json_quote(url), json_quote(options.path), r.requests, options.concurrency, options.rate,
      r.seconds, r.complete, r.refused, r.failed, r.prompt_tokens, r.output_tokens,
      r.per_second(r.complete), r.per_second(r.good), r.per_second(r.output_tokens),
      r.per_second(r.output_tokens + r.prompt_tokens));
  std::string status;
  for (const auto& [code, count] : r.status)
    status += fmt::format(R"({}"{}":{})", status.empty() ? "" : ",", code, count);
  out += fmt::format(R"(,"status":{{{}}})", status);
  const auto list = spreads(r);
  for (std::size_t i = 0; i < list.size(); ++i) {
    const TimeSpread& s = *list[i];
    const char* name = kRows[i].second;
    if (s.count > 0)
      out += fmt::format(
          R"(,"mean_{0}":{1:.4f},"median_{0}":{2:.4f},"p90_{0}":{3:.4f},"p99_{0}":{4:.4f},)"
          R"("max_{0}":{5:.4f})",
          name, s.mean, s.median, s.p90, s.p99, s.max);
  }
  return out + "}\n";
}

}  // namespace quatrain::apps

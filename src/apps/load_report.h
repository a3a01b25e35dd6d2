// SPDX-License-Identifier: Apache-2.0
// Figures of a load run: records of requests → counts, rates and percentiles, as text or JSON.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "apps/load_client.h"

namespace quatrain::apps {

/// What a request must keep to count as good; 0 stands for no bound. Milliseconds.
struct LoadGoals {
  double first_token = 0;
  double per_token = 0;
  double whole = 0;
};

/// "ttft:200,tpot:50,e2el:3000"; throws Error on anything else.
LoadGoals parse_goals(const std::string& text);

/// Of a set of times; milliseconds.
struct TimeSpread {
  std::size_t count = 0;
  double mean = 0, median = 0, p90 = 0, p99 = 0, max = 0;
};
TimeSpread time_spread(std::vector<double> milliseconds);

struct LoadReport {
  std::int64_t requests = 0;
  std::int64_t complete = 0;
  std::int64_t refused = 0;            ///< answered with another status than 200
  std::int64_t failed = 0;             ///< without an answer, or it was cut off
  std::map<int, std::int64_t> status;  ///< how many had which; 0: none
  double seconds = 0;                  ///< from the first request to the end of the last
  std::int64_t prompt_tokens = 0, output_tokens = 0;  ///< of complete requests
  std::int64_t good = 0;                              ///< complete and within the goals
  TimeSpread first_byte, first_token, per_token, between_tokens, whole, refusal;
  /// How far tokens came behind the steadiest schedule of their stream that fits; with an interval.
  TimeSpread lag;

  [[nodiscard]] double per_second(std::int64_t count) const {
    return seconds > 0 ? static_cast<double>(count) / seconds : 0;
  }
};

/// `interval`: seconds between a stream's tokens, as a simulated server keeps them; 0: unknown.
LoadReport make_report(const std::vector<LoadRecord>& records, const LoadGoals& goals,
                       double interval);

std::string format_text(const LoadReport& report);
std::string format_json(const LoadReport& report, const std::string& url,
                        const LoadOptions& options);

}  // namespace quatrain::apps

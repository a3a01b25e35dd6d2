// SPDX-License-Identifier: Apache-2.0
// What the server counts, and its text for Prometheus. Used on the server's thread only.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "quatrain/engine.h"

namespace quatrain::server {

/// Counts of observations at or below each edge, with their sum.
class Histogram {
 public:
  explicit Histogram(std::span<const double> edges) : edges_(edges), counts_(edges.size() + 1) {}

  void observe(double value);
  /// Appends the series of `name`; `labels` are "a=\"b\"".
  void write(std::string& out, std::string_view name, std::string_view labels) const;

 private:
  std::span<const double> edges_;
  std::vector<std::int64_t> counts_;  // per interval
  std::int64_t count_ = 0;
  double sum_ = 0;
};

/// Edges in seconds, of waiting for a first token and between tokens; in tokens, of sizes.
extern const std::span<const double> kFirstTokenEdges, kInterTokenEdges, kRequestEdges, kTokenEdges;

struct Metrics {
  Histogram first_token{kFirstTokenEdges};
  Histogram inter_token{kInterTokenEdges};
  Histogram request_time{kRequestEdges};
  Histogram prompt_tokens{kTokenEdges};
  Histogram generation_tokens{kTokenEdges};
  std::map<std::string, std::int64_t, std::less<>> finished;  // by finish_reason
  std::int64_t corrupted = 0;                                 // ended by logits not finite
  // (path, method, status) → count. Paths are those of the routes only.
  std::map<std::tuple<std::string, std::string, int>, std::int64_t> http_requests;
  Histogram http_time{kRequestEdges};

  /// Prometheus text. With `aliases` the series of the engine have "vllm:" names as well.
  [[nodiscard]] std::string text(const EngineStats& engine, std::string_view model,
                                 std::size_t connections, bool aliases) const;
};

}  // namespace quatrain::server

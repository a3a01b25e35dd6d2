// SPDX-License-Identifier: Apache-2.0
#include "server/metrics.h"

#include <dirent.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <iterator>

#include "core/json.h"

namespace quatrain::server {
namespace {

constexpr double kFirstToken[] = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,  0.25, 0.5,
                                  0.75,  1.0,   2.5,  5.0,  7.5,  10.0, 15.0, 20.0, 30.0};
constexpr double kInterToken[] = {0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05,
                                  0.075, 0.1,    0.15,  0.2,  0.3,   0.4,  0.5,   0.75, 1.0,  2.5};
constexpr double kRequest[] = {0.01, 0.05, 0.1, 0.3,  0.5,  0.8,  1.0,   1.5,   2.0,  2.5,
                               5.0,  10.0, 15., 20.0, 30.0, 60.0, 120.0, 240.0, 480.0};
constexpr double kTokens[] = {1,    2,    5,     10,    20,    50,     100,    200,    500,    1000,
                              2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000, 1000000};

// One family of series: help and type, then lines.
class Writer {
 public:
  Writer(std::string& out, std::string labels) : out_(out), labels_(std::move(labels)) {}

  void head(std::string_view name, std::string_view type, std::string_view help) {
    put("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
  }
  void value(std::string_view name, double value, std::string_view more = "") {
    put("{}{{{}{}{}}} {}\n", name, labels_, more.empty() ? "" : ",", more, value);
  }
  void histogram(std::string_view name, std::string_view help, const Histogram& histogram) {
    head(name, "histogram", help);
    histogram.write(out_, name, labels_);
  }

 private:
  template <class... Args>
  void put(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(out_), format, std::forward<Args>(args)...);
  }
  std::string& out_;
  std::string labels_;
};

double kv_usage(const EngineStats& engine) {
  return engine.kv_blocks_total > 0 ? static_cast<double>(engine.kv_blocks_used) /
                                          static_cast<double>(engine.kv_blocks_total)
                                    : 0.0;
}

void write_engine(Writer& writer, std::string_view prefix, const EngineStats& engine) {
  struct Entry {
    std::string_view name, type, help;
    double value;
  };
  const auto number = [](std::int64_t n) { return static_cast<double>(n); };
  const Entry entries[] = {
      {"num_requests_running", "gauge", "Requests that are being run", number(engine.running)},
      {"num_requests_waiting", "gauge", "Requests that wait to run", number(engine.waiting)},
      {"num_tokens_waiting", "gauge", "Prompt tokens of waiting requests",
       number(engine.waiting_tokens)},
      {"kv_cache_usage_perc", "gauge", "Share of the KV cache in use, 0 to 1", kv_usage(engine)},
      {"kv_cache_blocks_cached", "gauge", "Blocks kept for later prefixes",
       number(engine.kv_blocks_cached)},
      {"prompt_tokens_total", "counter", "Prompt tokens", number(engine.prompt_tokens)},
      {"generation_tokens_total", "counter", "Tokens sampled", number(engine.output_tokens)},
      {"prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache",
       number(engine.prompt_tokens)},
      {"prefix_cache_hits_total", "counter", "Prompt tokens found in the prefix cache",
       number(engine.cached_prompt_tokens)},
      {"num_preemptions_total", "counter", "Requests put back for lack of memory",
       number(engine.preemptions)},
      {"engine_steps_total", "counter", "Steps of the engine", number(engine.steps)}};
  for (const Entry& entry : entries) {
    const std::string name = fmt::format("{}{}", prefix, entry.name);
    writer.head(name, entry.type, entry.help);
    writer.value(name, entry.value);
  }
}

std::int64_t resident_bytes() {
  long long total = 0, resident = 0;
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr) return 0;
  const bool is_read = std::fscanf(file, "%lld %lld", &total, &resident) == 2;
  std::fclose(file);
  return is_read ? resident * sysconf(_SC_PAGESIZE) : 0;
}

std::int64_t open_descriptors() {
  DIR* folder = opendir("/proc/self/fd");
  if (folder == nullptr) return 0;
  std::int64_t count = -3;  // ".", ".." and this one
  while (readdir(folder) != nullptr) ++count;
  closedir(folder);
  return count;
}

const std::time_t kProcessStart = std::time(nullptr);

}  // namespace

const std::span<const double> kFirstTokenEdges{kFirstToken}, kInterTokenEdges{kInterToken},
    kRequestEdges{kRequest}, kTokenEdges{kTokens};

void Histogram::observe(double value) {
  const auto edge = std::lower_bound(edges_.begin(), edges_.end(), value);
  ++counts_[static_cast<std::size_t>(edge - edges_.begin())];
  ++count_;
  sum_ += value;
}

void Histogram::write(std::string& out, std::string_view name, std::string_view labels) const {
  auto to = std::back_inserter(out);
  std::int64_t below = 0;
  for (std::size_t i = 0; i < edges_.size(); ++i) {
    below += counts_[i];
    fmt::format_to(to, "{}_bucket{{{},le=\"{}\"}} {}\n", name, labels, edges_[i], below);
  }
  fmt::format_to(to, "{}_bucket{{{},le=\"+Inf\"}} {}\n", name, labels, count_);
  fmt::format_to(to, "{}_sum{{{}}} {}\n{}_count{{{}}} {}\n", name, labels, sum_, name, labels,
                 count_);
}

std::string Metrics::text(const EngineStats& engine, std::string_view model,
                          std::size_t connections, bool aliases) const {
  std::string out;
  Writer writer(out, fmt::format("model_name={}", json_quote(model)));
  for (const std::string_view prefix : {"quatrain:", "vllm:"}) {
    if (prefix == "vllm:" && !aliases) break;
    const auto name = [&](std::string_view rest) { return fmt::format("{}{}", prefix, rest); };
    write_engine(writer, prefix, engine);
    writer.head(name("request_success_total"), "counter", "Requests by how they ended");
    for (const auto& [reason, count] : finished)
      writer.value(name("request_success_total"), static_cast<double>(count),
                   fmt::format("finished_reason=\"{}\"", reason));
    writer.head(name("corrupted_requests_total"), "counter", "Requests with logits not finite");
    writer.value(name("corrupted_requests_total"), static_cast<double>(corrupted));
    writer.histogram(name("time_to_first_token_seconds"), "From request to first token",
                     first_token);
    writer.histogram(name("inter_token_latency_seconds"), "Between tokens", inter_token);
    writer.histogram(name("e2e_request_latency_seconds"), "Whole requests", request_time);
    writer.histogram(name("request_prompt_tokens"), "Prompt tokens", prompt_tokens);
    writer.histogram(name("request_generation_tokens"), "Tokens sampled", generation_tokens);
  }
  writer.head("http_requests_total", "counter", "HTTP requests");
  for (const auto& [key, count] : http_requests)
    writer.value("http_requests_total", static_cast<double>(count),
                 fmt::format("handler=\"{}\",method=\"{}\",status=\"{}\"", std::get<0>(key),
                             std::get<1>(key), std::get<2>(key)));
  writer.histogram("http_request_duration_seconds", "HTTP requests", http_time);
  const auto gauge = [&](std::string_view name, std::string_view help, double value) {
    writer.head(name, "gauge", help);
    writer.value(name, value);
  };
  gauge("quatrain:http_connections", "Open connections", static_cast<double>(connections));
  gauge("process_resident_memory_bytes", "Resident memory", static_cast<double>(resident_bytes()));
  gauge("process_open_fds", "Open descriptors", static_cast<double>(open_descriptors()));
  gauge("process_start_time_seconds", "Start of the process, seconds since 1970",
        static_cast<double>(kProcessStart));
  return out;
}

}  // namespace quatrain::server

// SPDX-License-Identifier: Apache-2.0
#include "core/log.h"

#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <string>

#include "core/json.h"

namespace quatrain {
namespace {

std::atomic<LogLevel> current_level{LogLevel::kInfo};
std::atomic<bool> timestamps{false};
std::atomic<LogFormat> current_format{LogFormat::kText};

constexpr std::array<std::string_view, 4> kNames = {"error", "warn", "info", "debug"};
constexpr std::array<std::string_view, 4> kPrefixes = {"error: ", "warning: ", "", "debug: "};

/// "2026-01-31 23:59:59.123 ", local time.
std::string timestamp() {
  const auto now = std::chrono::system_clock::now();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  const auto since_epoch =
      std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch());
  std::tm local{};
  localtime_r(&seconds, &local);
  return fmt::format("{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:03} ", local.tm_year + 1900,
                     local.tm_mon + 1, local.tm_mday, local.tm_hour, local.tm_min, local.tm_sec,
                     since_epoch.count() % 1000);
}

// "2026-01-31T22:59:59.123Z"
std::string utc_time() {
  const auto now = std::chrono::system_clock::now();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  const auto since_epoch =
      std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch());
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", utc.tm_year + 1900,
                     utc.tm_mon + 1, utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec,
                     since_epoch.count() % 1000);
}

// fwrite locks the stream for the whole line.
void put(const std::string& line) { std::fwrite(line.data(), 1, line.size(), stderr); }

void put_json(LogLevel level, std::string_view event, std::string_view members) {
  put(fmt::format(R"({{"time":"{}","level":"{}","event":{}{}{}}})"
                  "\n",
                  utc_time(), kNames[static_cast<std::size_t>(level)], json_quote(event),
                  members.empty() ? "" : ",", members));
}

}  // namespace

std::optional<LogLevel> log_level_from_name(std::string_view name) {
  for (std::size_t i = 0; i < kNames.size(); ++i)
    if (kNames[i] == name) return static_cast<LogLevel>(i);
  return std::nullopt;
}

void set_log_level(LogLevel level) { current_level.store(level, std::memory_order_relaxed); }

LogLevel log_level() { return current_level.load(std::memory_order_relaxed); }

void set_log_timestamps(bool on) { timestamps.store(on, std::memory_order_relaxed); }

void set_log_format(LogFormat format) { current_format.store(format, std::memory_order_relaxed); }

LogFormat log_format() { return current_format.load(std::memory_order_relaxed); }

void log_event(LogLevel level, std::string_view event, std::string_view text,
               std::string_view members) {
  if (level > log_level()) return;
  if (log_format() == LogFormat::kJson)
    put_json(level, event, members);
  else
    write_log_line(level, text);
}

void write_log_line(LogLevel level, std::string_view message) {
  if (log_format() == LogFormat::kJson)
    return put_json(level, "log", fmt::format(R"("message":{})", json_quote(message)));
  std::string line = timestamps.load(std::memory_order_relaxed) ? timestamp() : std::string();
  line += kPrefixes[static_cast<std::size_t>(level)];
  line += message;
  line += '\n';
  put(line);
}

}  // namespace quatrain

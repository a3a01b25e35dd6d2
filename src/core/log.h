// SPDX-License-Identifier: Apache-2.0
// Levelled log lines on stderr. Results never go through here: those belong on stdout.
//
// A line is written with one call, so lines of several threads do not mix. Formatting happens only
// for levels that are on. Logging may allocate, so it has no place inside a step.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>

namespace quatrain {

enum class LogLevel : std::uint8_t { kError, kWarn, kInfo, kDebug };

/// Inverse of the spellings "error", "warn", "info" and "debug".
std::optional<LogLevel> log_level_from_name(std::string_view name);

/// Lines above this level are dropped; kInfo at start.
void set_log_level(LogLevel level);
LogLevel log_level();

/// Puts the local time in front of every line; off at start.
void set_log_timestamps(bool on);

/// Writes one line: "error: …", "warning: …", "debug: …"; information has no prefix.
void write_log_line(LogLevel level, std::string_view message);

template <class... Args>
void log(LogLevel level, fmt::format_string<Args...> format, Args&&... args) {
  if (level <= log_level()) write_log_line(level, fmt::format(format, std::forward<Args>(args)...));
}

template <class... Args>
void log_error(fmt::format_string<Args...> format, Args&&... args) {
  log(LogLevel::kError, format, std::forward<Args>(args)...);
}
template <class... Args>
void log_warn(fmt::format_string<Args...> format, Args&&... args) {
  log(LogLevel::kWarn, format, std::forward<Args>(args)...);
}
template <class... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  log(LogLevel::kInfo, format, std::forward<Args>(args)...);
}
template <class... Args>
void log_debug(fmt::format_string<Args...> format, Args&&... args) {
  log(LogLevel::kDebug, format, std::forward<Args>(args)...);
}

}  // namespace quatrain

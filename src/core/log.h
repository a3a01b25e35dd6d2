// SPDX-License-Identifier: Apache-2.0
// Levelled log lines on stderr. Results never go through here: those belong on stdout.
//
// A line is written with one call, so lines of several threads do not mix. Formatting happens only
// for levels that are on. Logging may allocate, so it has no place inside a step. For machines a
// line can be one JSON object: {"time", "level", "event", …}.
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

enum class LogFormat : std::uint8_t { kText, kJson };

/// How lines are written; kText at start.
void set_log_format(LogFormat format);
LogFormat log_format();

/// Writes a line that has parts for machines: people get `text`; JSON has `event`, the event's
/// name, and `members`, further members without braces ("\"a\":1,\"b\":2").
void log_event(LogLevel level, std::string_view event, std::string_view text,
               std::string_view members);

/// Writes one line: "error: …", "warning: …", "debug: …"; information has no prefix. In
/// JSON the event is "log" and the text its "message".
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

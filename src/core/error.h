// SPDX-License-Identifier: Apache-2.0
// Errors that carry values: what was expected, what was found, and where.
//
// `Error` is the one exception type of the engine. Programmer and data faults throw it; no status
// codes travel through the model. A message names the thing at fault (file, tensor, field) first.
// Formatting one may allocate even inside a step: the message matters more than the guard then.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

#include "core/step_guard.h"

namespace quatrain {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Throws Error with a formatted message.
template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  const StepGuardPause pause(nullptr);
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

namespace detail {
[[noreturn]] void check_failed(const char* file, int line, const char* expression,
                               const std::string& message);
}  // namespace detail

}  // namespace quatrain

/// Checks an invariant of the program; the message is formatted only on failure.
#define QT_CHECK(condition, ...)                                                                  \
  do {                                                                                            \
    if (!(condition)) [[unlikely]] {                                                              \
      const ::quatrain::StepGuardPause qt_pause_(nullptr);                                        \
      ::quatrain::detail::check_failed(__FILE__, __LINE__, #condition, fmt::format(__VA_ARGS__)); \
    }                                                                                             \
  } while (false)

/// Checks equality of two printable values and prints both.
#define QT_CHECK_EQ(found, expected, what)                                          \
  do {                                                                              \
    const auto& qt_found_ = (found);                                                \
    const auto& qt_expected_ = (expected);                                          \
    if (!(qt_found_ == qt_expected_)) [[unlikely]] {                                \
      const ::quatrain::StepGuardPause qt_pause_(nullptr);                          \
      ::quatrain::detail::check_failed(                                             \
          __FILE__, __LINE__, #found " == " #expected,                              \
          fmt::format("{}: expected {}, found {}", what, qt_expected_, qt_found_)); \
    }                                                                               \
  } while (false)

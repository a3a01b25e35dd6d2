// SPDX-License-Identifier: Apache-2.0
// ProgressBar: how far a long read or write of bytes, or a number of things, has come, on stderr.
//
// On a terminal it is one line, redrawn in place at most ten times a second; elsewhere it is a
// plain line every five seconds. What it counts is the caller's business.
#pragma once

#include <cstdint>
#include <cstdio>
#include <functional>
#include <mutex>
#include <string>

namespace quatrain {

struct ProgressOptions {
  bool enabled = true;
  std::FILE* file = stderr;
  bool is_terminal = false;
  int columns = 80;               ///< width of the terminal
  std::string unit = {};          ///< what is counted, in the plural; empty: bytes
  std::function<double()> clock;  ///< seconds, monotonic; the steady clock when empty

  /// Options for the process's stderr: asks whether it is a terminal, and how wide.
  static ProgressOptions for_stderr();
};

class ProgressBar {
 public:
  /// `total` bytes or other units are to come; `label` says what for ("loading").
  ProgressBar(std::string label, std::int64_t total,
              ProgressOptions options = ProgressOptions::for_stderr());
  /// Without finish(), which is how an error leaves, the bar is erased and nothing more is said.
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  /// `count` more are done. May be called from any thread.
  void advance(std::int64_t count);

  /// Writes the closing line: amount, seconds and, of bytes, the rate. Further calls do nothing.
  void finish();

 private:
  double elapsed() const { return options_.clock() - start_; }
  void draw(double seconds);
  void write(const std::string& text);
  std::string progress_text(double seconds) const;
  std::string bar(std::size_t width) const;

  const std::string label_;
  const std::int64_t total_;
  ProgressOptions options_;
  double start_ = 0;

  std::mutex mutex_;  // guards what follows
  std::int64_t done_ = 0;
  double last_draw_ = 0;
  bool on_screen_ = false;
  bool finished_ = false;
};

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
#include "core/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "core/log.h"

namespace quatrain {
namespace {

constexpr double kTerminalInterval = 0.1;  // seconds between redraws
constexpr double kPlainInterval = 5.0;     // seconds between plain lines
constexpr std::size_t kMaxBarWidth = 30;
constexpr std::size_t kMinBarWidth = 5;
constexpr const char* kErase = "\r\x1b[K";

struct Unit {
  double bytes;
  const char* name;
};

Unit unit_for(double bytes) {
  return bytes >= 1e9 ? Unit{1e9, "GB"} : bytes >= 1e6 ? Unit{1e6, "MB"} : Unit{1e3, "kB"};
}

std::string amount(double bytes) {
  const Unit unit = unit_for(bytes);
  return fmt::format("{:.2f} {}", bytes / unit.bytes, unit.name);
}

std::string duration(double seconds) {
  const auto s = static_cast<std::int64_t>(std::ceil(std::min(seconds, 1e9)));
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{}:{:02} min", s / 60, s % 60);
  return fmt::format("{}:{:02} h", s / 3600, s / 60 % 60);
}

}  // namespace

ProgressOptions ProgressOptions::for_stderr() {
  ProgressOptions options;
  options.enabled = log_format() == LogFormat::kText;  // a bar is no JSON
  options.is_terminal = isatty(fileno(stderr)) == 1;
  winsize size{};
  if (options.is_terminal && ioctl(fileno(stderr), TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
    options.columns = size.ws_col;
  return options;
}

ProgressBar::ProgressBar(std::string label, std::int64_t total, ProgressOptions options)
    : label_(std::move(label)), total_(total), options_(std::move(options)) {
  if (!options_.clock) {
    options_.clock = [] {
      return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
          .count();
    };
  }
  start_ = options_.clock();
}

ProgressBar::~ProgressBar() {
  if (on_screen_) write(kErase);
}

void ProgressBar::advance(std::int64_t count) {
  const std::scoped_lock lock(mutex_);
  done_ += count;
  if (!options_.enabled || finished_) return;
  const double seconds = elapsed();
  const double interval = options_.is_terminal ? kTerminalInterval : kPlainInterval;
  if (seconds - last_draw_ >= interval) draw(seconds);
}

void ProgressBar::finish() {
  const std::scoped_lock lock(mutex_);
  if (std::exchange(finished_, true) || !options_.enabled) return;
  const double seconds = elapsed();
  const double rate = static_cast<double>(done_) / std::max(seconds, 1e-3);
  const std::string result =
      options_.unit.empty() ? fmt::format("{} in {:.1f} s, {}/s",
                                          amount(static_cast<double>(done_)), seconds, amount(rate))
                            : fmt::format("{} {} in {:.1f} s", done_, options_.unit, seconds);
  write(fmt::format("{}{}: {}\n", std::exchange(on_screen_, false) ? kErase : "", label_, result));
}

void ProgressBar::draw(double seconds) {
  last_draw_ = seconds;
  const std::string text = progress_text(seconds);
  if (!options_.is_terminal) return write(fmt::format("{}: {}\n", label_, text));
  // The last column stays free: a full line would wrap, and wrapped lines cannot be redrawn.
  const std::size_t columns = options_.columns > 1 ? static_cast<std::size_t>(options_.columns) : 1;
  const std::size_t taken = label_.size() + text.size() + 5;
  const std::size_t width = columns > taken ? std::min(columns - taken, kMaxBarWidth) : 0;
  std::string line = width >= kMinBarWidth ? fmt::format("{} [{}] {}", label_, bar(width), text)
                                           : fmt::format("{} {}", label_, text);
  line.resize(std::min(line.size(), columns - 1));
  on_screen_ = true;
  write(kErase + line);
}

void ProgressBar::write(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), options_.file);
  std::fflush(options_.file);
}

/// "1.50/4.00 GB, 0.75 GB/s, 4 s left"; "3/11 steps, 4 s left"
std::string ProgressBar::progress_text(double seconds) const {
  const auto done = static_cast<double>(done_);
  const auto total = static_cast<double>(std::max(total_, done_));
  const double rate = done / std::max(seconds, 1e-3);
  const Unit unit = unit_for(total);
  std::string text = options_.unit.empty()
                         ? fmt::format("{:.2f}/{:.2f} {}, {}/s", done / unit.bytes,
                                       total / unit.bytes, unit.name, amount(rate))
                         : fmt::format("{}/{} {}", done_, total_, options_.unit);
  if (rate > 0) text += fmt::format(", {} left", duration((total - done) / rate));
  return text;
}

std::string ProgressBar::bar(std::size_t width) const {
  const double fraction =
      total_ > 0 ? std::min(1.0, static_cast<double>(done_) / static_cast<double>(total_)) : 1.0;
  std::string cells(width, '-');
  const auto full = static_cast<std::size_t>(fraction * static_cast<double>(width));
  std::fill_n(cells.begin(), full, '=');
  return cells;
}

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// Finds stop strings in text that arrives in parts.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace quatrain {

/// Holds back exactly the longest end of the text that could still become a stop string, so that
/// nothing of a stop string is ever given out. The stop string that is complete first counts; of
/// those complete at the same byte, the longest. The result does not depend on how the text is cut.
class StopMatcher {
 public:
  /// Throws Error for an empty stop string. With `include_stop` the stop string is given out too.
  explicit StopMatcher(std::vector<std::string> stops, bool include_stop = false);

  /// Text that is safe to show after `text` has arrived; empty once a stop string was found.
  std::string feed(std::string_view text);

  /// What is still held back when the text ends without a stop string.
  std::string finish();

  /// Whether a stop string was found, and which (an index into `stops`; -1: none).
  [[nodiscard]] bool stopped() const { return stop_index_ >= 0; }
  [[nodiscard]] int stop_index() const { return stop_index_; }

 private:
  // Knuth-Morris-Pratt: `matched` is the length of the longest end of the text so far that begins
  // the stop string.
  struct Stop {
    std::string text;
    std::vector<std::size_t> border;  // border[n]: longest proper border of the first n bytes
    std::size_t matched = 0;
  };

  std::vector<Stop> stops_;
  bool include_stop_;
  int stop_index_ = -1;
  std::string held_;
};

}  // namespace quatrain

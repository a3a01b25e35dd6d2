// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace quatrain {
namespace {

// How much of `pattern` is matched when `byte` follows `matched` bytes of it, but not all of it.
std::size_t advance(std::string_view pattern, const std::vector<std::size_t>& border,
                    std::size_t matched, char byte) {
  while (matched > 0 && pattern[matched] != byte) matched = border[matched];
  return pattern[matched] == byte ? matched + 1 : 0;
}

}  // namespace

StopMatcher::StopMatcher(std::vector<std::string> stops, bool include_stop)
    : include_stop_(include_stop) {
  for (std::string& text : stops) {
    if (text.empty())
      fail("stop string {}: expected at least one character, found none", stops_.size());
    std::vector<std::size_t> border = {0, 0};
    for (std::size_t i = 1; i < text.size(); ++i)
      border.push_back(advance(text, border, border[i], text[i]));
    stops_.push_back({std::move(text), std::move(border)});
  }
}

std::string StopMatcher::feed(std::string_view text) {
  if (stopped()) return {};
  for (std::size_t i = 0; i < text.size(); ++i) {
    std::size_t longest = 0;
    for (std::size_t s = 0; s < stops_.size(); ++s) {
      Stop& stop = stops_[s];
      stop.matched = advance(stop.text, stop.border, stop.matched, text[i]);
      if (stop.matched == stop.text.size() && stop.matched > longest) {
        longest = stop.matched;
        stop_index_ = static_cast<int>(s);
      }
    }
    if (!stopped()) continue;
    held_ += text.substr(0, i + 1);
    if (!include_stop_) held_.resize(held_.size() - longest);
    return std::exchange(held_, {});
  }
  held_ += text;
  std::size_t keep = 0;
  for (const Stop& stop : stops_) keep = std::max(keep, stop.matched);
  std::string safe = held_.substr(0, held_.size() - keep);
  held_.erase(0, safe.size());
  return safe;
}

std::string StopMatcher::finish() { return std::exchange(held_, {}); }

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
#include "apps/number_list.h"

#include <charconv>
#include <string_view>

#include "core/error.h"

namespace quatrain::apps {
namespace {

constexpr std::size_t kMostNumbers = 1000;

class Parser {
 public:
  Parser(std::string_view text, const std::string& flag, std::int64_t lowest, std::int64_t highest)
      : text_(text), rest_(text), flag_(flag), lowest_(lowest), highest_(highest) {}

  std::vector<std::int64_t> parse() {
    do item();
    while (consume(','));
    if (!rest_.empty()) refuse();
    return out_;
  }

 private:
  [[noreturn]] void refuse() const {
    fail("{}: expected numbers such as 1,4 or 1-8*2, found '{}'", flag_, text_);
  }

  bool consume(char c) {
    if (rest_.empty() || rest_.front() != c) return false;
    rest_.remove_prefix(1);
    return true;
  }

  std::int64_t number() {
    std::int64_t value = 0;
    const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), value);
    if (error != std::errc() || value < 0) refuse();
    rest_.remove_prefix(static_cast<std::size_t>(end - rest_.data()));
    return value;
  }

  void add(std::int64_t value) {
    if (value < lowest_ || value > highest_)
      fail("{}: expected values in [{}, {}], found {}", flag_, lowest_, highest_, value);
    if (out_.size() == kMostNumbers) fail("{}: more than {} values", flag_, kMostNumbers);
    out_.push_back(value);
  }

  void item() {
    const std::int64_t first = number();
    const std::int64_t last = consume('-') ? number() : first;
    const bool times = consume('*');
    const std::int64_t step = times || consume('+') ? number() : 1;
    if (last < first || last > highest_ || step < (times ? 2 : 1) || (times && first == 0))
      refuse();
    for (std::int64_t value = first; value <= last;) {
      add(value);
      if (step > last) break;  // the next value is past the last one, and might overflow
      value = times ? value * step : value + step;
    }
  }

  std::string_view text_, rest_;
  const std::string& flag_;
  std::int64_t lowest_, highest_;
  std::vector<std::int64_t> out_;
};

}  // namespace

std::vector<std::int64_t> parse_numbers(const std::string& text, const std::string& flag,
                                        std::int64_t lowest, std::int64_t highest) {
  return Parser(text, flag, lowest, highest).parse();
}

}  // namespace quatrain::apps

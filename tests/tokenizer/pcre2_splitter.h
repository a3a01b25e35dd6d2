// SPDX-License-Identifier: Apache-2.0
// The pre-tokenizer as its regular expressions say, run by PCRE2: the oracle of the written one.
#pragma once

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizer/pre_tokenizer.h"

namespace quatrain::testing {

/// White_Space as a class of code points. PCRE2's own \s contains U+180E too, which lost the
/// property in Unicode 6.3.
inline constexpr std::string_view kWhiteSpace =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

class Pattern {
 public:
  explicit Pattern(const std::string& pattern) {
    int error = 0;
    PCRE2_SIZE offset = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                              PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr));
    if (!code_) throw std::runtime_error("pattern does not compile: " + pattern);
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);
    match_.reset(pcre2_match_data_create_from_pattern(code_.get(), nullptr));
  }

  /// Begin and end of the first match at or after `from`; (size, 0) if there is none.
  std::pair<std::size_t, std::size_t> find(std::string_view text, std::size_t from) const {
    const int count = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()),
                                  text.size(), from, PCRE2_NO_UTF_CHECK, match_.get(), nullptr);
    if (count == PCRE2_ERROR_NOMATCH) return {text.size(), 0};
    if (count < 0) throw std::runtime_error("pcre2_match failed");
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(match_.get());
    return {bounds[0], bounds[1]};
  }

 private:
  struct Free {
    void operator()(pcre2_code* code) const { pcre2_code_free(code); }
    void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
  };
  std::unique_ptr<pcre2_code, Free> code_;
  std::unique_ptr<pcre2_match_data, Free> match_;
};

/// One Split stage with behaviour Isolated.
inline std::vector<std::string_view> split_isolated(const Pattern& pattern,
                                                    const std::vector<std::string_view>& pieces) {
  std::vector<std::string_view> out;
  for (const std::string_view piece : pieces) {
    std::size_t done = 0;
    while (done < piece.size()) {
      const auto [begin, end] = pattern.find(piece, done);
      if (begin > done) out.push_back(piece.substr(done, begin - done));
      if (end == 0) break;
      out.push_back(piece.substr(begin, end - begin));
      done = end;
    }
  }
  return out;
}

/// The pieces of well-formed UTF-8 text.
inline std::vector<std::string_view> split_by_pcre2(std::string_view text) {
  static const std::vector<Pattern> patterns = [] {
    std::vector<Pattern> compiled;
    for (std::string pattern : {std::string(kSplitPatterns[0]), std::string(kSplitPatterns[1]),
                                std::string(kSplitPatterns[2])}) {
      for (const auto& [escape, sign] : {std::pair("\\s", ""), std::pair("\\S", "^")})
        for (auto at = pattern.find(escape); at != pattern.npos; at = pattern.find(escape, at))
          pattern.replace(at, 2, fmt::format("[{}{}]", sign, kWhiteSpace));
      compiled.emplace_back(pattern);
    }
    return compiled;
  }();
  std::vector<std::string_view> pieces;
  if (!text.empty()) pieces.push_back(text);
  for (const Pattern& pattern : patterns) pieces = split_isolated(pattern, pieces);
  return pieces;
}

}  // namespace quatrain::testing

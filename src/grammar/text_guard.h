// SPDX-License-Identifier: Apache-2.0
// Finds forbidden texts in a stream of bytes (Aho and Corasick, 1975).
//
// What reads an answer looks for markup in it: free text of an answer must not spell any.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace quatrain::grammar {

class TextGuard {
 public:
  static constexpr std::uint8_t kForbidden = 255;  // the state after the last byte of a text

  /// Forbids `texts`, which are not empty and together shorter than 255 bytes.
  explicit TextGuard(std::span<const std::string> texts = {});

  /// The state after a byte; 0 is the beginning, and says that no text has begun.
  [[nodiscard]] std::uint8_t next(std::uint8_t state, std::uint8_t byte) const {
    return next_[std::size_t{state} * 256 + byte];
  }
  /// Whether none of the texts is in `text`.
  [[nodiscard]] bool allows(std::string_view text) const;

 private:
  std::vector<std::uint8_t> next_;  // [state, byte]
};

}  // namespace quatrain::grammar

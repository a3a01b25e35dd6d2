// SPDX-License-Identifier: Apache-2.0
// The values without parts: strings, raw text, numbers, and one of several fixed texts.
//
// Each is a small machine over bytes. Its state fits the frame that the automaton keeps for it.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "grammar/byte_trie.h"
#include "grammar/text_guard.h"

namespace quatrain::grammar {

/// Where a value is; {0, 0} is its beginning.
struct LeafState {
  std::uint32_t state = 0;
  std::uint64_t data = 0;
};

/// What a byte does to a value.
struct LeafStep {
  enum class Kind : std::uint8_t {
    kRefused,
    kMoves,  // `next` holds
    kEnds,   // the byte was the value's last
  };
  Kind kind = Kind::kRefused;
  LeafState next;
};

inline constexpr std::uint32_t kNoLimit = std::numeric_limits<std::uint32_t>::max();

/// A JSON string with its quotes; or raw text without any, for markup that does not quote.
/// Valid UTF-8; lengths count code points. `\u` escapes of surrogates come in pairs.
struct StringLeaf {
  std::uint32_t min = 0;
  std::uint32_t max = kNoLimit;
  bool is_raw = false;
  /// The string is none of these; it is then written without \u escapes.
  ByteTrie excluded;
  bool excludes = false;

  [[nodiscard]] LeafStep step(LeafState at, std::uint8_t byte, const TextGuard& guard) const;
  [[nodiscard]] bool may_end(LeafState at) const;
  /// How many plain characters (plain_character()) may follow here, whatever they are; 0 too where
  /// other bytes are expected.
  [[nodiscard]] std::uint32_t plain_room(LeafState at) const;
};

/// A number in one of two forms.
struct NumberLeaf {
  enum class Form : std::uint8_t {
    kFree,   // JSON's: at most 18 digits, 20 of a fraction, 2 of an exponent
    kFixed,  // no exponent, and low ≤ value · 10^fraction ≤ high
  };
  Form form = Form::kFree;
  int whole = 18;     // digits before the point, at most
  int fraction = 20;  // digits behind it, at most; 0: an integer
  std::int64_t low = 0, high = 0;

  [[nodiscard]] LeafStep step(LeafState at, std::uint8_t byte) const;
  [[nodiscard]] bool may_end(LeafState at) const;
};

/// One of several texts.
struct TextsLeaf {
  struct Text {
    std::string json;        // what is written
    std::string raw;         // of a string: itself
    bool is_string = false;  // `json` is `raw` quoted
  };
  std::vector<Text> texts;
  ByteTrie trie;  // of what is written

  [[nodiscard]] LeafStep step(LeafState at, std::uint8_t byte) const;
  [[nodiscard]] bool may_end(LeafState at) const;
};

/// Counts the characters of a text if all are plain: complete UTF-8 of at least U+0020, neither
/// quote nor backslash, and nothing of it forbidden. −1 if not.
int plain_characters(std::string_view text, const TextGuard& guard);

/// Whether the text is UTF-8.
bool is_utf8(std::string_view text);

}  // namespace quatrain::grammar

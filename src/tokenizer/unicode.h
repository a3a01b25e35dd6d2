// SPDX-License-Identifier: Apache-2.0
// Code points and their classes: UTF-8 decoding, Unicode categories, lossy conversion.
//
// Nothing here knows tokens. The tables are in unicode_tables.h (generated).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "tokenizer/unicode_tables.h"

namespace quatrain {

/// The classes that the pre-tokenizer's patterns can tell apart. They are disjoint.
enum class CharClass : std::uint8_t {
  kOther = 0,
  kLetter = 1,       // \p{L}
  kMark = 2,         // \p{M}
  kNumber = 3,       // \p{N}
  kPunctuation = 4,  // \p{P}
  kSymbol = 5,       // \p{S}
  kSpace = 6,        // \s: the property White_Space
};

/// Class of a code point below 0x110000.
inline CharClass char_class(std::uint32_t code_point) {
  const std::uint32_t block = detail::kUnicodeIndex[code_point >> 8];
  const std::uint64_t word = detail::kUnicodeBlocks[block * 16 + ((code_point >> 4) & 15)];
  return static_cast<CharClass>((word >> ((code_point & 15) * 4)) & 7);
}

/// Result of decoding the beginning of a byte string.
struct Utf8Char {
  enum class Status : std::uint8_t {
    kValid,
    kInvalid,     // the bytes can never begin a character
    kIncomplete,  // more bytes could complete a character
  };
  std::uint32_t code_point;  // meaningful when valid
  std::uint32_t
      size;  // bytes: of the character, or of the longest part that could begin one (>= 1)
  Status status;
};

/// Decodes the first character of `bytes`, which must not be empty. Strict: no overlong forms, no
/// surrogates, nothing above U+10FFFF (Unicode standard, table 3-7).
Utf8Char decode_utf8(std::string_view bytes);

/// Moves `pending` to `out` as valid UTF-8: each ill-formed part becomes one U+FFFD. An incomplete
/// character at the end stays in `pending`, unless `final`: then it becomes U+FFFD too.
void drain_utf8(std::string& pending, bool final, std::string& out);

}  // namespace quatrain

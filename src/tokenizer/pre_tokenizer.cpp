// SPDX-License-Identifier: Apache-2.0
#include "tokenizer/pre_tokenizer.h"

#include <array>
#include <cstdint>

#include "tokenizer/unicode.h"

namespace quatrain {
namespace {

// What a single byte says about the character that begins with it. Bytes from 0x80 on say only
// kNotAscii; their class is looked up by code point.
enum ByteFlag : std::uint8_t {
  kAsciiLetter = 1,
  kAsciiSymbol = 2,  // \p{P} or \p{S}; in ASCII these are the 32 of the third pattern's first class
  kAsciiDigit = 4,
  kAsciiSpace = 8,
  kNewline = 16,
  kNotAscii = 32,
};

constexpr std::array<std::uint8_t, 256> make_byte_flags() {
  std::array<std::uint8_t, 256> flags{};
  for (int c = 0; c < 256; ++c) {
    std::uint8_t f = 0;
    if (c >= 0x80)
      f = kNotAscii;
    else if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
      f = kAsciiLetter;
    else if (c >= '0' && c <= '9')
      f = kAsciiDigit;
    else if (c == '\r' || c == '\n')
      f = kAsciiSpace | kNewline;
    else if (c == ' ' || (c >= '\t' && c <= '\r'))
      f = kAsciiSpace;
    else if (c > ' ' && c < 0x7F)
      f = kAsciiSymbol;
    flags[static_cast<std::size_t>(c)] = f;
  }
  return flags;
}

constexpr auto kByteFlags = make_byte_flags();

std::uint8_t flags_of(const char* p) { return kByteFlags[static_cast<unsigned char>(*p)]; }

struct Char {
  std::uint32_t code_point;
  std::uint32_t size;
  CharClass char_class;
};

// The character at p < end. A bad byte is one character of no class.
Char char_at(const char* p, const char* end) {
  const auto byte = static_cast<unsigned char>(*p);
  if (byte < 0x80) return {byte, 1, char_class(byte)};
  const auto c = decode_utf8(std::string_view(p, static_cast<std::size_t>(end - p)));
  if (c.status != Utf8Char::Status::kValid) return {0xFFFFFFFFu, 1, CharClass::kOther};
  return {c.code_point, c.size, char_class(c.code_point)};
}

bool is_letter(CharClass c) { return c == CharClass::kLetter || c == CharClass::kMark; }
bool is_symbol(CharClass c) { return c == CharClass::kPunctuation || c == CharClass::kSymbol; }

// The character class of the second pattern.
bool is_cjk(std::uint32_t c) {
  return (c >= 0x4E00 && c <= 0x9FA5) || (c >= 0x3040 && c <= 0x30FF);
}

// Skips [A-Za-z]*.
const char* skip_ascii_letters(const char* p, const char* end) {
  while (p < end && (flags_of(p) & kAsciiLetter)) ++p;
  return p;
}

// Skips [\p{L}\p{M}]*.
const char* skip_letters(const char* p, const char* end) {
  for (;;) {
    p = skip_ascii_letters(p, end);
    if (p == end || !(flags_of(p) & kNotAscii)) return p;
    const Char c = char_at(p, end);
    if (!is_letter(c.char_class)) return p;
    p += c.size;
  }
}

// Skips [\p{P}\p{S}]*[\r\n]*.
const char* skip_symbols_and_newlines(const char* p, const char* end) {
  while (p < end) {
    if (flags_of(p) & kAsciiSymbol) {
      ++p;
      continue;
    }
    if (!(flags_of(p) & kNotAscii)) break;
    const Char c = char_at(p, end);
    if (!is_symbol(c.char_class)) break;
    p += c.size;
  }
  while (p < end && (flags_of(p) & kNewline)) ++p;
  return p;
}

// End of the match of \s*[\r\n]+ | \s+(?!\S) | \s+ at p, which is at a white space.
const char* match_spaces(const char* p, const char* end) {
  const char* last = p;               // begin of the last white space of the run
  const char* newline_end = nullptr;  // end of the last newline of the run
  const char* run = p;
  while (run < end) {
    const Char c = char_at(run, end);
    if (c.char_class != CharClass::kSpace) break;
    last = run;
    run += c.size;
    if (flags_of(last) & kNewline) newline_end = run;
  }
  if (newline_end != nullptr) return newline_end;  // \s* gives back what follows the last newline
  if (run == end || last == p) return run;         // nothing follows; or one space before a word
  return last;                                     // one space is given back to what follows
}

// End of the match of the third pattern at p < end, or nullptr. Alternatives in their order.
const char* match_word(const char* p, const char* end) {
  const std::uint8_t flags = flags_of(p);
  if (flags & kAsciiLetter) return skip_letters(p + 1, end);
  if (p + 1 < end && (flags_of(p + 1) & kAsciiLetter)) {  // the most frequent cases, without tables
    if (flags & kAsciiSymbol) return skip_ascii_letters(p + 2, end);
    if (!(flags & (kNewline | kNotAscii))) return skip_letters(p + 2, end);
  }
  const Char c = char_at(p, end);
  const char* after = p + c.size;
  if (is_letter(c.char_class)) return skip_letters(after, end);
  if (is_symbol(c.char_class)) return skip_symbols_and_newlines(after, end);
  if (after < end && !(flags & kNewline)) {
    const Char next = char_at(after, end);
    if (is_letter(next.char_class)) return skip_letters(after + next.size, end);
    if (*p == ' ' && is_symbol(next.char_class)) return skip_symbols_and_newlines(after, end);
  }
  if (c.char_class == CharClass::kSpace) return match_spaces(p, end);
  return nullptr;
}

}  // namespace

// Finds the piece of stages 1 and 2 that begins at position_.
void PreTokenizer::begin_segment() {
  const Char first = char_at(position_, end_);
  const char* p = position_ + first.size;
  is_number_ = first.char_class == CharClass::kNumber;
  if (is_number_) {
    for (int count = 1; count < 3 && p < end_; ++count) {
      const Char c = char_at(p, end_);
      if (c.char_class != CharClass::kNumber) break;
      p += c.size;
    }
    segment_end_ = p;
    return;
  }
  const bool cjk = is_cjk(first.code_point);
  while (p < end_) {
    const std::uint8_t flags = flags_of(p);
    if (!(flags & kNotAscii)) {
      if (cjk || (flags & kAsciiDigit)) break;
      ++p;
      continue;
    }
    const Char c = char_at(p, end_);
    if (c.char_class == CharClass::kNumber || is_cjk(c.code_point) != cjk) break;
    p += c.size;
  }
  segment_end_ = p;
}

bool PreTokenizer::next(std::string_view& piece) {
  if (position_ == segment_end_) {
    if (position_ == end_) return false;
    begin_segment();
  }
  const char* begin = position_;
  if (is_number_) {  // the third pattern never matches inside a run of numbers
    position_ = segment_end_;
  } else if (const char* match = match_word(begin, segment_end_)) {
    position_ = match;
  } else {  // a gap: up to the next match
    const char* p = begin;
    do {
      p += char_at(p, segment_end_).size;
    } while (p < segment_end_ && match_word(p, segment_end_) == nullptr);
    position_ = p;
  }
  piece = std::string_view(begin, static_cast<std::size_t>(position_ - begin));
  return true;
}

}  // namespace quatrain

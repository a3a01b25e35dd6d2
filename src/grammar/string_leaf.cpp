// SPDX-License-Identifier: Apache-2.0
// Strings, byte by byte: UTF-8, escapes, length, and texts that must not be there.
#include "grammar/leaf.h"

namespace quatrain::grammar {
namespace {

// ---- UTF-8 (Unicode standard, table 3-7) ----

enum Phase : std::uint8_t {
  kQuote,  // before the opening quote
  kText,
  // Inside a character: so many continuation bytes to come, the next one in a narrower range.
  kNeed1,
  kNeed2,
  kNeed3,
  kAfterE0,
  kAfterED,
  kAfterF0,
  kAfterF4,
  // Inside an escape.
  kEscape,
  kHex1,        // the first digit of \u
  kHex2,        // the second
  kHex2AfterD,  // the second: 8 to b begin a pair, c to f may not stand alone
  kHex3,
  kHex4,
  kHigh3,  // the third and fourth of a pair's first half
  kHigh4,
  kLowBackslash,  // the second half of a pair
  kLowU,
  kLow1,
  kLow2,
};

constexpr Phase kBad = kQuote;  // no byte leads back there

bool between(std::uint8_t byte, int low, int high) { return byte >= low && byte <= high; }

// The phase after the first byte of a character that is not ASCII.
Phase after_lead(std::uint8_t byte) {
  if (between(byte, 0xC2, 0xDF)) return kNeed1;
  if (byte == 0xE0) return kAfterE0;
  if (byte == 0xED) return kAfterED;
  if (between(byte, 0xE1, 0xEF)) return kNeed2;
  if (byte == 0xF0) return kAfterF0;
  if (between(byte, 0xF1, 0xF3)) return kNeed3;
  return byte == 0xF4 ? kAfterF4 : kBad;
}

Phase after_continuation(Phase phase, std::uint8_t byte) {
  switch (phase) {
    case kNeed1:
      return between(byte, 0x80, 0xBF) ? kText : kBad;
    case kNeed2:
      return between(byte, 0x80, 0xBF) ? kNeed1 : kBad;
    case kNeed3:
      return between(byte, 0x80, 0xBF) ? kNeed2 : kBad;
    case kAfterE0:
      return between(byte, 0xA0, 0xBF) ? kNeed1 : kBad;
    case kAfterED:
      return between(byte, 0x80, 0x9F) ? kNeed1 : kBad;
    case kAfterF0:
      return between(byte, 0x90, 0xBF) ? kNeed2 : kBad;
    default:  // kAfterF4
      return between(byte, 0x80, 0x8F) ? kNeed2 : kBad;
  }
}

bool is_hex(std::uint8_t byte) {
  return between(byte, '0', '9') || between(byte, 'a', 'f') || between(byte, 'A', 'F');
}

// ---- Escapes ----

// The byte that \x stands for; 0: \x is no escape.
std::uint8_t escaped(std::uint8_t byte) {
  switch (byte) {
    case '"':
    case '\\':
    case '/':
      return byte;
    case 'b':
      return '\b';
    case 'f':
      return '\f';
    case 'n':
      return '\n';
    case 'r':
      return '\r';
    case 't':
      return '\t';
    default:
      return 0;
  }
}

Phase after_hex(Phase phase, std::uint8_t byte) {
  const auto lower = static_cast<std::uint8_t>(byte | 0x20);
  switch (phase) {
    case kHex1:
      return lower == 'd' ? kHex2AfterD : is_hex(byte) ? kHex2 : kBad;
    case kHex2:
      return is_hex(byte) ? kHex3 : kBad;
    case kHex2AfterD:
      if (between(byte, '0', '7')) return kHex3;
      return between(byte, '8', '9') || lower == 'a' || lower == 'b' ? kHigh3 : kBad;
    case kHex3:
      return is_hex(byte) ? kHex4 : kBad;
    case kHex4:
      return is_hex(byte) ? kText : kBad;
    case kHigh3:
      return is_hex(byte) ? kHigh4 : kBad;
    case kHigh4:
      return is_hex(byte) ? kLowBackslash : kBad;
    case kLowBackslash:
      return byte == '\\' ? kLowU : kBad;
    case kLowU:
      return byte == 'u' ? kLow1 : kBad;
    case kLow1:
      return lower == 'd' ? kLow2 : kBad;
    default:  // kLow2
      return between(lower, 'c', 'f') ? kHex3 : kBad;
  }
}

// ---- The state of a string ----

struct State {
  Phase phase;
  std::uint8_t guard;
  std::uint32_t count;     // characters begun; no further than anybody asks
  std::uint32_t excluded;  // node of the excluded texts that the string is at, plus 1; 0: none

  explicit State(LeafState s)
      : phase(static_cast<Phase>(s.state & 0xFF)),
        guard(static_cast<std::uint8_t>(s.state >> 8)),
        count(static_cast<std::uint32_t>(s.data)),
        excluded(static_cast<std::uint32_t>(s.data >> 32)) {}

  [[nodiscard]] LeafState packed() const {
    return {phase | std::uint32_t{guard} << 8, count | std::uint64_t{excluded} << 32};
  }
};

// A character begins; false if there is no room for it.
bool begin_character(const StringLeaf& leaf, State& s) {
  const bool is_bounded = leaf.max != kNoLimit;
  if (is_bounded && s.count == leaf.max) return false;
  if (is_bounded || s.count < leaf.min) ++s.count;
  return true;
}

// The string has one more byte, after unescaping.
void follow_excluded(const StringLeaf& leaf, State& s, std::uint8_t byte) {
  if (s.excluded == 0) return;
  const std::uint32_t child = leaf.excluded.child(s.excluded - 1, byte);
  s.excluded = child == ByteTrie::kNone ? 0 : child + 1;
}

bool may_close(const StringLeaf& leaf, const State& s) {
  return s.phase == kText && s.count >= leaf.min &&
         (s.excluded == 0 || leaf.excluded[s.excluded - 1].own == 0);
}

bool is_raw_control(std::uint8_t byte) { return byte == '\n' || byte == '\t' || byte == '\r'; }

// A byte of the text outside escapes; false if it is refused.
bool step_text(const StringLeaf& leaf, State& s, std::uint8_t byte) {
  if (s.phase != kText) {
    s.phase = after_continuation(s.phase, byte);
    follow_excluded(leaf, s, byte);
    return s.phase != kBad;
  }
  if (byte < 0x20 && !(leaf.is_raw && is_raw_control(byte))) return false;
  if (!begin_character(leaf, s)) return false;
  if (byte == '\\' && !leaf.is_raw) {
    s.phase = kEscape;
    return true;
  }
  if (byte >= 0x80) s.phase = after_lead(byte);
  follow_excluded(leaf, s, byte);
  return s.phase != kBad;
}

bool step_escape(const StringLeaf& leaf, State& s, std::uint8_t byte) {
  if (s.phase != kEscape) {
    s.phase = after_hex(s.phase, byte);
    return s.phase != kBad;
  }
  if (byte == 'u') {
    s.phase = kHex1;
    return !leaf.excludes;
  }
  s.phase = kText;
  const std::uint8_t meant = escaped(byte);
  follow_excluded(leaf, s, meant);
  return meant != 0;
}

State state_of(const StringLeaf& leaf, LeafState at) {
  State s(at);
  if (leaf.is_raw && s.phase == kQuote) s.phase = kText;
  return s;
}

}  // namespace

LeafStep StringLeaf::step(LeafState at, std::uint8_t byte, const TextGuard& guard) const {
  State s = state_of(*this, at);
  if (s.phase == kQuote) {
    if (byte != '"') return {};
    s.phase = kText;
    if (excludes) s.excluded = 1;
    return {LeafStep::Kind::kMoves, s.packed()};
  }
  if (s.phase == kText && byte == '"' && !is_raw)
    return {may_close(*this, s) ? LeafStep::Kind::kEnds : LeafStep::Kind::kRefused, {}};
  const bool is_taken = s.phase < kEscape ? step_text(*this, s, byte) : step_escape(*this, s, byte);
  s.guard = guard.next(s.guard, byte);
  if (!is_taken || s.guard == TextGuard::kForbidden) return {};
  return {LeafStep::Kind::kMoves, s.packed()};
}

bool StringLeaf::may_end(LeafState at) const {
  return is_raw && may_close(*this, state_of(*this, at));
}

std::uint32_t StringLeaf::plain_room(LeafState at) const {
  const State s = state_of(*this, at);
  if (s.phase != kText || s.guard != 0) return 0;
  return max == kNoLimit ? kNoLimit : max - s.count;
}

int plain_characters(std::string_view text, const TextGuard& guard) {
  if (!guard.allows(text)) return -1;
  Phase phase = kText;
  int count = 0;
  for (const char c : text) {
    const auto byte = static_cast<std::uint8_t>(c);
    if (phase != kText) {
      phase = after_continuation(phase, byte);
    } else {
      if (byte < 0x20 || byte == '"' || byte == '\\') return -1;
      ++count;
      if (byte >= 0x80) phase = after_lead(byte);
    }
    if (phase == kBad) return -1;
  }
  return phase == kText ? count : -1;
}

bool is_utf8(std::string_view text) {
  Phase phase = kText;
  for (const char c : text) {
    const auto byte = static_cast<std::uint8_t>(c);
    if (phase != kText)
      phase = after_continuation(phase, byte);
    else if (byte >= 0x80)
      phase = after_lead(byte);
    if (phase == kBad) return false;
  }
  return phase == kText;
}

}  // namespace quatrain::grammar

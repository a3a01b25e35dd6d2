// SPDX-License-Identifier: Apache-2.0
// Numbers and fixed texts, byte by byte.
#include <algorithm>

#include "grammar/leaf.h"

namespace quatrain::grammar {
namespace {

enum Phase : std::uint8_t {
  kStart,
  kMinus,
  kZero,  // a leading 0: no digit may follow
  kWhole,
  kPoint,
  kFraction,
  kE,
  kESign,
  kExponent,
};

constexpr int kExponentDigits = 2;

struct State {
  Phase phase;
  bool is_negative;
  int digits;           // of this part
  std::uint64_t value;  // of a fixed number: its digits so far, without the point

  explicit State(LeafState s)
      : phase(static_cast<Phase>(s.state & 0xFF)),
        is_negative((s.state >> 8 & 1) != 0),
        digits(static_cast<int>(s.state >> 16)),
        value(s.data) {}

  [[nodiscard]] LeafState packed() const {
    return {phase | std::uint32_t{is_negative} << 8 | static_cast<std::uint32_t>(digits) << 16,
            value};
  }
};

bool is_digit(std::uint8_t byte) { return byte >= '0' && byte <= '9'; }

void enter(State& s, Phase phase) {
  s.phase = phase;
  s.digits = 0;
}

// One more digit of the part that the number is in; false if it has too many.
bool add_digit(State& s, int most) {
  if (s.digits == most) return false;
  ++s.digits;
  return true;
}

// The grammar of numbers, without their values.
bool step_form(const NumberLeaf& leaf, State& s, std::uint8_t byte) {
  const bool digit = is_digit(byte);
  switch (s.phase) {
    case kStart:
      if (byte == '-') {
        s.is_negative = true;
        s.phase = kMinus;
        return true;
      }
      [[fallthrough]];
    case kMinus:
      enter(s, byte == '0' ? kZero : kWhole);
      return digit && add_digit(s, leaf.whole);
    case kWhole:
      if (digit) return add_digit(s, leaf.whole);
      [[fallthrough]];
    case kZero:
      if (digit) return false;
      if (byte == '.') {
        enter(s, kPoint);
        return leaf.fraction > 0;
      }
      break;
    case kPoint:
      enter(s, kFraction);
      return digit && add_digit(s, leaf.fraction);
    case kFraction:
      if (digit) return add_digit(s, leaf.fraction);
      break;
    case kE:
      if (byte == '+' || byte == '-') {
        s.phase = kESign;
        return true;
      }
      [[fallthrough]];
    case kESign:
      enter(s, kExponent);
      return digit && add_digit(s, kExponentDigits);
    case kExponent:
      return digit && add_digit(s, kExponentDigits);
  }
  enter(s, kE);
  return leaf.form == NumberLeaf::Form::kFree && leaf.fraction > 0 && (byte | 0x20) == 'e';
}

bool is_complete(const State& s) {
  return s.phase == kZero || s.phase == kWhole || s.phase == kFraction || s.phase == kExponent;
}

std::int64_t power_of_ten(int n) {
  std::int64_t power = 1;
  while (n-- > 0) power *= 10;
  return power;
}

// Whether a magnitude from a to b, scaled, is one of the numbers with this sign.
bool meets(const NumberLeaf& leaf, bool is_negative, std::int64_t a, std::int64_t b) {
  const std::int64_t least = std::max<std::int64_t>(0, is_negative ? -leaf.high : leaf.low);
  const std::int64_t most = is_negative ? -leaf.low : leaf.high;
  return std::max(a, least) <= std::min(b, most);
}

// Whether digits can follow, or none, so that the number is in its range.
bool can_be_completed(const NumberLeaf& leaf, const State& s) {
  const auto value = static_cast<std::int64_t>(s.value);
  const std::int64_t unit = power_of_ten(leaf.fraction);
  if (s.phase == kMinus) return meets(leaf, true, 0, power_of_ten(leaf.whole) * unit - 1);
  if (s.phase == kPoint || s.phase == kFraction) {
    const std::int64_t step = power_of_ten(leaf.fraction - s.digits);
    return meets(leaf, s.is_negative, value * step, (value + 1) * step - 1);
  }
  std::int64_t scale = unit;
  for (int digits = s.digits; digits <= leaf.whole; ++digits, scale *= 10) {
    const std::int64_t last = leaf.fraction > 0 || scale > unit ? scale - 1 : 0;
    if (meets(leaf, s.is_negative, value * scale, value * scale + last)) return true;
    if (s.phase == kZero) break;
  }
  return false;
}

}  // namespace

LeafStep NumberLeaf::step(LeafState at, std::uint8_t byte) const {
  State s(at);
  if (!step_form(*this, s, byte)) return {};
  if (form == Form::kFixed) {
    if (is_digit(byte)) s.value = s.value * 10 + (byte - std::uint64_t{'0'});
    if (!can_be_completed(*this, s)) return {};
  }
  return {LeafStep::Kind::kMoves, s.packed()};
}

bool NumberLeaf::may_end(LeafState at) const {
  const State s(at);
  if (!is_complete(s)) return false;
  if (form == Form::kFree) return true;
  const int missing = s.phase == kFraction ? fraction - s.digits : fraction;
  const std::int64_t scaled = static_cast<std::int64_t>(s.value) * power_of_ten(missing);
  return meets(*this, s.is_negative, scaled, scaled);
}

LeafStep TextsLeaf::step(LeafState at, std::uint8_t byte) const {
  const std::uint32_t child = trie.child(at.state, byte);
  if (child == ByteTrie::kNone) return {};
  const bool is_last = trie[child].own > 0 && !trie.has_children(child);
  return {is_last ? LeafStep::Kind::kEnds : LeafStep::Kind::kMoves, {child, 0}};
}

bool TextsLeaf::may_end(LeafState at) const { return trie[at.state].own > 0; }

}  // namespace quatrain::grammar

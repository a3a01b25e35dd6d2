// SPDX-License-Identifier: Apache-2.0
#include "grammar/automaton.h"

#include <algorithm>

namespace quatrain::grammar {
namespace {

// Where a frame of a value with parts is. The order is that of the text.
enum Phase : std::uint8_t {
  kOpen,         // in the opening text
  kFirst,        // behind it
  kKey,          // in the prefix of a member
  kColon,        // behind the key of a member that is not listed
  kBeforeValue,  // of a member
  kSuffix,       // of a member
  kAfterItem,    // behind a member or an item
  kNext,         // behind a separator
  kBeforeClose,  // behind white space that only the end may follow
  kClose,        // in the closing text
};

constexpr std::uint32_t kMaxIndent = 64;             // behind a line feed
constexpr std::uint64_t kExtra = ~std::uint64_t{0};  // in place of an entry

// The state of a frame: phase, white space seen, and a number, which is the next property of
// members and a position in a text of items.
struct Spot {
  Phase phase = kOpen;
  std::uint8_t space = 0;
  std::uint32_t number = 0;

  Spot() = default;
  explicit Spot(Phase p, std::uint32_t n = 0, std::uint8_t s = 0) : phase(p), space(s), number(n) {}
  static Spot of(std::uint32_t state) {
    return Spot(static_cast<Phase>(state & 0xFF), state >> 16,
                static_cast<std::uint8_t>(state >> 8));
  }
  [[nodiscard]] std::uint32_t packed() const {
    return phase | std::uint32_t{space} << 8 | number << 16;
  }
};

// White space after `seen` of it: nothing, a space, or a line feed and its indentation. 0 if the
// byte is no white space that may come.
std::uint8_t more_space(std::uint8_t seen, std::uint8_t byte) {
  if (seen == 0) return byte == ' ' ? 1 : byte == '\n' ? 2 : 0;
  const bool is_indent = seen >= 2 && seen < 2 + kMaxIndent && (byte == ' ' || byte == '\t');
  return static_cast<std::uint8_t>(is_indent ? seen + 1 : 0);
}

bool is_at(const std::string& text, std::size_t i, std::uint8_t byte) {
  return i < text.size() && static_cast<std::uint8_t>(text[i]) == byte;
}

}  // namespace

Automaton::Automaton(std::shared_ptr<const Grammar> grammar) : grammar_(std::move(grammar)) {}

// ---- Cells and threads ----

Automaton::Thread Automaton::push(const Frame& frame, Thread parent, std::uint32_t depth) {
  cells_.push_back({frame, parent, depth});
  return static_cast<Thread>(cells_.size() - 1);
}

void Automaton::emit(Thread thread) {
  if (out_->size() - out_begin_ == kMaxThreads) return;
  const auto known = std::span(*out_).subspan(out_begin_);
  if (std::ranges::find(known, thread) == known.end()) out_->push_back(thread);
}

void Automaton::emit(const Frame& frame, Place place) {
  if (place.self >= 0 && cells_[place.self].frame == frame) return emit(place.self);
  for (const Thread known : std::span(*out_).subspan(out_begin_))
    if (known >= 0 && cells_[known].parent == place.parent && cells_[known].frame == frame) return;
  if (out_->size() - out_begin_ < kMaxThreads)
    out_->push_back(push(frame, place.parent, place.depth));
}

void Automaton::start(std::vector<Thread>& threads) {
  for (const NodeId node : grammar_->rules[grammar_->root].nodes)
    threads.push_back(push({node, 0, 0}, kDone, 0));
}

void Automaton::step(std::span<const Thread> from, std::uint8_t byte, std::vector<Thread>& to) {
  out_ = &to;
  out_begin_ = to.size();
  for (std::size_t i = 0; i < from.size(); ++i) {
    const Thread thread = from[i];
    if (thread == kDone) continue;
    const Cell cell = cells_[thread];  // a copy: cells move when one is added
    step_frame(cell.frame, {thread, cell.parent, cell.depth}, byte);
  }
}

void Automaton::compact(std::vector<Thread>& threads) {
  std::vector<Cell> kept;
  std::vector<Thread> names(cells_.size(), kNew);
  std::vector<Thread> chain;
  for (Thread& thread : threads) {
    chain.clear();
    for (Thread at = thread; at >= 0 && names[at] == kNew; at = cells_[at].parent)
      chain.push_back(at);
    for (; !chain.empty(); chain.pop_back()) {
      Cell cell = cells_[chain.back()];
      if (cell.parent >= 0) cell.parent = names[cell.parent];
      names[chain.back()] = static_cast<Thread>(kept.size());
      kept.push_back(cell);
    }
    if (thread >= 0) thread = names[thread];
  }
  cells_ = std::move(kept);
}

void Automaton::describe(Thread thread, std::vector<std::uint64_t>& out) const {
  for (; thread >= 0; thread = cells_[thread].parent) {
    const Frame& frame = cells_[thread].frame;
    out.push_back(std::uint64_t{frame.node} << 32 | frame.state);
    out.push_back(frame.data);
  }
  out.push_back(kExtra);
}

bool Automaton::may_end(Thread thread) const {
  if (thread == kDone) return true;
  const Cell& cell = cells_[thread];
  if (cell.parent != kDone) return false;
  const auto& body = grammar_->nodes[cell.frame.node].body;
  const LeafState at{cell.frame.state, cell.frame.data};
  if (const auto* string = std::get_if<StringLeaf>(&body)) return string->may_end(at);
  if (const auto* number = std::get_if<NumberLeaf>(&body)) return number->may_end(at);
  if (const auto* texts = std::get_if<TextsLeaf>(&body)) return texts->may_end(at);
  return false;
}

const StringLeaf* Automaton::string_of(Thread thread, LeafState& at) const {
  if (thread < 0) return nullptr;
  const Frame& frame = cells_[thread].frame;
  at = {frame.state, frame.data};
  return std::get_if<StringLeaf>(&grammar_->nodes[frame.node].body);
}

// ---- One byte ----

void Automaton::step_frame(const Frame& frame, Place place, std::uint8_t byte) {
  const auto& body = grammar_->nodes[frame.node].body;
  if (const auto* members = std::get_if<Members>(&body))
    step_members(*members, frame, place, byte);
  else if (const auto* items = std::get_if<Items>(&body))
    step_items(*items, frame, place, byte);
  else if (const auto* choice = std::get_if<Choice>(&body))
    step_choice(*choice, frame, place, byte);
  else
    step_leaf(frame, place, byte);
}

void Automaton::step_leaf(const Frame& frame, Place place, std::uint8_t byte) {
  const auto& body = grammar_->nodes[frame.node].body;
  const LeafState at{frame.state, frame.data};
  LeafStep step;
  bool may_end = false;
  if (const auto* string = std::get_if<StringLeaf>(&body)) {
    step = string->step(at, byte, *grammar_->guard);
    may_end = string->may_end(at);
  } else if (const auto* number = std::get_if<NumberLeaf>(&body)) {
    step = number->step(at, byte);
    may_end = number->may_end(at);
  } else {
    const auto& texts = std::get<TextsLeaf>(body);
    step = texts.step(at, byte);
    may_end = texts.may_end(at);
  }
  if (step.kind == LeafStep::Kind::kMoves)
    emit(Frame{frame.node, step.next.state, step.next.data}, place);
  else if (step.kind == LeafStep::Kind::kEnds)
    emit(place.parent);
  // The value may have ended before this byte, which then belongs to the value around.
  if (!may_end || place.parent == kDone) return;
  const Cell around = cells_[place.parent];
  step_frame(around.frame, {place.parent, around.parent, around.depth}, byte);
}

void Automaton::begin_node(NodeId node, const Frame& after, Place place, std::uint8_t byte) {
  const Thread around = push(after, place.parent, place.depth);
  step_frame({node, 0, 0}, {kNew, around, place.depth + 1}, byte);
}

// A value begins with this byte; `after` is this frame once it has ended.
void Automaton::begin_value(RuleId rule, const Frame& after, Place place, std::uint8_t byte) {
  const Thread around = push(after, place.parent, place.depth);
  for (const NodeId node : grammar_->rules[rule].nodes)
    if (place.depth + 1 + grammar_->nodes[node].min_depth <= kMaxDepth)
      step_frame({node, 0, 0}, {kNew, around, place.depth + 1}, byte);
}

bool Automaton::fits(RuleId rule, std::uint32_t depth) const {
  return depth + 1 + grammar_->rules[rule].min_depth <= kMaxDepth;
}

// ---- What members and items share ----

void Automaton::step_open(const Surroundings& around, const Frame& frame, Place place,
                          std::uint8_t byte) {
  const std::uint64_t at = frame.data;
  if (!is_at(around.open, at, byte)) return;
  const bool is_whole = at + 1 == around.open.size();
  emit({frame.node, Spot(is_whole ? kFirst : kOpen).packed(), is_whole ? 0 : at + 1}, place);
}

// The closing text from its byte `at` on.
void Automaton::step_close(const Surroundings& around, const Frame& frame, std::size_t at,
                           Place place, std::uint8_t byte) {
  if (!is_at(around.close, at, byte)) return;
  if (at + 1 == around.close.size()) return emit(place.parent);
  emit({frame.node, Spot(kClose, static_cast<std::uint32_t>(at + 1)).packed(), 0}, place);
}

// Behind a member or an item: white space and the end, or a separator if `goes_on`. The frame's
// data and, of members, its number stay as they are.
void Automaton::step_after_item(const Surroundings& around, const Frame& frame, bool may_close,
                                bool goes_on, Place place, std::uint8_t byte) {
  const Spot spot = Spot::of(frame.state);
  const std::uint8_t space = around.is_spaced ? more_space(spot.space, byte) : 0;
  if (may_close && space != 0)
    emit({frame.node, Spot(kBeforeClose, spot.number, space).packed(), frame.data}, place);
  if (may_close) step_close(around, frame, 0, place, byte);
  if (goes_on && spot.phase == kAfterItem)
    emit({frame.node, Spot(kNext, spot.number).packed(), frame.data}, place);
}

// ---- Members ----

// Whether an entry below this node of the trie may come next.
bool Automaton::may_begin(const Members& members, std::uint32_t trie_node, std::uint32_t index,
                          std::uint32_t depth) const {
  for (std::uint32_t i = members.trie[trie_node].first; i < members.trie.end(trie_node); ++i) {
    const Members::Entry& entry = members.entries[i];
    if (entry.property >= index && entry.property <= members.limit[index] &&
        fits(entry.value, depth))
      return true;
  }
  return false;
}

bool Automaton::may_add_extra(const Members& members, std::uint32_t index,
                              std::uint32_t depth) const {
  return members.extra != kNoRule && members.limit[index] == members.size() &&
         fits(members.extra, depth);
}

// One more byte of a prefix, from a node of the trie; or the beginning of a key not listed.
void Automaton::step_key(const Members& members, const Frame& frame, std::uint32_t from,
                         Place place, std::uint8_t byte) {
  const std::uint32_t index = Spot::of(frame.state).number;
  const std::uint32_t child = members.trie.child(from, byte);
  if (child != ByteTrie::kNone && may_begin(members, child, index, place.depth)) {
    if (members.trie[child].own > 0) {
      const std::uint32_t entry = members.trie[child].first;
      const Spot value(kBeforeValue, members.entries[entry].property + 1);
      emit({frame.node, value.packed(), entry}, place);
    } else {
      emit({frame.node, Spot(kKey, index).packed(), child}, place);
    }
  }
  if (from == 0 && may_add_extra(members, index, place.depth))
    begin_node(members.extra_key, {frame.node, Spot(kColon, members.size()).packed(), 0}, place,
               byte);
}

void Automaton::step_members(const Members& members, const Frame& frame, Place place,
                             std::uint8_t byte) {
  const Spot spot = Spot::of(frame.state);
  const std::uint32_t index = spot.number;
  // Only between members: in an opening or closing text the number may count its bytes.
  const auto may_close = [&] { return members.limit[index] == members.size(); };
  const std::uint8_t space = members.around.is_spaced ? more_space(spot.space, byte) : 0;
  const auto emit_space = [&] {
    if (space != 0) emit({frame.node, Spot(spot.phase, index, space).packed(), frame.data}, place);
  };
  switch (spot.phase) {
    case kOpen:
      if (!members.around.open.empty()) return step_open(members.around, frame, place, byte);
      [[fallthrough]];
    case kFirst:
      if (may_close()) step_close(members.around, frame, 0, place, byte);
      [[fallthrough]];
    case kNext:
      emit_space();
      return step_key(members, frame, 0, place, byte);
    case kKey:
      return step_key(members, frame, static_cast<std::uint32_t>(frame.data), place, byte);
    case kColon:
      if (byte == ':') emit({frame.node, Spot(kBeforeValue, index).packed(), kExtra}, place);
      return;
    case kBeforeValue: {
      emit_space();
      const RuleId rule = frame.data == kExtra ? members.extra : members.entries[frame.data].value;
      const Phase after = members.suffix.empty() ? kAfterItem : kSuffix;
      return begin_value(rule, {frame.node, Spot(after, index).packed(), 0}, place, byte);
    }
    case kSuffix: {
      if (!is_at(members.suffix, frame.data, byte)) return;
      const bool is_whole = frame.data + 1 == members.suffix.size();
      return emit({frame.node, Spot(is_whole ? kAfterItem : kSuffix, index).packed(),
                   is_whole ? 0 : frame.data + 1},
                  place);
    }
    case kAfterItem:
    case kBeforeClose: {
      const bool may_go_on =
          byte == members.around.separator &&
          (may_begin(members, 0, index, place.depth) || may_add_extra(members, index, place.depth));
      return step_after_item(members.around, frame, may_close(), may_go_on, place, byte);
    }
    case kClose:
      return step_close(members.around, frame, spot.number, place, byte);
  }
}

// ---- Items ----

bool Automaton::may_add_item(const Items& items, std::uint64_t count, std::uint32_t depth) const {
  if (count >= items.max) return false;
  return fits(count < items.prefix.size() ? items.prefix[count] : items.rest, depth);
}

void Automaton::step_items(const Items& items, const Frame& frame, Place place, std::uint8_t byte) {
  const Spot spot = Spot::of(frame.state);
  const std::uint64_t count = spot.phase == kOpen ? 0 : frame.data;
  const bool may_close = count >= items.min;
  const bool may_go_on = may_add_item(items, count, place.depth);
  switch (spot.phase) {
    case kOpen:
      return step_open(items.around, frame, place, byte);
    case kFirst:
      if (may_close) step_close(items.around, frame, 0, place, byte);
      [[fallthrough]];
    case kNext: {
      const std::uint8_t space = items.around.is_spaced ? more_space(spot.space, byte) : 0;
      if (space != 0) emit({frame.node, Spot(spot.phase, 0, space).packed(), count}, place);
      if (!may_go_on) return;
      // Counting stops where it makes no difference any more.
      const std::uint64_t last = items.max == kNoLimit
                                     ? std::max<std::uint64_t>(items.min, items.prefix.size())
                                     : items.max;
      const RuleId rule = count < items.prefix.size() ? items.prefix[count] : items.rest;
      return begin_value(rule, {frame.node, Spot(kAfterItem).packed(), std::min(count + 1, last)},
                         place, byte);
    }
    case kAfterItem:
    case kBeforeClose:
      return step_after_item(items.around, frame, may_close,
                             may_go_on && byte == items.around.separator, place, byte);
    case kClose:
      return step_close(items.around, frame, spot.number, place, byte);
    default:
      return;
  }
}

// ---- Choices ----

// The value takes the place of the choice.
void Automaton::step_choice(const Choice& choice, const Frame& frame, Place place,
                            std::uint8_t byte) {
  const std::uint32_t child = choice.trie.child(frame.state, byte);
  if (child == ByteTrie::kNone) return;
  if (choice.trie[child].own == 0) return emit({frame.node, child, 0}, place);
  const RuleId rule = choice.entries[choice.trie[child].first].value;
  for (const NodeId node : grammar_->rules[rule].nodes)
    emit({node, 0, 0}, {kNew, place.parent, place.depth});
}

}  // namespace quatrain::grammar

// SPDX-License-Identifier: Apache-2.0
// Runs a grammar over bytes: where in which values a text can be.
//
// A thread is one reading of the text so far, a stack of frames from the innermost value outwards.
// Frames are cells of one array, linked to the cell of the value around; threads share cells. Cells
// never change, so trying a byte is undone by forgetting the newest cells.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "grammar/grammar.h"

namespace quatrain::grammar {

class Automaton {
 public:
  using Thread = std::int32_t;
  static constexpr Thread kDone = -1;  // the text is complete; nothing may follow
  /// More readings of an ambiguous grammar are not followed. Each reading that is can be
  /// completed, so leaving some out never leads into a dead end.
  static constexpr std::size_t kMaxThreads = 64;

  explicit Automaton(std::shared_ptr<const Grammar> grammar);

  /// Appends the threads of an empty text.
  void start(std::vector<Thread>& threads);
  /// Appends the threads of `from` after one more byte, at most kMaxThreads.
  void step(std::span<const Thread> from, std::uint8_t byte, std::vector<Thread>& to);
  /// Whether the text may end here.
  [[nodiscard]] bool may_end(Thread thread) const;
  /// The string that a thread is in, and where; null if it is in none.
  [[nodiscard]] const StringLeaf* string_of(Thread thread, LeafState& at) const;

  /// Cells in use; forget(n) drops all but the first n, which must not be in use any more.
  [[nodiscard]] std::size_t cells() const { return cells_.size(); }
  void forget(std::size_t first) { cells_.resize(first); }
  /// Drops the cells that `threads` do not need, and renames the threads.
  void compact(std::vector<Thread>& threads);

  /// Appends what the thread's future depends on.
  void describe(Thread thread, std::vector<std::uint64_t>& out) const;

 private:
  struct Frame {
    NodeId node;
    std::uint32_t state;
    std::uint64_t data;
    bool operator==(const Frame&) const = default;
  };
  struct Cell {
    Frame frame;
    Thread parent;        // the value around; kDone: none
    std::uint32_t depth;  // values around
  };
  struct Place {
    Thread self, parent;  // self: the frame's own cell, or kNew
    std::uint32_t depth;
  };
  static constexpr Thread kNew = -2;

  void step_frame(const Frame& frame, Place place, std::uint8_t byte);
  void step_leaf(const Frame& frame, Place place, std::uint8_t byte);
  void step_members(const Members& members, const Frame& frame, Place place, std::uint8_t byte);
  void step_key(const Members& members, const Frame& frame, std::uint32_t from, Place place,
                std::uint8_t byte);
  void step_items(const Items& items, const Frame& frame, Place place, std::uint8_t byte);
  void step_choice(const Choice& choice, const Frame& frame, Place place, std::uint8_t byte);
  void step_after_item(const Surroundings& around, const Frame& frame, bool may_close, bool goes_on,
                       Place place, std::uint8_t byte);
  void step_open(const Surroundings& around, const Frame& frame, Place place, std::uint8_t byte);
  void step_close(const Surroundings& around, const Frame& frame, std::size_t at, Place place,
                  std::uint8_t byte);
  void begin_value(RuleId rule, const Frame& after, Place place, std::uint8_t byte);
  void begin_node(NodeId node, const Frame& after, Place place, std::uint8_t byte);

  [[nodiscard]] bool fits(RuleId rule, std::uint32_t depth) const;
  [[nodiscard]] bool may_begin(const Members& members, std::uint32_t trie_node, std::uint32_t index,
                               std::uint32_t depth) const;
  [[nodiscard]] bool may_add_extra(const Members& members, std::uint32_t index,
                                   std::uint32_t depth) const;
  [[nodiscard]] bool may_add_item(const Items& items, std::uint64_t count,
                                  std::uint32_t depth) const;

  Thread push(const Frame& frame, Thread parent, std::uint32_t depth);
  void emit(const Frame& frame, Place place);
  void emit(Thread thread);

  std::shared_ptr<const Grammar> grammar_;
  std::vector<Cell> cells_;
  std::vector<Thread>* out_ = nullptr;  // of the step that runs, from out_begin_ on
  std::size_t out_begin_ = 0;
};

}  // namespace quatrain::grammar

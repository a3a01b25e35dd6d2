// SPDX-License-Identifier: Apache-2.0
#include "grammar/text_guard.h"

#include <array>

#include "core/error.h"

namespace quatrain::grammar {
namespace {

struct State {
  std::array<int, 256> child;
  int fallback = 0;  // the state of the longest suffix that begins a text
  bool is_end = false;

  State() { child.fill(-1); }
};

std::vector<State> tree_of(std::span<const std::string> texts) {
  std::vector<State> states(1);
  for (const std::string& text : texts) {
    std::size_t at = 0;
    for (const char c : text) {
      const auto byte = static_cast<std::uint8_t>(c);
      if (states[at].child[byte] < 0) {
        states[at].child[byte] = static_cast<int>(states.size());
        states.emplace_back();
      }
      at = static_cast<std::size_t>(states[at].child[byte]);
    }
    QT_CHECK(at != 0, "a forbidden text is empty");
    states[at].is_end = true;
  }
  QT_CHECK(states.size() < TextGuard::kForbidden, "forbidden texts: expected fewer than {} bytes",
           TextGuard::kForbidden);
  return states;
}

}  // namespace

TextGuard::TextGuard(std::span<const std::string> texts) {
  std::vector<State> states = tree_of(texts);
  std::vector<std::size_t> order{0};  // by distance from the root: fallbacks are complete first
  for (std::size_t i = 0; i < order.size(); ++i) {
    const std::size_t at = order[i];
    const State fallback = states[static_cast<std::size_t>(states[at].fallback)];
    states[at].is_end |= fallback.is_end;
    for (std::size_t byte = 0; byte < 256; ++byte) {
      int& child = states[at].child[byte];
      const int other = at == 0 ? 0 : fallback.child[byte];
      if (child < 0) {
        child = other;
        continue;
      }
      states[static_cast<std::size_t>(child)].fallback = other;
      order.push_back(static_cast<std::size_t>(child));
    }
  }
  for (const State& state : states)
    for (const int child : state.child)
      next_.push_back(states[static_cast<std::size_t>(child)].is_end
                          ? kForbidden
                          : static_cast<std::uint8_t>(child));
}

bool TextGuard::allows(std::string_view text) const {
  std::uint8_t state = 0;
  for (const char c : text)
    if ((state = next(state, static_cast<std::uint8_t>(c))) == kForbidden) return false;
  return true;
}

}  // namespace quatrain::grammar

// SPDX-License-Identifier: Apache-2.0
// InterruptGuard: Ctrl-C ends the answer, not the program.
#pragma once

#include <csignal>

namespace quatrain::apps {

class InterruptGuard {
 public:
  InterruptGuard() {
    flag() = 0;
    previous_ = std::signal(SIGINT, [](int) { flag() = 1; });
  }
  ~InterruptGuard() { std::signal(SIGINT, previous_); }
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  bool seen() const { return flag() != 0; }

 private:
  static volatile std::sig_atomic_t& flag() {
    static volatile std::sig_atomic_t value = 0;
    return value;
  }
  void (*previous_)(int);
};

}  // namespace quatrain::apps

// SPDX-License-Identifier: Apache-2.0
// StepGuard: proves that nothing allocates inside a step.
//
// While a guard is armed on a thread (and on pool threads that work for it), any operator new
// aborts the process with the name of the running operation. The check lives in alloc_guard.cpp,
// which replaces the global operator new; a binary that does not link it gets guards that do
// nothing.
#pragma once

namespace quatrain {

/// Name of the operation running on this thread under a guard; null when no guard is armed.
inline thread_local const char* step_operation = nullptr;

class StepGuard {
 public:
  explicit StepGuard(const char* operation) : previous_(step_operation) {
    step_operation = operation;
  }
  ~StepGuard() { step_operation = previous_; }
  StepGuard(const StepGuard&) = delete;
  StepGuard& operator=(const StepGuard&) = delete;

  /// Renames the running operation if a guard is armed on this thread.
  static void enter(const char* operation) {
    if (step_operation != nullptr) step_operation = operation;
  }

 private:
  const char* previous_;
};

/// Suspends the guard, for work inside a step that may allocate (tracing, error messages):
/// construct it with nullptr.
using StepGuardPause = StepGuard;

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// SpyOps: shows a test the full arguments of chosen operations, before and after they run.
//
// spy.on_rope = [](const op::Rope& a) {…}; the callbacks may allocate, even inside a step.
#pragma once

#include <functional>

#include "core/step_guard.h"
#include "ops/interceptor.h"

namespace quatrain::testing {

class SpyOps final : public Interceptor {
 public:
  using Interceptor::Interceptor;

#define QT_SPIED(Args, method)                         \
  std::function<void(const op::Args&)> on_##method;    \
  std::function<void(const op::Args&)> after_##method; \
  void method(const op::Args& args) override {         \
    show(on_##method, args);                           \
    Interceptor::method(args);                         \
    show(after_##method, args);                        \
  }
  QT_FOR_EACH_PLAIN_OP(QT_SPIED)
#undef QT_SPIED
  // Fused operations are shown as their parts.
#define QT_IN_PARTS(Args, method) \
  void method(const op::Args& args) override { Ops::method(args); }
  QT_FOR_EACH_FUSED_OP(QT_IN_PARTS)
#undef QT_IN_PARTS

  std::string_view current_part() const { return part(); }
  std::int64_t current_layer() const { return layer(); }

 private:
  template <class Args>
  static void show(const std::function<void(const Args&)>& callback, const Args& args) {
    const StepGuardPause pause(nullptr);
    if (callback) callback(args);
  }
};

}  // namespace quatrain::testing

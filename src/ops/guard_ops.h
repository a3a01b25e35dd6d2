// SPDX-License-Identifier: Apache-2.0
// GuardOps: tells an armed StepGuard which operation runs, so that its message can name it.
#pragma once

#include "core/step_guard.h"
#include "ops/interceptor.h"

namespace quatrain {

class GuardOps final : public Interceptor {
 public:
  using Interceptor::Interceptor;

 protected:
  void before(const OpCall& call) override { StepGuard::enter(call.name); }
};

}  // namespace quatrain

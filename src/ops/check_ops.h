// SPDX-License-Identifier: Apache-2.0
// CheckOps: shapes and types of every call, once for all backends, and finite results.
#pragma once

#include "ops/interceptor.h"

namespace quatrain {

#define QT_DECLARE_CHECK(Args, method) void check_shapes(const op::Args& args);
QT_FOR_EACH_OP(QT_DECLARE_CHECK)
#undef QT_DECLARE_CHECK

class CheckOps final : public Interceptor {
 public:
  /// With `finite`, every output is read back and must be finite (slow).
  explicit CheckOps(Ops& inner, bool finite = false) : Interceptor(inner), finite_(finite) {}

#define QT_CHECKED(Args, method)               \
  void method(const op::Args& args) override { \
    check_shapes(args);                        \
    Interceptor::method(args);                 \
  }
  QT_FOR_EACH_OP(QT_CHECKED)
#undef QT_CHECKED

 protected:
  void after(const OpCall& call) override;

 private:
  bool finite_;
};

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
#include "core/error.h"

#include <cstring>

namespace quatrain::detail {

void check_failed(const char* file, int line, const char* expression, const std::string& message) {
  const char* slash = std::strrchr(file, '/');
  throw Error(
      fmt::format("{} [{} failed at {}:{}]", message, expression, slash ? slash + 1 : file, line));
}

}  // namespace quatrain::detail

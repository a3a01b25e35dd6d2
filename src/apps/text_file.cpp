// SPDX-License-Identifier: Apache-2.0
#include "apps/text_file.h"

#include <cstdint>
#include <iostream>
#include <iterator>

#include "core/file.h"

namespace quatrain::apps {
namespace {

// A million tokens of text take a few megabytes; a wrong path may name a model of many gigabytes.
constexpr std::int64_t kMaxTextBytes = std::int64_t{1} << 30;

}  // namespace

std::string read_text(const std::string& path) {
  if (path == "-") return {std::istreambuf_iterator<char>(std::cin), {}};
  return read_text_file(path, kMaxTextBytes);
}

}  // namespace quatrain::apps

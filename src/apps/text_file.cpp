// SPDX-License-Identifier: Apache-2.0
#include "apps/text_file.h"

#include <fstream>
#include <iostream>
#include <iterator>

#include "core/error.h"

namespace quatrain::apps {

std::string read_text_file(const std::string& path) {
  if (path == "-") return {std::istreambuf_iterator<char>(std::cin), {}};
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file.good() && !file.eof()) fail("{}: cannot be read", path);
  if (!file.is_open()) fail("{}: cannot be opened", path);
  return text;
}

}  // namespace quatrain::apps

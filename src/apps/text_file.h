// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace quatrain::apps {

/// The bytes of a file; "-" is stdin. Throws Error when it cannot be read.
std::string read_text_file(const std::string& path);

}  // namespace quatrain::apps

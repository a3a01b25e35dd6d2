// SPDX-License-Identifier: Apache-2.0
// Text that a verb is given by the name of a file.
#pragma once

#include <string>

namespace quatrain::apps {

/// The bytes of a file of at most 1 GiB; "-" is stdin. Throws Error when it cannot be read.
std::string read_text(const std::string& path);

}  // namespace quatrain::apps

// SPDX-License-Identifier: Apache-2.0
// Lists of whole numbers on a command line, with ranges.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace quatrain::apps {

/// "512,1024" or ranges "first-last", "first-last+step", "first-last*factor": "1-8*2" is 1,2,4,8.
/// Throws Error naming `flag` on anything else, and on values outside [lowest, highest].
std::vector<std::int64_t> parse_numbers(const std::string& text, const std::string& flag,
                                        std::int64_t lowest, std::int64_t highest);

}  // namespace quatrain::apps

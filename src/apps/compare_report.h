// SPDX-License-Identifier: Apache-2.0
// A comparison of two backends as a table: operations down, layers across.
#pragma once

#include <string>
#include <vector>

#include "model/config.h"
#include "ops/compare_ops.h"

namespace quatrain::apps {

/// The first difference above `tolerance`, or null.
const OpDifference* first_above(const std::vector<OpDifference>& differences, double tolerance);

/// The largest difference of each operation in each layer, and a line that names the first one
/// above `tolerance` if there is any.
std::string format_differences(const V4Config& config, const std::vector<OpDifference>& differences,
                               double tolerance);

}  // namespace quatrain::apps

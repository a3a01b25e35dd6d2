// SPDX-License-Identifier: Apache-2.0
// The bytes of synthetic weights: a safetensors file that is computed, not stored.
#pragma once

#include "core/file.h"
#include "model/config.h"

namespace quatrain {

/// A file that holds every weight of `config` (MTP blocks excepted); `name` stands in messages.
File synthetic_file(const V4Config& config, const std::string& name);

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// Where a model comes from: its architecture and its tensors, from a folder or made up.
#pragma once

#include <filesystem>
#include <string>

#include "checkpoint/checkpoint.h"
#include "model/config.h"

namespace quatrain {

struct ModelSource {
  std::string name;  ///< for messages
  V4Config config;
  Checkpoint checkpoint;
};

/// config.json and safetensors files of a folder; headers only are read.
inline ModelSource open_model(const std::filesystem::path& folder) {
  return {.name = folder.string(),
          .config = read_config(folder),
          .checkpoint = Checkpoint::open(folder)};
}

}  // namespace quatrain

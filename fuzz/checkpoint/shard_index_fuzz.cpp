// SPDX-License-Identifier: Apache-2.0
// Fuzzes model.safetensors.index.json: no accepted shard name may leave the folder.
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string_view>

#include "checkpoint/safetensors.h"
#include "core/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    const quatrain::ShardIndex index = quatrain::parse_shard_index(text, "index");
    for (const std::string& file : index.files) {
      const std::filesystem::path path(file);
      if (path.filename() != path || file == "..") std::abort();
    }
    for (const auto& [tensor, file] : index.file_of)
      if (tensor.empty() || static_cast<std::size_t>(file) >= index.files.size()) std::abort();
  } catch (const quatrain::Error&) {
  }
  return 0;
}

// SPDX-License-Identifier: Apache-2.0
// Fuzzes the safetensors header: the input is a whole file. What is accepted must hold together.
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string_view>

#include "checkpoint/names.h"
#include "checkpoint/safetensors.h"
#include "core/error.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

/// Everything an accepted header promises.
void check(const std::vector<quatrain::StoredTensor>& tensors, std::int64_t file_bytes) {
  std::int64_t total = 0;
  std::vector<quatrain::TensorInfo> official;
  for (const quatrain::StoredTensor& tensor : tensors) {
    require(tensor.offset >= 10 && tensor.bytes >= 0);
    require(tensor.bytes <= file_bytes && tensor.offset <= file_bytes - tensor.bytes);
    total += tensor.bytes;
    const std::size_t before = official.size();
    try {
      quatrain::append_official(tensor, 0, "file", official);
    } catch (const quatrain::Error&) {
      official.resize(before);
    }
    for (std::size_t i = before; i < official.size(); ++i) {
      require(official[i].offset >= tensor.offset);
      require(official[i].offset + official[i].bytes <= tensor.offset + tensor.bytes);
    }
  }
  require(total <= file_bytes);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto file = std::as_bytes(std::span(data, size));
  const auto file_bytes = static_cast<std::int64_t>(size);
  try {
    const auto start = file.first(size < 9 ? size : 9);
    const std::int64_t header = quatrain::safetensors_header_bytes(start, file_bytes, "file");
    const std::string_view text(reinterpret_cast<const char*>(data) + 8,
                                static_cast<std::size_t>(header));
    check(quatrain::parse_safetensors_header(text, file_bytes, "file"), file_bytes);
  } catch (const quatrain::Error&) {
  }
  return 0;
}

// SPDX-License-Identifier: Apache-2.0
// Safetensors headers and shard indexes, as strictly checked data.
//
// Knows the container only: what a tensor means is for names.h and linear_format.cpp. A file is
// u64 length, JSON header of that length, data; offsets in the header count from the data's begin.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/dtype.h"
#include "core/file.h"

namespace quatrain {

inline constexpr std::int64_t kMaxHeaderBytes = 100'000'000;
inline constexpr std::size_t kMaxNameBytes = 512;
inline constexpr std::size_t kMaxTensors = std::size_t{1} << 20;
inline constexpr std::size_t kMaxRank = 8;

/// One entry of a header.
struct StoredTensor {
  std::string name{};
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape{};
  std::int64_t offset = 0;  ///< absolute, in bytes, in the file
  std::int64_t bytes = 0;
};

/// Length of the JSON header, from the file's first nine bytes (fewer if the file is shorter).
/// Checked: at most kMaxHeaderBytes, inside the file, and an object follows. `where` names the
/// file in messages, here and below.
std::int64_t safetensors_header_bytes(std::span<const std::byte> start, std::int64_t file_bytes,
                                      std::string_view where);

/// Parses a header. Every entry is checked: known keys once each, known dtype, rank, size equal to
/// shape times dtype; the data ranges cover the rest of the file without hole or overlap.
std::vector<StoredTensor> parse_safetensors_header(std::string_view json, std::int64_t file_bytes,
                                                   std::string_view where);

/// Reads and parses the header of an open file.
std::vector<StoredTensor> read_safetensors_header(const File& file);

/// model.safetensors.index.json: which shard holds each tensor.
struct ShardIndex {
  std::vector<std::string> files;                ///< plain file names, sorted
  std::unordered_map<std::string, int> file_of;  ///< stored tensor name → index into `files`
};

/// Parses an index. Shard names must be plain names of .safetensors files; total_size is ignored,
/// because files in circulation have wrong ones.
ShardIndex parse_shard_index(std::string_view json, std::string_view where);

}  // namespace quatrain

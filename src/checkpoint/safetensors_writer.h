// SPDX-License-Identifier: Apache-2.0
// Writing safetensors: one file, or shards with an index.
//
// All names, types and shapes are given first; then the data of each tensor, one at a time and in
// any order, so that memory holds one tensor. Files get their names when all are complete: a
// writer that is destroyed before finish() leaves nothing. The same input gives the same bytes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/dtype.h"
#include "core/file.h"

namespace quatrain {

struct TensorSpec {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;  ///< empty for a scalar

  std::int64_t bytes() const;
};

/// One .safetensors file. Tensors lie in order of falling element size, so that each is aligned.
class SafetensorsFile {
 public:
  SafetensorsFile(std::filesystem::path path, std::vector<TensorSpec> tensors,
                  const std::map<std::string, std::string>& metadata = {});

  /// Writes a tensor's data: exactly its bytes, exactly once.
  void write(std::string_view name, std::span<const std::byte> data);
  bool complete() const { return pending_.empty(); }
  /// Flushes to the disk; every tensor must have been written.
  void finish();
  /// finish(), then gives the file its name.
  void commit();

 private:
  struct Slot {
    std::int64_t offset = 0;
    std::int64_t bytes = 0;
  };
  AtomicFile file_;
  std::unordered_map<std::string, Slot> pending_;
};

/// A model folder: model.safetensors if all fits one shard, else model-00001-of-0000N.safetensors
/// and model.safetensors.index.json. A tensor larger than `max_shard_bytes` has its own shard.
class ShardedWriter {
 public:
  /// Shards take the tensors in the order given.
  ShardedWriter(std::filesystem::path folder, std::vector<TensorSpec> tensors,
                std::int64_t max_shard_bytes);

  void write(std::string_view name, std::span<const std::byte> data);
  /// Names the files, the index last; every tensor must have been written.
  void finish();

  std::size_t shards() const { return files_.size(); }
  std::int64_t total_bytes() const { return total_bytes_; }

 private:
  std::string index_text() const;

  std::filesystem::path folder_;
  std::vector<std::string> names_;  // of the files
  std::vector<SafetensorsFile> files_;
  std::map<std::string, std::size_t, std::less<>> shard_of_;
  std::int64_t total_bytes_ = 0;
};

}  // namespace quatrain

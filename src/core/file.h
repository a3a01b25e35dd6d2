// SPDX-License-Identifier: Apache-2.0
// Files: positioned reads of a regular file, and writing a file so that it appears whole or never.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace quatrain {

/// A regular file open for reading. Its size is taken once, when it is opened; reads are positioned
/// and may come from several threads. Move-only.
class File {
 public:
  /// Throws Error when the path cannot be opened or is not a regular file.
  static File open(const std::filesystem::path& path);

  /// Fills its second argument with the content from an offset; called from several threads.
  using Content = std::function<void(std::int64_t offset, std::span<std::byte> out)>;
  /// A file that lies nowhere: what is read from it is computed. `name` stands in messages.
  static File computed(const std::filesystem::path& name, std::int64_t size, Content content);

  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  ~File();

  const std::filesystem::path& path() const { return path_; }
  std::int64_t size() const { return size_; }

  /// Fills `out` from `offset`. Throws when the range leaves the file or the file became shorter.
  void read_at(std::int64_t offset, std::span<std::byte> out) const;

 private:
  File(std::filesystem::path path, int descriptor, std::int64_t size);

  std::filesystem::path path_;
  int descriptor_ = -1;
  std::int64_t size_ = 0;
  Content content_;  // of a computed file
};

/// A whole file as text. Throws when it is larger than `limit` bytes.
std::string read_text_file(const std::filesystem::path& path, std::int64_t limit);

/// A file written under a temporary name in the same folder. commit() flushes it to the disk and
/// renames it; without commit() nothing stays. Move-only.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();

  void write_at(std::int64_t offset, std::span<const std::byte> data);
  /// Flushes to the disk and closes; the file is not visible yet.
  void finish();
  /// finish(), then gives the file its name.
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
};

/// Writes `text` to `path` through an AtomicFile.
void write_text_file(const std::filesystem::path& path, std::string_view text);

}  // namespace quatrain

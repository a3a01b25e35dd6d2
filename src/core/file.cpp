// SPDX-License-Identifier: Apache-2.0
#include "core/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace quatrain {
namespace {

// One system call moves at most this much: Linux stops at 2 GiB, and an interrupt costs little.
constexpr std::size_t kMaxTransfer = std::size_t{1} << 30;

std::string last_error() { return std::strerror(errno); }

}  // namespace

File::File(std::filesystem::path path, int descriptor, std::int64_t size)
    : path_(std::move(path)), descriptor_(descriptor), size_(size) {}

File::File(File&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      size_(other.size_),
      content_(std::move(other.content_)) {}

File& File::operator=(File&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(size_, other.size_);
  std::swap(content_, other.content_);
  return *this;
}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

File File::open(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a pipe with no writer would wait for ever; regular files ignore the flag.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) fail("{}: cannot be opened: {}", path.string(), last_error());
  File file(path, descriptor, 0);
  struct stat status {};
  if (::fstat(descriptor, &status) != 0) fail("{}: {}", path.string(), last_error());
  if (!S_ISREG(status.st_mode)) fail("{}: expected a regular file", path.string());
  file.size_ = status.st_size;
  return file;
}

File File::computed(const std::filesystem::path& name, std::int64_t size, Content content) {
  File file(name, -1, size);
  file.content_ = std::move(content);
  return file;
}

void File::read_at(std::int64_t offset, std::span<std::byte> out) const {
  const auto wanted = static_cast<std::int64_t>(out.size());
  if (offset < 0 || wanted > size_ || offset > size_ - wanted)
    fail("{}: {} bytes at offset {} leave the file of {} bytes", path_.string(), wanted, offset,
         size_);
  if (content_) {
    content_(offset, out);
    return;
  }
  while (!out.empty()) {
    const ssize_t got =
        ::pread(descriptor_, out.data(), std::min(out.size(), kMaxTransfer), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail("{}: cannot be read: {}", path_.string(), last_error());
    if (got == 0)
      fail("{}: the file became shorter while it was read: it had {} bytes and ends at {}",
           path_.string(), size_, offset);
    out = out.subspan(static_cast<std::size_t>(got));
    offset += got;
  }
}

std::string read_text_file(const std::filesystem::path& path, std::int64_t limit) {
  const File file = File::open(path);
  if (file.size() > limit)
    fail("{}: has {} bytes, at most {} are allowed", path.string(), file.size(), limit);
  std::string text(static_cast<std::size_t>(file.size()), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(text)));
  return text;
}

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
  temporary_ = path_;
  temporary_ += fmt::format(".tmp{}", ::getpid());
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor_ < 0) fail("{}: cannot be created: {}", temporary_.string(), last_error());
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::exchange(other.temporary_, {})),
      descriptor_(std::exchange(other.descriptor_, -1)) {}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write_at(std::int64_t offset, std::span<const std::byte> data) {
  while (!data.empty()) {
    const ssize_t put =
        ::pwrite(descriptor_, data.data(), std::min(data.size(), kMaxTransfer), offset);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) fail("{}: cannot be written: {}", path_.string(), last_error());
    data = data.subspan(static_cast<std::size_t>(put));
    offset += put;
  }
}

void AtomicFile::finish() {
  if (descriptor_ < 0) return;
  if (::fsync(descriptor_) != 0) fail("{}: cannot be written: {}", path_.string(), last_error());
  if (::close(std::exchange(descriptor_, -1)) != 0)
    fail("{}: cannot be written: {}", path_.string(), last_error());
}

void AtomicFile::commit() {
  finish();
  if (::rename(temporary_.c_str(), path_.c_str()) != 0)
    fail("{}: cannot be renamed: {}", temporary_.string(), last_error());
  temporary_.clear();
  // The new name is durable only once the folder is on the disk; a file system that cannot flush
  // folders has nothing better to offer.
  const std::filesystem::path folder = path_.parent_path();
  const int descriptor = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
}

void write_text_file(const std::filesystem::path& path, std::string_view text) {
  AtomicFile file(path);
  file.write_at(0, std::as_bytes(std::span(text)));
  file.commit();
}

}  // namespace quatrain

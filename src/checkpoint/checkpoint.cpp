// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/checkpoint.h"

#include <cstring>
#include <unordered_map>
#include <unordered_set>

#include "checkpoint/linear_format.h"
#include "checkpoint/names.h"
#include "checkpoint/safetensors.h"
#include "core/codec.h"
#include "core/error.h"
#include "core/file.h"

namespace quatrain {
namespace {

constexpr std::string_view kSingleFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";

std::string shown(std::span<const std::int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

template <class Stored, class Out, class Decode>
std::vector<Out> read_as(const Checkpoint& checkpoint, const TensorInfo& tensor, Decode decode) {
  std::vector<Stored> stored(static_cast<std::size_t>(tensor.elements()));
  checkpoint.read(tensor, std::as_writable_bytes(std::span(stored)));
  std::vector<Out> out(stored.size());
  std::transform(stored.begin(), stored.end(), out.begin(), decode);
  return out;
}

}  // namespace

std::int64_t TensorInfo::elements() const { return bytes / bytes_of(dtype); }

std::span<std::byte> LoadedLinear::values() {
  return std::span(storage).first(static_cast<std::size_t>(matrix.rows * matrix.row_bytes()));
}

std::span<std::byte> LoadedLinear::scales() {
  const std::int64_t begin = matrix.scales - storage.data();
  const std::int64_t bytes = matrix.scale_count() * bytes_of(matrix.scale_dtype);
  return std::span(storage).subspan(static_cast<std::size_t>(begin),
                                    static_cast<std::size_t>(bytes));
}

LoadedLinear allocate_linear(std::string_view name, WeightFormat format, std::int64_t rows,
                             std::int64_t cols, DType dtype, DType scale_dtype) {
  constexpr std::int64_t kAlignment = 64;  // of the scales, for code that reads them in vectors
  LoadedLinear out;
  out.name = name;
  QuantMatrix& m = out.matrix;
  m.format = format;
  m.rows = rows;
  m.cols = cols;
  m.dtype = dtype;
  m.scale_dtype = scale_dtype;
  const std::int64_t values = rows * m.row_bytes();
  const std::int64_t scales_at = (values + kAlignment - 1) / kAlignment * kAlignment;
  const std::int64_t name_at = scales_at + m.scale_count() * bytes_of(scale_dtype);
  out.storage.resize(static_cast<std::size_t>(name_at) + name.size());
  m.values = out.storage.data();
  m.scales = out.storage.data() + scales_at;
  // A short std::string moves with its characters; a view of them needs a place that stays.
  std::byte* chars = out.storage.data() + name_at;
  std::memcpy(chars, name.data(), name.size());
  m.name = std::string_view(reinterpret_cast<const char*>(chars), name.size());
  return out;
}

struct Checkpoint::Impl {
  std::filesystem::path path;
  std::vector<std::string> names;  // of the files
  std::vector<File> files;
  std::vector<TensorInfo> tensors;
  std::unordered_map<std::string_view, const TensorInfo*> by_name;  // official name

  std::vector<StoredTensor> add_file(File file);
  void add_shards(const std::filesystem::path& folder);
  void index_names();
};

/// Adds the tensors of a file under their official names and returns its header.
std::vector<StoredTensor> Checkpoint::Impl::add_file(File file) {
  files.push_back(std::move(file));
  names.push_back(files.back().path().filename().string());
  const int index = static_cast<int>(files.size()) - 1;
  std::vector<StoredTensor> stored = read_safetensors_header(files.back());
  for (const StoredTensor& tensor : stored) {
    append_official(tensor, index, names.back(), tensors);
    if (tensors.size() > kMaxTensors) fail("{}: more than {} tensors", path.string(), kMaxTensors);
  }
  return stored;
}

/// Every shard of the index; index and headers must name the same tensors in the same files.
void Checkpoint::Impl::add_shards(const std::filesystem::path& folder) {
  const ShardIndex index =
      parse_shard_index(read_text_file(folder / kIndexFile, kMaxHeaderBytes), kIndexFile);
  std::unordered_set<std::string> seen;
  for (std::size_t i = 0; i < index.files.size(); ++i) {
    for (StoredTensor& tensor : add_file(File::open(folder / index.files[i]))) {
      const auto entry = index.file_of.find(tensor.name);
      if (entry == index.file_of.end())
        fail("{}: tensor '{}' is not in {}", index.files[i], tensor.name, kIndexFile);
      if (static_cast<std::size_t>(entry->second) != i)
        fail("{}: tensor '{}' belongs to {} according to {}", index.files[i], tensor.name,
             index.files[static_cast<std::size_t>(entry->second)], kIndexFile);
      seen.insert(std::move(tensor.name));
    }
  }
  if (seen.size() == index.file_of.size()) return;
  for (const auto& [name, file] : index.file_of)
    if (!seen.contains(name))
      fail("{}: tensor '{}' is missing from {}, where {} has it", path.string(), name,
           index.files[static_cast<std::size_t>(file)], kIndexFile);
}

void Checkpoint::Impl::index_names() {
  by_name.reserve(tensors.size());
  for (const TensorInfo& tensor : tensors) {
    const auto [entry, added] = by_name.emplace(tensor.name, &tensor);
    if (!added)
      fail("{}: '{}' and '{}' both mean tensor '{}'", names[static_cast<std::size_t>(tensor.file)],
           entry->second->stored_name, tensor.stored_name, tensor.name);
  }
}

Checkpoint Checkpoint::open(const std::filesystem::path& path) {
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) {
    impl->add_file(File::open(path));
  } else if (std::filesystem::exists(path / kIndexFile, error)) {
    impl->add_shards(path);
  } else if (std::filesystem::exists(path / kSingleFile, error)) {
    impl->add_file(File::open(path / kSingleFile));
  } else {
    fail("{}: expected {} or {} in the folder", path.string(), kSingleFile, kIndexFile);
  }
  impl->index_names();
  return Checkpoint(std::move(impl));
}

Checkpoint Checkpoint::from_file(File file) {
  auto impl = std::make_unique<Impl>();
  impl->path = file.path();
  impl->add_file(std::move(file));
  impl->index_names();
  return Checkpoint(std::move(impl));
}

Checkpoint::Checkpoint(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

const std::filesystem::path& Checkpoint::path() const { return impl_->path; }
const std::vector<std::string>& Checkpoint::files() const { return impl_->names; }
const std::vector<TensorInfo>& Checkpoint::tensors() const { return impl_->tensors; }

const TensorInfo* Checkpoint::find(std::string_view name) const {
  const auto entry = impl_->by_name.find(name);
  return entry == impl_->by_name.end() ? nullptr : entry->second;
}

std::string Checkpoint::where(const TensorInfo& tensor) const {
  const std::string& file = impl_->names[static_cast<std::size_t>(tensor.file)];
  if (tensor.name == tensor.stored_name) return fmt::format("{}: tensor '{}'", file, tensor.name);
  return fmt::format("{}: tensor '{}' (stored as '{}')", file, tensor.name, tensor.stored_name);
}

const TensorInfo& Checkpoint::expect(std::string_view name,
                                     std::span<const std::int64_t> shape) const {
  const TensorInfo* tensor = find(name);
  if (!tensor) fail("{}: tensor '{}' is missing", path().string(), name);
  if (!std::equal(tensor->shape.begin(), tensor->shape.end(), shape.begin(), shape.end()))
    fail("{}: expected shape {}, found {}", where(*tensor), shown(shape), shown(tensor->shape));
  return *tensor;
}

void Checkpoint::read(const TensorInfo& tensor, std::span<std::byte> out) const {
  QT_CHECK_EQ(std::ssize(out), tensor.bytes, tensor.name);
  read_part(tensor, 0, out);
}

void Checkpoint::read_part(const TensorInfo& tensor, std::int64_t offset,
                           std::span<std::byte> out) const {
  QT_CHECK(offset >= 0 && offset + std::ssize(out) <= tensor.bytes,
           "{}: {} bytes from byte {} of {}", tensor.name, out.size(), offset, tensor.bytes);
  impl_->files[static_cast<std::size_t>(tensor.file)].read_at(tensor.offset + offset, out);
}

std::vector<float> Checkpoint::read_f32(std::string_view name,
                                        std::span<const std::int64_t> shape) const {
  const TensorInfo& tensor = expect(name, shape);
  switch (tensor.dtype) {
    case DType::kF32:
      return read_as<float, float>(*this, tensor, [](float x) { return x; });
    case DType::kBF16:
      return read_as<std::uint16_t, float>(*this, tensor, bf16_decode);
    case DType::kF16:
      return read_as<std::uint16_t, float>(*this, tensor, f16_decode);
    default:
      fail("{}: expected F32, BF16 or F16, found {}", where(tensor), name_of(tensor.dtype));
  }
}

std::vector<std::int64_t> Checkpoint::read_ints(std::string_view name,
                                                std::span<const std::int64_t> shape) const {
  const TensorInfo& tensor = expect(name, shape);
  const auto widen = [](auto x) { return static_cast<std::int64_t>(x); };
  switch (tensor.dtype) {
    case DType::kI64:
      return read_as<std::int64_t, std::int64_t>(*this, tensor, widen);
    case DType::kI32:
      return read_as<std::int32_t, std::int64_t>(*this, tensor, widen);
    default:
      fail("{}: expected I64 or I32, found {}", where(tensor), name_of(tensor.dtype));
  }
}

LinearSource Checkpoint::linear(std::string_view base, std::int64_t rows, std::int64_t cols) const {
  return detect_linear(*this, base, rows, cols);
}

bool Checkpoint::has_linear(std::string_view base) const {
  return find(fmt::format("{}.weight", base)) || find(fmt::format("{}.weight_packed", base));
}

LoadedLinear Checkpoint::load(const LinearSource& source) const {
  LoadedLinear out = allocate_linear(source.name, source.format, source.rows, source.cols,
                                     source.weight->dtype, source.scale_dtype());
  read(*source.weight, out.values());
  if (source.scale) read(*source.scale, out.scales());
  finish(source, out.matrix);
  return out;
}

LinearScalars Checkpoint::scalars(const LinearSource& source) const {
  LinearScalars out;
  if (source.global_scale) out.global_scale = read_scalar(*this, source, *source.global_scale);
  if (source.input_scale) out.input_scale = read_scalar(*this, source, *source.input_scale);
  return out;
}

void Checkpoint::finish(const LinearSource& source, QuantMatrix& matrix) const {
  const LinearScalars found = scalars(source);
  matrix.global_scale = found.global_scale;
  matrix.input_scale = found.input_scale;
  if (source.scale) check_scales(matrix, where(*source.scale));
}

}  // namespace quatrain

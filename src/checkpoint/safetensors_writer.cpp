// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/safetensors_writer.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "core/error.h"
#include "core/json.h"

namespace quatrain {
namespace {

std::string header_text(const std::vector<TensorSpec>& tensors,
                        const std::vector<std::size_t>& order,
                        const std::map<std::string, std::string>& metadata) {
  std::string out = "{";
  if (!metadata.empty()) {
    std::vector<std::string> fields;
    for (const auto& [key, value] : metadata)
      fields.push_back(fmt::format("{}:{}", json_quote(key), json_quote(value)));
    out += fmt::format("\"__metadata__\":{{{}}}", fmt::join(fields, ","));
  }
  std::int64_t begin = 0;
  for (const std::size_t i : order) {
    const TensorSpec& tensor = tensors[i];
    const std::int64_t end = begin + tensor.bytes();
    if (out.size() > 1) out += ',';
    out += fmt::format("{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                       json_quote(tensor.name), name_of(tensor.dtype), fmt::join(tensor.shape, ","),
                       begin, end);
    begin = end;
  }
  out += '}';
  out.append((8 - out.size() % 8) % 8, ' ');  // the data begins at a multiple of 8 bytes
  return out;
}

}  // namespace

std::int64_t TensorSpec::bytes() const {
  return std::accumulate(shape.begin(), shape.end(), bytes_of(dtype), std::multiplies<>());
}

SafetensorsFile::SafetensorsFile(std::filesystem::path path, std::vector<TensorSpec> tensors,
                                 const std::map<std::string, std::string>& metadata)
    : file_(std::move(path)) {
  std::vector<std::size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return bytes_of(tensors[a].dtype) > bytes_of(tensors[b].dtype);
  });
  const std::string header = header_text(tensors, order, metadata);
  std::array<std::byte, 8> length;
  for (std::size_t i = 0; i < length.size(); ++i)
    length[i] = static_cast<std::byte>(header.size() >> (8 * i));
  file_.write_at(0, length);
  file_.write_at(std::ssize(length), std::as_bytes(std::span(header)));
  std::int64_t offset = std::ssize(length) + std::ssize(header);
  for (const std::size_t i : order) {
    const std::int64_t bytes = tensors[i].bytes();
    const bool added = pending_.emplace(tensors[i].name, Slot{offset, bytes}).second;
    QT_CHECK(added, "tensor '{}' is listed twice", tensors[i].name);
    offset += bytes;
  }
}

void SafetensorsFile::write(std::string_view name, std::span<const std::byte> data) {
  const auto slot = pending_.find(std::string(name));
  QT_CHECK(slot != pending_.end(), "tensor '{}' is unknown or already written", name);
  QT_CHECK_EQ(std::ssize(data), slot->second.bytes, name);
  file_.write_at(slot->second.offset, data);
  pending_.erase(slot);
}

void SafetensorsFile::finish() {
  QT_CHECK(complete(), "tensor '{}' was never written", pending_.begin()->first);
  file_.finish();
}

void SafetensorsFile::commit() {
  finish();
  file_.commit();
}

ShardedWriter::ShardedWriter(std::filesystem::path folder, std::vector<TensorSpec> tensors,
                             std::int64_t max_shard_bytes)
    : folder_(std::move(folder)) {
  std::vector<std::vector<TensorSpec>> shards;
  std::int64_t filled = 0;
  for (TensorSpec& tensor : tensors) {
    const std::int64_t bytes = tensor.bytes();
    if (shards.empty() || filled + bytes > max_shard_bytes) {
      shards.emplace_back();
      filled = 0;
    }
    filled += bytes;
    total_bytes_ += bytes;
    const bool added = shard_of_.emplace(tensor.name, shards.size() - 1).second;
    QT_CHECK(added, "tensor '{}' is listed twice", tensor.name);
    shards.back().push_back(std::move(tensor));
  }
  for (std::size_t i = 0; i < shards.size(); ++i) {
    names_.push_back(shards.size() == 1
                         ? "model.safetensors"
                         : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size()));
    files_.emplace_back(folder_ / names_.back(), std::move(shards[i]),
                        std::map<std::string, std::string>{{"format", "pt"}});
  }
}

void ShardedWriter::write(std::string_view name, std::span<const std::byte> data) {
  const auto shard = shard_of_.find(name);
  QT_CHECK(shard != shard_of_.end(), "tensor '{}' is unknown", name);
  SafetensorsFile& file = files_[shard->second];
  file.write(name, data);
  if (file.complete()) file.finish();
}

std::string ShardedWriter::index_text() const {
  std::string map;
  for (const auto& [tensor, shard] : shard_of_)
    map += fmt::format("{}\n    {}: {}", map.empty() ? "" : ",", json_quote(tensor),
                       json_quote(names_[shard]));
  return fmt::format(
      "{{\n  \"metadata\": {{\n    \"total_size\": {}\n  }},\n  \"weight_map\": {{{}\n  }}\n}}\n",
      total_bytes_, map);
}

void ShardedWriter::finish() {
  for (SafetensorsFile& file : files_) file.commit();
  if (files_.size() > 1) write_text_file(folder_ / "model.safetensors.index.json", index_text());
}

}  // namespace quatrain

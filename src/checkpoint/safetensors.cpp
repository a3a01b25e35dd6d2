// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/safetensors.h"

#include <simdjson.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <unordered_set>

#include "core/error.h"
#include "core/json.h"

namespace quatrain {
namespace {

namespace dom = simdjson::dom;

constexpr std::size_t kLengthBytes = 8;
constexpr std::size_t kMaxShards = 4096;
constexpr std::size_t kMaxFileName = 255;

/// A name from a file in printable form and bounded length.
std::string shown(std::string_view name) {
  constexpr std::size_t kShown = 120;
  return name.size() <= kShown ? json_quote(name) : json_quote(name.substr(0, kShown)) + "…";
}

std::string shown(const std::vector<std::int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

void check_name(std::string_view name, std::string_view what, std::string_view where) {
  if (name.empty() || name.size() > kMaxNameBytes)
    fail("{}: {} {} has {} bytes, expected 1 to {}", where, what, shown(name), name.size(),
         kMaxNameBytes);
  const bool printable = std::all_of(name.begin(), name.end(), [](char c) {
    return static_cast<unsigned char>(c) >= 0x20 && c != 0x7F;
  });
  if (!printable) fail("{}: {} {} contains a control character", where, what, shown(name));
  // Escapes can spell lone surrogates in a document that is itself valid UTF-8.
  if (!simdjson::validate_utf8(name.data(), name.size()))
    fail("{}: a {} is not valid UTF-8", where, what);
}

dom::element parse_json(dom::parser& parser, std::string_view json, std::string_view where) {
  dom::element root;
  if (const auto error = parser.parse(json.data(), json.size()).get(root))
    fail("{}: not valid JSON: {}", where, simdjson::error_message(error));
  return root;
}

std::vector<std::int64_t> parse_integers(dom::element value, std::size_t limit,
                                         std::string_view field, std::string_view where) {
  dom::array array;
  if (value.get(array)) fail("{}: {} must be a list of integers", where, field);
  std::vector<std::int64_t> out;
  for (const dom::element item : array) {
    std::int64_t number = 0;
    if (item.get(number) || number < 0)
      fail("{}: {}[{}] is not an integer from 0 to 2^63-1", where, field, out.size());
    if (out.size() == limit) fail("{}: {} has more than {} entries", where, field, limit);
    out.push_back(number);
  }
  return out;
}

DType parse_dtype(dom::element value, std::string_view where) {
  std::string_view text;
  if (value.get(text)) fail("{}: dtype must be a string", where);
  if (text == "F8_E5M2")
    fail("{}: dtype F8_E5M2 is refused: FP8 weights of this model are F8_E4M3", where);
  const std::optional<DType> dtype = dtype_from_name(text);
  if (!dtype) fail("{}: dtype {} is not supported", where, shown(text));
  return *dtype;
}

/// Bytes of a tensor; refuses what does not fit 63 bits.
std::int64_t byte_size(const StoredTensor& tensor, std::string_view where) {
  // A zero anywhere makes the tensor empty, however large the other factors are.
  if (std::find(tensor.shape.begin(), tensor.shape.end(), 0) != tensor.shape.end()) return 0;
  __extension__ using Wide = unsigned __int128;
  constexpr Wide kLimit = INT64_MAX;
  Wide total = static_cast<Wide>(bytes_of(tensor.dtype));
  for (const std::int64_t n : tensor.shape) {
    total *= static_cast<Wide>(n);
    if (total > kLimit)
      fail("{}: shape {} of {} overflows", where, shown(tensor.shape), name_of(tensor.dtype));
  }
  return static_cast<std::int64_t>(total);
}

StoredTensor parse_entry(std::string_view name, dom::element value, std::int64_t data_start,
                         std::int64_t data_bytes, std::string_view file) {
  const std::string where = fmt::format("{}: tensor {}", file, shown(name));
  dom::object object;
  if (value.get(object)) fail("{}: expected an object", where);
  StoredTensor tensor{.name = std::string(name)};
  std::vector<std::int64_t> range;
  bool has_dtype = false, has_shape = false, has_offsets = false;
  for (const auto [key, field] : object) {
    bool* seen = key == "dtype"          ? &has_dtype
                 : key == "shape"        ? &has_shape
                 : key == "data_offsets" ? &has_offsets
                                         : nullptr;
    if (seen == nullptr) fail("{}: unknown key {}", where, shown(key));
    if (*seen) fail("{}: key {} appears twice", where, shown(key));
    *seen = true;
    if (seen == &has_dtype) tensor.dtype = parse_dtype(field, where);
    if (seen == &has_shape) tensor.shape = parse_integers(field, kMaxRank, "shape", where);
    if (seen == &has_offsets) range = parse_integers(field, 2, "data_offsets", where);
  }
  if (!has_dtype || !has_shape || !has_offsets)
    fail("{}: expected dtype, shape and data_offsets", where);
  if (range.size() != 2) fail("{}: data_offsets must have two entries", where);
  if (range[0] > range[1] || range[1] > data_bytes)
    fail("{}: data_offsets [{}, {}] leave the {} bytes of data", where, range[0], range[1],
         data_bytes);
  const std::int64_t expected = byte_size(tensor, where);
  if (range[1] - range[0] != expected)
    fail("{}: {} {} takes {} bytes, data_offsets span {}", where, name_of(tensor.dtype),
         shown(tensor.shape), expected, range[1] - range[0]);
  tensor.offset = data_start + range[0];
  tensor.bytes = expected;
  return tensor;
}

void check_metadata(dom::element value, std::string_view where) {
  dom::object object;
  if (value.get(object)) fail("{}: __metadata__ must be an object of strings", where);
  std::unordered_set<std::string_view> keys;
  for (const auto [key, text] : object) {
    if (!text.is_string()) fail("{}: __metadata__ {} must be a string", where, shown(key));
    if (!keys.insert(key).second) fail("{}: __metadata__ {} appears twice", where, shown(key));
  }
}

/// The ranges, in order of offset, must follow each other from the data's begin to the file's end.
void check_coverage(const std::vector<StoredTensor>& tensors, std::int64_t data_start,
                    std::int64_t file_bytes, std::string_view where) {
  std::vector<std::size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    const StoredTensor &x = tensors[a], &y = tensors[b];
    return x.offset != y.offset ? x.offset < y.offset : x.bytes < y.bytes;
  });
  std::int64_t expected = data_start;
  for (const std::size_t i : order) {
    const StoredTensor& tensor = tensors[i];
    if (tensor.offset != expected)
      fail("{}: tensor {}: {} in the data: expected it to begin at byte {}, found {}", where,
           shown(tensor.name), tensor.offset < expected ? "overlap" : "hole", expected - data_start,
           tensor.offset - data_start);
    expected += tensor.bytes;
  }
  if (expected != file_bytes)
    fail("{}: {} bytes follow the last tensor: the file has {} bytes, its tensors end at {}", where,
         file_bytes - expected, file_bytes, expected);
}

void check_file_name(std::string_view name, std::string_view where) {
  constexpr std::string_view kSuffix = ".safetensors";
  check_name(name, "shard name", where);
  const bool plain = name.find_first_of("/\\") == name.npos && name.find("..") == name.npos &&
                     name.size() <= kMaxFileName && name.size() > kSuffix.size() &&
                     name.substr(name.size() - kSuffix.size()) == kSuffix;
  if (!plain) fail("{}: shard name {} is not a plain .safetensors file name", where, shown(name));
}

}  // namespace

std::int64_t safetensors_header_bytes(std::span<const std::byte> start, std::int64_t file_bytes,
                                      std::string_view where) {
  if (start.size() <= kLengthBytes)
    fail("{}: has {} bytes, a safetensors file has at least 10", where, file_bytes);
  std::uint64_t length = 0;
  for (std::size_t i = kLengthBytes; i-- > 0;)
    length = length << 8 | static_cast<std::uint64_t>(start[i]);
  if (length > static_cast<std::uint64_t>(kMaxHeaderBytes))
    fail("{}: header length {} exceeds the limit of {} bytes", where, length, kMaxHeaderBytes);
  const auto bytes = static_cast<std::int64_t>(length);
  if (bytes > file_bytes - static_cast<std::int64_t>(kLengthBytes))
    fail("{}: header length {} exceeds the file of {} bytes", where, bytes, file_bytes);
  if (bytes < 2 || start[kLengthBytes] != std::byte{'{'})
    fail("{}: the header must begin with '{{'", where);
  return bytes;
}

std::vector<StoredTensor> parse_safetensors_header(std::string_view json, std::int64_t file_bytes,
                                                   std::string_view where) {
  const std::int64_t data_start = static_cast<std::int64_t>(kLengthBytes + json.size());
  const std::size_t last = json.find_last_not_of(' ');
  if (last == json.npos || json.front() != '{' || json[last] != '}')
    fail("{}: the header must be one object, followed by spaces only", where);
  dom::parser parser;
  dom::object root;
  if (parse_json(parser, json.substr(0, last + 1), where).get(root))
    fail("{}: the header must be an object", where);

  std::vector<StoredTensor> tensors;
  std::unordered_set<std::string_view> names;  // views into the parser's own memory
  names.reserve(root.size());
  tensors.reserve(root.size());
  for (const auto [key, value] : root) {
    if (!names.insert(key).second) fail("{}: tensor {} appears twice", where, shown(key));
    if (key == "__metadata__") {
      check_metadata(value, where);
      continue;
    }
    check_name(key, "tensor name", where);
    if (tensors.size() == kMaxTensors) fail("{}: more than {} tensors", where, kMaxTensors);
    tensors.push_back(parse_entry(key, value, data_start, file_bytes - data_start, where));
  }
  check_coverage(tensors, data_start, file_bytes, where);
  return tensors;
}

std::vector<StoredTensor> read_safetensors_header(const File& file) {
  const std::string where = file.path().filename().string();
  std::array<std::byte, kLengthBytes + 1> start{};
  const auto available = std::min<std::int64_t>(file.size(), start.size());
  const auto head = std::span(start).first(static_cast<std::size_t>(available));
  file.read_at(0, head);
  const std::int64_t bytes = safetensors_header_bytes(head, file.size(), where);

  // A sparse file can claim a header of 100 MB for free, but its holes read as zero bytes: look for
  // bytes that no JSON text has before allocating anything of that size.
  std::vector<std::byte> window(std::size_t{64} << 10);
  for (std::int64_t done = 0; done < bytes;) {
    const auto part = std::span(window).first(
        static_cast<std::size_t>(std::min<std::int64_t>(bytes - done, std::ssize(window))));
    file.read_at(static_cast<std::int64_t>(kLengthBytes) + done, part);
    const auto zero = std::find(part.begin(), part.end(), std::byte{0});
    if (zero != part.end())
      fail("{}: the header has a zero byte at offset {}", where,
           static_cast<std::int64_t>(kLengthBytes) + done + (zero - part.begin()));
    done += std::ssize(part);
  }
  std::string json(static_cast<std::size_t>(bytes), '\0');
  file.read_at(kLengthBytes, std::as_writable_bytes(std::span(json)));
  return parse_safetensors_header(json, file.size(), where);
}

ShardIndex parse_shard_index(std::string_view json, std::string_view where) {
  dom::parser parser;
  dom::object root, map;
  bool has_map = false;
  if (parse_json(parser, json, where).get(root)) fail("{}: expected an object", where);
  for (const auto [key, value] : root) {
    if (key != "weight_map") continue;
    if (has_map) fail("{}: weight_map appears twice", where);
    if (value.get(map)) fail("{}: weight_map must be an object", where);
    has_map = true;
  }
  if (!has_map) fail("{}: weight_map is missing", where);

  ShardIndex index;
  std::unordered_map<std::string_view, std::vector<std::string_view>> shards;
  for (const auto [key, value] : map) {
    check_name(key, "tensor name", where);
    std::string_view file;
    if (value.get(file)) fail("{}: the shard of tensor {} must be a string", where, shown(key));
    if (!shards.contains(file)) check_file_name(file, where);
    if (shards.size() == kMaxShards && !shards.contains(file))
      fail("{}: more than {} shards", where, kMaxShards);
    shards[file].push_back(key);
  }
  if (shards.empty()) fail("{}: weight_map is empty", where);
  for (const auto& [file, tensors] : shards) index.files.emplace_back(file);
  std::sort(index.files.begin(), index.files.end());
  for (std::size_t i = 0; i < index.files.size(); ++i)
    for (const std::string_view tensor : shards[index.files[i]])
      if (!index.file_of.emplace(tensor, static_cast<int>(i)).second)
        fail("{}: tensor {} appears twice", where, shown(tensor));
  return index;
}

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/damage.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <fstream>
#include <limits>
#include <stdexcept>

namespace quatrain::test {
namespace {

using nlohmann::ordered_json;

std::size_t pick(Rng& rng, std::size_t count) { return rng() % count; }

template <class T>
const T& any(Rng& rng, const std::vector<T>& values) {
  return values[pick(rng, values.size())];
}

std::string repeat(std::size_t count, int byte) {
  return std::string(count, static_cast<char>(byte));
}

std::string floats(std::size_t count, float value) {
  std::string out;
  for (std::size_t i = 0; i < count; ++i)
    out.append(reinterpret_cast<const char*>(&value), sizeof(value));
  return out;
}

std::string join(const std::string& header, const std::string& data) {
  std::string out(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) out[i] = static_cast<char>(header.size() >> (8 * i));
  return out + header + data;
}

RawEntry& any_entry(RawFile& f, Rng& rng) { return f.entries[pick(rng, f.entries.size())]; }

/// Sets one field of a random entry.
auto set_field(const char* key, std::vector<ordered_json> values) {
  return [=](RawFile& f, Rng& rng) { any_entry(f, rng).value[key] = any(rng, values); };
}

void set_byte(RawFile& f, const std::string& name, std::size_t count, Rng& rng, int byte) {
  f.content(name)[pick(rng, count)] = static_cast<char>(byte);
}

void set_float(RawFile& f, const std::string& name, std::size_t i, float value) {
  std::memcpy(f.content(name) + i * sizeof(value), &value, sizeof(value));
}

const std::vector<float> kBadScales = {-1.0f, -1e-30f, std::numeric_limits<float>::infinity(),
                                       -std::numeric_limits<float>::infinity(),
                                       std::numeric_limits<float>::quiet_NaN()};

}  // namespace

void RawFile::add(const std::string& name, const char* dtype, const ordered_json& shape,
                  const std::string& content) {
  const std::size_t begin = data.size();
  data += content;
  entries.push_back(
      {name, {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {begin, data.size()}}}});
}

RawEntry& RawFile::find(const std::string& name) {
  for (RawEntry& entry : entries)
    if (entry.name == name) return entry;
  throw std::logic_error(name);
}

char* RawFile::content(const std::string& name) {
  return data.data() + find(name).value["data_offsets"][0].get<std::size_t>();
}

void RawFile::remove(const std::string& name) {
  const std::size_t begin = find(name).value["data_offsets"][0];
  const std::size_t end = find(name).value["data_offsets"][1];
  data.erase(begin, end - begin);
  std::erase_if(entries, [&](const RawEntry& entry) { return entry.name == name; });
  for (RawEntry& entry : entries)
    for (auto& offset : entry.value["data_offsets"])
      if (offset.get<std::size_t>() >= end) offset = offset.get<std::size_t>() - (end - begin);
}

std::string RawFile::header() const {
  std::string out = "{";
  for (const RawEntry& entry : entries) {
    if (out.size() > 1) out += ',';
    out += fmt::format("{}:{}", ordered_json(entry.name).dump(), entry.value.dump());
  }
  return out + "}";
}

std::string RawFile::bytes() const { return join(header(), data); }

RawFile sound_file() {
  RawFile f;
  f.add("norm.weight", "F32", {128}, floats(128, 1.0f));
  f.add(kNvfp4 + ".weight", "U8", {64, 64}, repeat(64 * 64, 0x21));
  f.add(kNvfp4 + ".weight_scale", "F8_E4M3", {64, 8}, repeat(64 * 8, 0x38));
  f.add(kNvfp4 + ".weight_scale_2", "F32", ordered_json::array(), floats(1, 0.01f));
  f.add(kPacked + ".weight_packed", "U8", {64, 64}, repeat(64 * 64, 0x21));
  f.add(kPacked + ".weight_scale", "F8_E4M3", {64, 8}, repeat(64 * 8, 0x38));
  f.add(kPacked + ".weight_global_scale", "F32", {1}, floats(1, 100.0f));
  f.add(kMxfp4 + ".weight", "I8", {64, 64}, repeat(64 * 64, 0x21));
  f.add(kMxfp4 + ".scale", "F8_E8M0", {64, 4}, repeat(64 * 4, 120));
  f.add(kFp8 + ".weight", "F8_E4M3", {130, 128}, repeat(130 * 128, 0x38));
  f.add(kFp8 + ".scale", "F32", {2, 1}, floats(2, 0.01f));
  f.add("layers.0.ffn.gate.tid2eid", "I64", {16, 2}, repeat(16 * 2 * 8, 0));
  return f;
}

void write_bytes(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

ordered_json write_shards(const std::filesystem::path& folder) {
  ordered_json index = {{"metadata", {{"total_size", 1}}}, {"weight_map", ordered_json::object()}};
  const RawFile all = sound_file();
  for (int shard = 0; shard < 2; ++shard) {
    RawFile part = all;
    const std::string name = fmt::format("model-0000{}-of-00002.safetensors", shard + 1);
    for (std::size_t i = 0; i < all.entries.size(); ++i) {
      if (static_cast<int>(i % 2) == shard)
        index["weight_map"][all.entries[i].name] = name;
      else
        part.remove(all.entries[i].name);
    }
    write_bytes(folder / name, part.bytes());
  }
  return index;
}

std::vector<Damage> header_damage() {
  return {
      {"tiny file", "a safetensors file has at least 10", nullptr,
       [](std::string& header, std::string& data, Rng&) { header.clear(), data.clear(); }},
      {"no brace", "must begin with '{'", nullptr,
       [](std::string& header, std::string&, Rng& rng) {
         header[0] = any<char>(rng, {'[', ' ', '"', '\n', '\0', 'x'});
       }},
      {"garbage after the header", "followed by spaces only", nullptr,
       [](std::string& header, std::string&, Rng& rng) {
         header += any<std::string>(rng, {"\n", "\t ", " x", "]", "//"});
       }},
      {"second document", "not valid JSON", nullptr,
       [](std::string& header, std::string&, Rng& rng) {
         header += any<std::string>(rng, {"{}", " {}", "}", "{\"a\":1}"});
       }},
      {"zero byte", "zero byte", nullptr,
       [](std::string& header, std::string&, Rng& rng) {
         header[1 + pick(rng, header.size() - 2)] = '\0';
       }},
      {"broken JSON", "not valid JSON", nullptr,
       [](std::string& header, std::string&, Rng& rng) {
         std::vector<std::size_t> colons;
         for (std::size_t i = 0; i < header.size(); ++i)
           if (header[i] == ':') colons.push_back(i);
         header[any(rng, colons)] = any<char>(rng, {'x', '}', '1'});
       }},
      {"invalid UTF-8", "not valid JSON", nullptr,
       [](std::string& header, std::string&, Rng& rng) {
         header[header.find("norm.weight") + pick(rng, 10)] =
             any<char>(rng, {'\xFF', '\x80', '\xC0', '\xED', '\xF5'});
       }},
      {"deep nesting", "not valid JSON", nullptr,
       [](std::string& header, std::string&, Rng& rng) {
         const std::size_t depth = 1100 + pick(rng, 3000);
         header = "{\"a\":" + std::string(depth, '[') + std::string(depth, ']') + "}";
       }},
      {"only metadata", "bytes follow the last tensor", nullptr,
       [](std::string& header, std::string&, Rng& rng) {
         header = any<std::string>(rng, {"{}", "{ }", R"({"__metadata__":{}})"});
       }},
      {"bytes after the data", "bytes follow the last tensor", nullptr,
       [](std::string&, std::string& data, Rng& rng) { data.append(1 + pick(rng, 4000), 'x'); }},
      {"truncated data", "leave the", nullptr,
       [](std::string&, std::string& data, Rng& rng) {
         data.resize(data.size() - 1 - pick(rng, data.size() / 2));
       }},
      {"lone surrogate", "not valid", nullptr,
       [](std::string& header, std::string&, Rng& rng) {
         const auto escape = any<std::string>(rng, {"\\ud800", "\\udc00", "\\udfff", "\\ud8ff"});
         header.replace(header.find("norm.weight"), 4, escape);
       }},
      {"duplicate field", "appears twice", nullptr,
       [](std::string& header, std::string&, Rng& rng) {
         const auto field = any<std::string>(
             rng, {R"("dtype":"F32",)", R"("shape":[1],)", R"("data_offsets":[0,4],)"});
         header.insert(header.find("\"dtype\""), field);
       }},
  };
}

std::vector<Damage> entry_damage() {
  constexpr auto kRefused = "is not an integer";
  return {
      {"duplicate tensor", "appears twice",
       [](RawFile& f, Rng& rng) { f.entries.push_back(any_entry(f, rng)); }},
      {"unknown field", "unknown key",
       [](RawFile& f, Rng& rng) {
         any_entry(f, rng).value[any<std::string>(rng, {"", "Dtype", "strides", "x\ny"})] = 1;
       }},
      {"missing field", "expected dtype, shape and data_offsets",
       [](RawFile& f, Rng& rng) {
         any_entry(f, rng).value.erase(any<std::string>(rng, {"dtype", "shape", "data_offsets"}));
       }},
      {"entry of another type", "expected an object",
       [](RawFile& f, Rng& rng) {
         any_entry(f, rng).value = any<ordered_json>(rng, {1, "x", nullptr, ordered_json::array()});
       }},
      {"unknown dtype", "is not supported",
       set_field("dtype", {"F64", "f32", "U64", "C64", "F4", "", "BF16 ", "I128"})},
      {"E5M2", "F8_E5M2 is refused", set_field("dtype", {"F8_E5M2"})},
      {"dtype of another type", "dtype must be a string",
       set_field("dtype", {1, nullptr, true, {"F32"}})},
      {"shape of another type", "shape must be a list", set_field("shape", {1, "x", nullptr})},
      {"shape entry", kRefused,
       set_field("shape", {{-1}, {1.5}, {"1"}, {nullptr}, {1e30}, {18446744073709551615u}})},
      {"rank", "more than 8 entries",
       [](RawFile& f, Rng& rng) {
         any_entry(f, rng).value["shape"] = std::vector<int>(9 + pick(rng, 2000), 1);
       }},
      {"shape overflow", "overflows",
       set_field(
           "shape",
           {{1LL << 62, 4, 4}, {1LL << 32, 1LL << 32}, {INT64_MAX, INT64_MAX}, {INT64_MAX, 9}})},
      {"shape against size", "data_offsets span",
       set_field("shape", {{7}, {1, 3}, {0}, {999, 999}})},
      {"offsets of another type", "data_offsets must be a list",
       set_field("data_offsets", {1, "x", nullptr})},
      {"offset entry", kRefused, set_field("data_offsets", {{-1, 4}, {0, 1.5}, {"0", 4}})},
      {"one offset", "two entries",
       set_field("data_offsets", {ordered_json::array(), ordered_json::array({4})})},
      {"three offsets", "more than 2 entries", set_field("data_offsets", {{0, 4, 8}})},
      {"offsets reversed", "leave the",
       [](RawFile& f, Rng& rng) {
         auto& offsets = any_entry(f, rng).value["data_offsets"];
         std::swap(offsets[0], offsets[1]);
       }},
      {"offsets beyond the data", "leave the",
       [](RawFile& f, Rng& rng) {
         auto& end = any_entry(f, rng).value["data_offsets"][1];
         end = any<std::int64_t>(rng, {1 << 30, 1LL << 40, INT64_MAX});
       }},
      {"overlap", "overlap",
       [](RawFile& f, Rng& rng) {
         auto& offsets = f.entries[1 + pick(rng, f.entries.size() - 1)].value["data_offsets"];
         const int by = 1 + static_cast<int>(pick(rng, 100));
         for (auto& offset : offsets) offset = offset.get<int>() - by;
       }},
      {"hole", "hole",
       [](RawFile& f, Rng& rng) {
         const std::size_t by = 1 + pick(rng, 100);
         for (std::size_t i = pick(rng, f.entries.size()); i < f.entries.size(); ++i)
           for (auto& offset : f.entries[i].value["data_offsets"])
             offset = offset.get<std::size_t>() + by;
         f.data.append(by, 'x');
       }},
      {"metadata", "__metadata__",
       [](RawFile& f, Rng& rng) {
         f.entries.push_back(
             {"__metadata__",
              any<ordered_json>(rng, {1, "x", {{"a", 1}}, {{"a", {{"b", "c"}}}}, nullptr})});
       }},
      {"control character in a name", "control character",
       [](RawFile& f, Rng& rng) {
         std::string& name = any_entry(f, rng).name;
         name[pick(rng, name.size())] = any<char>(rng, {'\n', '\0', '\x1B', '\x7F'});
       }},
      {"length of a name", "bytes, expected 1 to",
       [](RawFile& f, Rng& rng) {
         any_entry(f, rng).name = any<std::string>(rng, {"", repeat(513, 'a'), repeat(70000, 'b')});
       }},
  };
}

std::vector<Damage> tensor_damage() {
  return {
      {"missing tensor", "is missing",
       [](RawFile& f, Rng& rng) { f.remove(std::string(any_entry(f, rng).name)); }},
      {"renamed tensor", "is missing",
       [](RawFile& f, Rng& rng) {
         any_entry(f, rng).name += any<std::string>(rng, {"x", ".", "_"});
       }},
      {"transposed tensor", "expected shape",
       [](RawFile& f, Rng& rng) {
         auto& shape =
             f.find(any<std::string>(rng, {kNvfp4 + ".weight_scale", kMxfp4 + ".scale",
                                           kFp8 + ".scale", kFp8 + ".weight",
                                           kPacked + ".weight_scale", "layers.0.ffn.gate.tid2eid"}))
                 .value["shape"];
         std::swap(shape[0], shape[1]);
       }},
      {"NVFP4 scale dtype", "expected F8_E4M3",
       [](RawFile& f, Rng& rng) {
         f.find(any<std::string>(rng, {kNvfp4, kPacked}) + ".weight_scale").value["dtype"] =
             any<std::string>(rng, {"U8", "F8_E8M0", "I8"});
       }},
      {"MXFP4 scale dtype", "expected F8_E8M0 or U8",
       [](RawFile& f, Rng& rng) {
         f.find(kMxfp4 + ".scale").value["dtype"] =
             any<std::string>(rng, {"I8", "F8_E4M3", "BOOL"});
       }},
      {"weight dtype", "has no meaning",
       [](RawFile& f, Rng& rng) {
         f.find(any<std::string>(rng, {kNvfp4, kMxfp4, kFp8}) + ".weight").value["dtype"] =
             any<std::string>(rng, {"BOOL", "F8_E8M0"});
       }},
      {"NVFP4 scale value", "the scale at row",
       [](RawFile& f, Rng& rng) {
         set_byte(f, any<std::string>(rng, {kNvfp4, kPacked}) + ".weight_scale", 512, rng,
                  any<int>(rng, {0x7F, 0x80, 0x81, 0xB8, 0xFE, 0xFF}));
       }},
      {"MXFP4 scale value", "the scale at row",
       [](RawFile& f, Rng& rng) { set_byte(f, kMxfp4 + ".scale", 256, rng, 0xFF); }},
      {"FP8 scale value", "the scale at row",
       [](RawFile& f, Rng& rng) {
         set_float(f, kFp8 + ".scale", pick(rng, 2), any(rng, kBadScales));
       }},
      {"global scale value", "expected a finite scale above 0",
       [](RawFile& f, Rng& rng) {
         const auto name =
             any<std::string>(rng, {kNvfp4 + ".weight_scale_2", kPacked + ".weight_global_scale"});
         set_float(f, name, 0, rng() % 4 == 0 ? 0.0f : any(rng, kBadScales));
       }},
      {"global scale shape", "expected an F32 scalar",
       [](RawFile& f, Rng& rng) {
         const std::size_t n = 2 + pick(rng, 5);
         f.remove(kNvfp4 + ".weight_scale_2");
         f.add(kNvfp4 + ".weight_scale_2", "F32", {n}, floats(n, 0.01f));
       }},
      {"stray scale", "does not belong",
       [](RawFile& f, Rng& rng) {
         f.add(any<std::string>(rng, {kNvfp4 + ".scale", kNvfp4 + ".weight_global_scale",
                                      kMxfp4 + ".weight_scale_inv", kFp8 + ".weight_scale_2",
                                      kPacked + ".weight_scale_2", kPacked + ".input_scale"}),
               "F32", {1}, floats(1, 1.0f));
       }},
      {"two scales", "there is also a scale",
       [](RawFile& f, Rng& rng) {
         f.add(kFp8 + any<std::string>(rng, {".weight_scale", ".weight_scale_inv"}), "F32", {2, 1},
               floats(2, 1.0f));
       }},
      {"two spellings", "both mean tensor",
       [](RawFile& f, Rng& rng) {
         f.add("model." + std::string(any_entry(f, rng).name), "U8", {1}, "x");
       }},
      {"too many fused experts", "at most 4096",
       [](RawFile& f, Rng& rng) {
         const std::size_t n = 4097 + pick(rng, 4000);
         f.add("model.layers.9.mlp.experts.gate_up_proj", "U8", {n, 2, 1}, repeat(2 * n, 1));
       }},
      {"odd fused rows", "even number of rows",
       [](RawFile& f, Rng& rng) {
         const std::size_t n = 1 + 2 * pick(rng, 50);
         f.add("layers.9.ffn.experts.gate_up_proj.weight", "U8", {2, n, 1}, repeat(2 * n, 1));
       }},
      {"fused rank", "of rank 3",
       [](RawFile& f, Rng& rng) {
         f.add("layers.9.ffn.experts.down_proj", "U8",
               any<ordered_json>(rng, {{2, 2}, {1, 1, 2, 2}, ordered_json::array({1, 4, 1, 1, 1})}),
               "abcd");
       }},
      {"ids of another type", "expected I64 or I32",
       [](RawFile& f, Rng& rng) {
         f.remove("layers.0.ffn.gate.tid2eid");
         f.add("layers.0.ffn.gate.tid2eid", any<const char*>(rng, {"U8", "I8", "BOOL"}), {16, 2},
               repeat(32, 1));
       }},
      {"norm of another type", "expected F32, BF16 or F16",
       [](RawFile& f, Rng& rng) {
         f.find("norm.weight").value["dtype"] = "I32";
         f.data[pick(rng, 512)] = 'x';
       }},
  };
}

std::vector<Damage> index_damage() {
  const auto any_key = [](ordered_json& index, Rng& rng) {
    auto item = index["weight_map"].begin();
    std::advance(item, static_cast<std::ptrdiff_t>(pick(rng, index["weight_map"].size())));
    return item.key();
  };
  std::vector<Damage> out;
  const auto add = [&](const char* name, const char* expected, auto action) {
    out.push_back({.name = name, .expected = expected, .index = action});
  };
  using Path = std::filesystem::path;
  add("no weight_map", "weight_map is missing", [](ordered_json& index, const Path&, Rng& rng) {
    index.erase("weight_map");
    index[any<std::string>(rng, {"weightmap", "Weight_map", "metadata"})] = 1;
  });
  add("weight_map of another type", "weight_map must be an object",
      [](ordered_json& index, const Path&, Rng& rng) {
        index["weight_map"] = any<ordered_json>(rng, {1, "x", nullptr, ordered_json::array()});
      });
  add("empty weight_map", "weight_map is empty",
      [](ordered_json& index, const Path&, Rng&) { index["weight_map"] = ordered_json::object(); });
  add("index of another type", "expected an object",
      [](ordered_json& index, const Path&, Rng& rng) {
        index = any<ordered_json>(rng, {1, "x", nullptr, ordered_json::array()});
      });
  add("shard name", "not a plain .safetensors file name",
      [=](ordered_json& index, const Path&, Rng& rng) {
        index["weight_map"][any_key(index, rng)] = any<std::string>(
            rng, {"../model.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "passwd",
                  ".safetensors", "a\\b.safetensors", "model..safetensors", "model.bin",
                  repeat(300, 'a') + ".safetensors"});
      });
  add("shard name with control characters", "control character",
      [=](ordered_json& index, const Path&, Rng& rng) {
        index["weight_map"][any_key(index, rng)] =
            std::string("model") + any<char>(rng, {'\n', '\0', '\x1B'}) + ".safetensors";
      });
  add("shard of another type", "must be a string", [=](ordered_json& index, const Path&, Rng& rng) {
    index["weight_map"][any_key(index, rng)] = any<ordered_json>(rng, {1, nullptr, {"x"}});
  });
  add("missing shard", "cannot be opened", [](ordered_json&, const Path& folder, Rng& rng) {
    std::filesystem::remove(folder /
                            fmt::format("model-0000{}-of-00002.safetensors", 1 + pick(rng, 2)));
  });
  add("shard that is no file", "expected a regular file",
      [](ordered_json&, const Path& folder, Rng& rng) {
        const Path path =
            folder / fmt::format("model-0000{}-of-00002.safetensors", 1 + pick(rng, 2));
        std::filesystem::remove(path);
        if (rng() % 2 == 0)
          std::filesystem::create_directory(path);
        else
          ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
      });
  add("tensor only in the index", "is missing from",
      [](ordered_json& index, const Path&, Rng& rng) {
        index["weight_map"][fmt::format("layers.{}.x", rng() % 100)] =
            "model-00001-of-00002.safetensors";
      });
  add("tensor not in the index", "is not in", [=](ordered_json& index, const Path&, Rng& rng) {
    index["weight_map"].erase(any_key(index, rng));
  });
  add("tensor in another shard", "belongs to", [=](ordered_json& index, const Path&, Rng& rng) {
    auto& file = index["weight_map"][any_key(index, rng)];
    file = file == "model-00001-of-00002.safetensors" ? "model-00002-of-00002.safetensors"
                                                      : "model-00001-of-00002.safetensors";
  });
  return out;
}

std::vector<Damage> config_damage() {
  std::vector<Damage> out;
  const auto add = [&](const char* name, const char* expected, auto action) {
    out.push_back({.name = name, .expected = expected, .config = action});
  };
  add("truncated config", "not valid JSON",
      [](std::string& config, Rng& rng) { config.resize(1 + pick(rng, config.size() - 3)); });
  add("config of zeros", "not valid JSON",
      [](std::string& config, Rng& rng) { config.assign(1 + pick(rng, 5000), '\0'); });
  add("huge config", "bytes, at most",
      [](std::string& config, Rng& rng) { config.append((4u << 20) + pick(rng, 1000), ' '); });
  add("missing config field", "is missing", [](std::string& config, Rng& rng) {
    auto c = ordered_json::parse(config);
    c.erase(any<std::string>(rng, {"model_type", "hidden_size", "num_hash_layers", "head_dim",
                                   "compress_ratios", "swiglu_limit", "hc_mult"}));
    config = c.dump();
  });
  add("config number out of range", "expected ", [](std::string& config, Rng& rng) {
    auto c = ordered_json::parse(config);
    c[any<std::string>(rng, {"hidden_size", "num_hidden_layers", "n_routed_experts", "vocab_size",
                             "sliding_window", "index_topk", "hc_mult"})] =
        any<ordered_json>(rng, {0, -1, INT64_MIN, INT64_MAX, 1e300, "9", true, {1}});
    config = c.dump();
  });
  add("config ratio", "expected 0, 4 or 128", [](std::string& config, Rng& rng) {
    auto c = ordered_json::parse(config);
    c["compress_ratios"][pick(rng, 6)] = any<int>(rng, {1, 2, 3, 5, 64, 127, 129, 1 << 30});
    config = c.dump();
  });
  return out;
}

void write_damaged(const Damage& damage, const std::filesystem::path& folder, Rng& rng) {
  std::string config(kOfficialConfig);
  if (damage.config) damage.config(config, rng);
  write_bytes(folder / "config.json", config);
  if (damage.index) {
    ordered_json index = write_shards(folder);
    damage.index(index, folder, rng);
    write_bytes(folder / kIndexName, index.dump());
    return;
  }
  RawFile file = sound_file();
  if (damage.file) damage.file(file, rng);
  std::string header = file.header();
  if (damage.text) damage.text(header, file.data, rng);
  write_bytes(folder / "model.safetensors", join(header, file.data));
}

}  // namespace quatrain::test

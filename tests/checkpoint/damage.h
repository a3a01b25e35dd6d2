// SPDX-License-Identifier: Apache-2.0
// Damaged checkpoints: a sound model, and every way of damaging it that a reader must refuse.
#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "checkpoint/scratch.h"

namespace quatrain::test {

using Rng = std::mt19937;

struct RawEntry {
  std::string name;
  nlohmann::ordered_json value;  // dtype, shape, data_offsets
};

/// A safetensors file before it is bytes.
struct RawFile {
  std::vector<RawEntry> entries;
  std::string data;

  void add(const std::string& name, const char* dtype, const nlohmann::ordered_json& shape,
           const std::string& content);
  RawEntry& find(const std::string& name);
  /// The bytes of a tensor.
  char* content(const std::string& name);
  /// Removes a tensor and its bytes.
  void remove(const std::string& name);

  std::string header() const;
  std::string bytes() const;
};

// The linears of the sound model.
inline const std::string kNvfp4 = "layers.0.ffn.experts.0.w1";
inline const std::string kPacked = "layers.0.attn.wkv";
inline const std::string kMxfp4 = "mtp.0.ffn.experts.0.w1";
inline const std::string kFp8 = "layers.0.attn.wq_a";

/// The sound model: a linear of each kind [64, 128] (FP8: [130, 128]), norm.weight [128] and
/// layers.0.ffn.gate.tid2eid [16, 2].
RawFile sound_file();

void write_bytes(const std::filesystem::path& path, const std::string& bytes);

/// Writes the sound model in two shards; returns the index for the caller to write.
nlohmann::ordered_json write_shards(const std::filesystem::path& folder);

inline constexpr const char* kIndexName = "model.safetensors.index.json";

/// A kind of damage, done at one of four levels.
struct Damage {
  std::string name;
  std::string expected;  // part of the message
  std::function<void(RawFile&, Rng&)> file = nullptr;
  std::function<void(std::string& header, std::string& data, Rng&)> text = nullptr;
  std::function<void(nlohmann::ordered_json& index, const std::filesystem::path&, Rng&)> index =
      nullptr;
  std::function<void(std::string& config, Rng&)> config = nullptr;
};

/// Damage to what is outside the header's entries, and to the entries themselves.
std::vector<Damage> header_damage();
std::vector<Damage> entry_damage();
/// Sound files whose tensors do not make a model.
std::vector<Damage> tensor_damage();
std::vector<Damage> index_damage();
std::vector<Damage> config_damage();

/// Writes a whole model folder with this damage; `rng` chooses the place.
void write_damaged(const Damage& damage, const std::filesystem::path& folder, Rng& rng);

}  // namespace quatrain::test

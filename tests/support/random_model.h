// SPDX-License-Identifier: Apache-2.0
// A tiny random DeepSeek-V4 checkpoint that tests can edit and write to a temporary folder.
//
// Every weight matters: norms are not ones, sinks, biases and position biases not zero, so that a
// wiring mistake changes the logits. Not a trained model.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace quatrain::testing {

struct TinyShape {
  std::int64_t vocab = 61;
  std::int64_t hidden = 48;
  std::int64_t inner = 32;
  std::int64_t heads = 4;
  std::int64_t head_dim = 32;
  std::int64_t rope_dim = 8;
  std::int64_t q_lora = 20;
  std::int64_t o_groups = 2;
  std::int64_t o_lora = 12;
  std::int64_t window = 128;
  std::vector<std::int64_t> ratios = {0, 4, 128};
  std::int64_t hash_layers = 1;
  std::int64_t experts = 6;
  std::int64_t shared_experts = 1;
  std::int64_t experts_per_token = 2;
  double routed_scale = 1.5;
  double swiglu_limit = 1.0;  // low enough to matter
  std::int64_t hc = 4;
  std::int64_t index_heads = 3;
  std::int64_t index_dim = 16;
  std::int64_t index_topk = 8;
  std::int64_t mtp_layers = 0;
  std::int64_t max_positions = 4096;
  /// NVFP4 experts, FP8 attention and shared experts, BF16 otherwise; else all linears are FP32.
  bool quantised = false;
};

class RandomModel {
 public:
  explicit RandomModel(const TinyShape& shape = {}, unsigned seed = 1);
  ~RandomModel();
  RandomModel(const RandomModel&) = delete;
  RandomModel& operator=(const RandomModel&) = delete;

  const TinyShape& shape() const { return shape_; }

  /// Elements of a float tensor, to read or edit; fails for quantised and integer ones.
  std::vector<float>& floats(const std::string& name);
  const std::vector<float>& floats(const std::string& name) const;
  /// Elements of an integer tensor.
  std::vector<std::int64_t>& ints(const std::string& name);
  const std::vector<std::int64_t>& ints(const std::string& name) const;

  bool has(const std::string& name) const { return tensors_.count(name) > 0; }
  std::vector<std::string> names() const;
  void erase(const std::string& name);
  void rename(const std::string& from, const std::string& to);
  /// Adds an FP32 tensor, or replaces one by another shape.
  void put(const std::string& name, std::vector<std::int64_t> shape, std::vector<float> values);
  /// Replaces a field of config.json by raw JSON text; empty removes it.
  void set_config(const std::string& field, const std::string& json);

  /// Writes config.json and model.safetensors; the folder lives as long as this object.
  const std::filesystem::path& write() const;

 private:
  struct Stored {
    DType dtype = DType::kF32;
    std::vector<std::int64_t> shape;
    std::vector<float> floats;        // F32 and BF16
    std::vector<std::int64_t> ints;   // I64
    std::vector<std::uint8_t> bytes;  // formats of one byte
  };
  class Builder;

  std::vector<std::byte> encoded(const Stored& tensor) const;

  TinyShape shape_;
  std::map<std::string, Stored> tensors_;
  std::map<std::string, std::string> config_;
  std::filesystem::path folder_;
};

}  // namespace quatrain::testing

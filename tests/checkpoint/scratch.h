// SPDX-License-Identifier: Apache-2.0
// Helpers of the checkpoint tests: a temporary folder, random matrices, small checkpoints in it.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors_writer.h"
#include "core/codec.h"
#include "core/error.h"

namespace quatrain::test {

/// config.json of a small model, in the official spelling.
inline constexpr std::string_view kOfficialConfig = R"({
    "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4",
    "vocab_size": 512, "hidden_size": 128, "num_hidden_layers": 6, "moe_intermediate_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 128, "qk_rope_head_dim": 64,
    "q_lora_rank": 96, "o_groups": 2, "o_lora_rank": 48, "sliding_window": 64,
    "compress_ratios": [0, 128, 4, 128, 4, 4, 0], "num_hash_layers": 2,
    "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 3,
    "scoring_func": "sqrtsoftplus", "topk_method": "noaux_tc", "norm_topk_prob": true,
    "routed_scaling_factor": 1.5, "swiglu_limit": 10.0, "hidden_act": "silu",
    "hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-06,
    "index_n_heads": 16, "index_head_dim": 64, "index_topk": 8,
    "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "compress_rope_theta": 160000.0,
    "rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 32, "beta_slow": 1,
                     "original_max_position_embeddings": 64},
    "max_position_embeddings": 4096, "num_nextn_predict_layers": 1,
    "tie_word_embeddings": false, "attention_bias": false, "bos_token_id": 0, "eos_token_id": 1})";

/// A folder that goes with its owner.
class ScratchFolder {
 public:
  ScratchFolder() {
    static int count = 0;
    path_ = std::filesystem::temp_directory_path() /
            fmt::format("quatrain-test-{}-{}", ::getpid(), count++);
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

struct TestTensor {
  TensorSpec spec;
  std::vector<std::byte> data;
};

/// A tensor whose elements are copied from `values`.
template <class T>
TestTensor tensor_of(std::string name, DType dtype, std::vector<std::int64_t> shape,
                     const std::vector<T>& values) {
  TestTensor out{{std::move(name), dtype, std::move(shape)}, {}};
  const auto bytes = std::as_bytes(std::span(values));
  out.data.assign(bytes.begin(), bytes.end());
  return out;
}

inline TestTensor scalar_of(std::string name, float value) {
  return tensor_of<float>(std::move(name), DType::kF32, {}, {value});
}

/// Writes `tensors` as folder/model.safetensors, or as shards of at most `max_shard` bytes.
inline void write_model(const std::filesystem::path& folder, const std::vector<TestTensor>& tensors,
                        std::int64_t max_shard = INT64_MAX) {
  std::vector<TensorSpec> specs;
  for (const TestTensor& tensor : tensors) specs.push_back(tensor.spec);
  ShardedWriter writer(folder, std::move(specs), max_shard);
  for (const TestTensor& tensor : tensors) writer.write(tensor.spec.name, tensor.data);
  writer.finish();
}

/// The message of the Error that `action` throws; fails the test if it throws none.
inline std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "expected an Error";
  return "";
}

inline testing::AssertionResult contains(const std::string& text, const std::string& part) {
  if (text.find(part) != text.npos) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "\"" << text << "\" lacks \"" << part << "\"";
}

/// Normal values of mixed magnitude: blocks of one row differ by factors of up to 2^8.
inline std::vector<float> random_values(std::size_t count, unsigned seed, float scale = 0.02f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> out(count);
  for (std::size_t i = 0; i < count; ++i)
    out[i] = std::ldexp(normal(generator), -static_cast<int>(i / 16 % 9));
  return out;
}

/// A view of FP32 values as a dense matrix.
inline QuantMatrix dense_view(const std::vector<float>& values, std::int64_t rows,
                              std::string_view name = "dense") {
  return {.name = name,
          .format = WeightFormat::kDense,
          .rows = rows,
          .cols = static_cast<std::int64_t>(values.size()) / rows,
          .dtype = DType::kF32,
          .values = reinterpret_cast<const std::byte*>(values.data())};
}

inline std::vector<float> decode_all(const QuantMatrix& matrix) {
  std::vector<float> out(static_cast<std::size_t>(matrix.rows * matrix.cols));
  for (std::int64_t r = 0; r < matrix.rows; ++r)
    decode_row(matrix, r, out.data() + r * matrix.cols);
  return out;
}

}  // namespace quatrain::test

// SPDX-License-Identifier: Apache-2.0
// The weights of a DeepSeek-V4 model, bound to their checkpoint names and packed by a backend.
//
// Weights are streamed through a ring of host memory. Every tensor of the checkpoint must be used
// exactly as the table in weights.cpp says; a missing, extra or mis-shaped one is an error that
// names file, tensor, expected and found, and comes before anything is read.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "model/config.h"
#include "ops/ops.h"

namespace quatrain {

using LinearPtr = std::unique_ptr<PackedLinear>;

struct CompressorWeights {
  LinearPtr wkv;    // [c·W, D]
  LinearPtr wgate;  // [c·W, D]
  Tensor ape;       // F32 [r, c·W]
  Tensor norm;      // F32 [W]
};

struct IndexerWeights {
  LinearPtr wq_b;          // [H_i·n_i, q_lora]
  LinearPtr weights_proj;  // [H_i, D]
  CompressorWeights compressor;
};

struct AttentionWeights {
  LinearPtr wq_a;                // [q_lora, D]
  LinearPtr wq_b;                // [H·n, q_lora]
  LinearPtr wkv;                 // [n, D]
  LinearPtr wo_a;                // [o_groups·o_lora, H·n / o_groups]
  LinearPtr wo_b;                // [D, o_groups·o_lora]
  Tensor q_norm;                 // F32 [q_lora]
  Tensor kv_norm;                // F32 [n]
  Tensor sinks;                  // F32 [H]
  CompressorWeights compressor;  // ratio > 0
  IndexerWeights indexer;        // ratio 4
};

struct FfnWeights {
  LinearPtr gate;     // [E, D]
  Tensor bias;        // F32 [E]; empty in hash layers
  Tensor hash_table;  // I32 [V, k]; hash layers only
  std::unique_ptr<PackedExperts> experts;
  LinearPtr shared_w1, shared_w3;  // [I·shared, D]
  LinearPtr shared_w2;             // [D, I·shared]
};

struct LayerWeights {
  std::int64_t ratio = 0;  // 0 window only, 4 CSA, 128 HCA
  HcWeights hc_attn, hc_ffn;
  Tensor attn_norm, ffn_norm;  // F32 [D]
  AttentionWeights attn;
  FfnWeights ffn;
};

struct MtpWeights {
  Tensor enorm, hnorm;       // F32 [D]
  LinearPtr e_proj, h_proj;  // [D, D]
  LayerWeights layer;
  HcWeights hc_head;
  Tensor norm;  // F32 [D]
};

struct ModelWeights {
  Tensor embed;  // [V, D] BF16 or F32
  std::vector<LayerWeights> layers;
  HcWeights hc_head;
  Tensor norm;     // F32 [D]
  LinearPtr head;  // [V, D]
  std::vector<MtpWeights> mtp;
  Tensor inv_freq;           // F32 [rope_dim / 2] for ratio 0
  Tensor compress_inv_freq;  // F32 [rope_dim / 2] for ratio > 0, with YaRN
  std::vector<Buffer> memory;
};

/// What weights are for, to say what takes the memory.
enum class WeightGroup : std::uint8_t { kExperts, kAttention, kShared, kEmbedding, kOther };
inline constexpr int kWeightGroups = 5;
/// "experts", "attention", …
std::string_view name_of(WeightGroup group);

/// Every tensor that a model takes from a checkpoint, found and checked, and none of them read.
struct WeightList {
  std::vector<LinearSource> linears;  ///< in the order of loading
  std::int64_t linear_bytes[kWeightGroups] = {};
  std::int64_t vector_elements = 0;  ///< of tensors that are no linears: 4 bytes each when loaded
  std::int64_t file_bytes = 0;       ///< of all tensors
  ModelWeights model;                ///< shapes and handles without memory, for dry runs

  /// In memory: linears stay as they are stored.
  std::int64_t bytes() const;
};

/// Checks the names, shapes and formats of all tensors. `mtp`: those of mtp.* too; otherwise they
/// are left alone.
WeightList list_weights(const Checkpoint& checkpoint, const V4Config& config, bool mtp);

struct LoadOptions {
  bool mtp = false;  ///< as for list_weights()
  /// Routed experts will be given FP8 inputs: those that this would not be exact for are refused.
  bool fp8_expert_inputs = false;
  /// Called after each tensor with the bytes read so far and in all.
  std::function<void(std::int64_t done, std::int64_t total)> progress;
};

/// Linears are read ahead by several threads into a ring of host memory, as large as the largest of
/// them or kLoadRingBytes. `list` must be list_weights() of the same arguments.
ModelWeights load_weights(const Checkpoint& checkpoint, const V4Config& config, Ops& ops,
                          const WeightList& list, const LoadOptions& options = {});
inline ModelWeights load_weights(const Checkpoint& checkpoint, const V4Config& config, Ops& ops,
                                 const LoadOptions& options = {}) {
  return load_weights(checkpoint, config, ops, list_weights(checkpoint, config, options.mtp),
                      options);
}

inline constexpr std::int64_t kLoadRingBytes = std::int64_t{256} << 20;

/// Rotation frequencies θ^(−2i/rope_dim), i < rope_dim/2; with YaRN when `yarn` is given: low
/// frequencies are divided by its factor, with a linear ramp between (1.4).
std::vector<float> rope_frequencies(std::int64_t rope_dim, double theta, const YarnConfig* yarn);

}  // namespace quatrain

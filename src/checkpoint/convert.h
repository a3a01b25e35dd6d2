// SPDX-License-Identifier: Apache-2.0
// Converting a checkpoint: chosen linears to another format, everything else byte for byte.
//
// The result uses official names and the layout of published NVFP4 checkpoints: "X.weight",
// "X.weight_scale", "X.weight_scale_2" for NVFP4, "X.weight", "X.scale" for FP8. No input scales
// are written: they need calibration data.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

#include "checkpoint/checkpoint.h"
#include "checkpoint/quantise.h"

namespace quatrain {

enum class ConvertTarget {
  kKeep,
  kNvfp4,
  kFp8,  ///< E4M3 in 128x128 blocks with UE8M0 scales
};

struct ConvertOptions {
  ConvertTarget experts = ConvertTarget::kNvfp4;  ///< routed experts
  /// Attention, indexer queries, shared experts and MTP projections: what the official release
  /// stores in FP8. Embedding, head, router, compressors and norms are never converted.
  ConvertTarget linears = ConvertTarget::kKeep;
  bool cast_mxfp4 = false;  ///< MXFP4 → NVFP4 without requantising where that is exact
  std::int64_t max_shard_bytes = 5'000'000'000;
};

struct ConvertReport {
  std::int64_t converted_linears = 0;
  std::int64_t copied_tensors = 0;
  std::int64_t bytes_before = 0;
  std::int64_t bytes_after = 0;
  SquaredError experts_error;
  SquaredError linears_error;
  std::int64_t cast_blocks = 0;
  std::int64_t inexact_blocks = 0;  ///< of cast_blocks
  std::size_t shards = 0;
};

/// Called after each tensor or linear: its name, the bytes read for it, and the bytes of all.
using ConvertProgress =
    std::function<void(std::string_view name, std::int64_t bytes, std::int64_t total)>;

/// Writes the converted tensors into `folder`, which must exist and hold no checkpoint.
/// w1 and w3 of an expert share their NVFP4 global scale.
ConvertReport convert_tensors(const Checkpoint& checkpoint, const std::filesystem::path& folder,
                              const ConvertOptions& options, const ConvertProgress& progress);

/// convert_tensors(), and the files beside the tensors: config.json with a quantization_config,
/// hf_quant_config.json, tokenizer files. Creates `folder`. The source must be a folder.
ConvertReport convert_checkpoint(const std::filesystem::path& source,
                                 const std::filesystem::path& folder, const ConvertOptions& options,
                                 const ConvertProgress& progress);

/// config.json with its quantization_config replaced by the one of a converted checkpoint.
/// `fp8_linears`: whether the result holds FP8 linears.
std::string converted_config(std::string_view config, const ConvertOptions& options,
                             bool fp8_linears, std::string_view where);

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// A model loaded for a test on the CPU backend, with every check on, and the golden tensors beside
// it.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "backends/cpu/cpu_ops.h"
#include "checkpoint/checkpoint.h"
#include "ops/check_ops.h"
#include "ops/tap_ops.h"
#include "runtime/model_runner.h"

namespace quatrain::testing {

/// A folder named by an environment variable, or empty.
inline std::filesystem::path folder_from_env(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? std::filesystem::path(value) : std::filesystem::path();
}

/// Folders of oracle cases: the ones in the repository and those QUATRAIN_ORACLE_CASES names.
inline std::vector<std::filesystem::path> oracle_cases() {
  std::vector<std::filesystem::path> found;
  for (const std::filesystem::path& root :
       {std::filesystem::path(QUATRAIN_SOURCE_DIR "/tests/golden/oracle"),
        folder_from_env("QUATRAIN_ORACLE_CASES")}) {
    if (root.empty() || !std::filesystem::is_directory(root)) continue;
    for (const auto& entry : std::filesystem::directory_iterator(root))
      if (entry.is_directory()) found.push_back(entry.path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

/// Tensors of one safetensors file as vectors.
class Golden {
 public:
  explicit Golden(const std::filesystem::path& file) : file_(Checkpoint::open(file)) {}

  bool has(const std::string& name) const { return file_.find(name) != nullptr; }
  std::vector<std::int64_t> shape(const std::string& name) const { return get(name).shape; }
  std::vector<float> floats(const std::string& name) const {
    return file_.read_f32(name, get(name).shape);
  }
  std::vector<std::int32_t> ints(const std::string& name) const {
    const std::vector<std::int64_t> wide = file_.read_ints(name, get(name).shape);
    return {wide.begin(), wide.end()};
  }

 private:
  const TensorInfo& get(const std::string& name) const {
    const TensorInfo* info = file_.find(name);
    if (info == nullptr) fail("golden tensor '{}' is missing", name);
    return *info;
  }
  Checkpoint file_;
};

class LoadedModel {
 public:
  /// On a CPU backend of its own with `threads` threads.
  explicit LoadedModel(const std::filesystem::path& folder, EngineOptions options = {},
                       int threads = 2)
      : LoadedModel(folder, options, std::make_unique<CpuOps>(threads)) {}

  /// On the given operations, which must outlive the model.
  LoadedModel(const std::filesystem::path& folder, EngineOptions options, Ops& ops)
      : check(ops), tap(check) {
    options.guard = true;
    options.record = false;  // the decorators look at single operations
    runner = std::make_unique<ModelRunner>(tap, folder, options);
  }

  /// Logits [T, V] of all tokens, run in chunks of the given lengths (the last one repeats).
  std::vector<float> logits(const std::vector<std::int32_t>& ids, std::vector<std::int64_t> chunks,
                            std::int64_t slot = 0) {
    std::vector<float> out;
    std::int64_t position = 0;
    const auto total = static_cast<std::int64_t>(ids.size());
    for (std::size_t c = 0; position < total; ++c) {
      const std::int64_t n = std::min(chunks[std::min(c, chunks.size() - 1)], total - position);
      const SequenceChunk chunk{.slot = slot,
                                .position = position,
                                .tokens = std::span(ids).subspan(static_cast<std::size_t>(position),
                                                                 static_cast<std::size_t>(n)),
                                .logits = LogitRows::kAll};
      const auto rows = runner->step({&chunk, 1});
      out.insert(out.end(), rows.begin(), rows.end());
      position += n;
    }
    return out;
  }

  std::unique_ptr<Ops> own;
  CheckOps check;
  TapOps tap;
  std::unique_ptr<ModelRunner> runner;

 private:
  LoadedModel(const std::filesystem::path& folder, EngineOptions options,
              std::unique_ptr<Ops> backend)
      : LoadedModel(folder, options, *backend) {
    own = std::move(backend);
  }
};

/// Largest |a − b|; NaN anywhere gives infinity.
inline float max_difference(std::span<const float> a, std::span<const float> b) {
  EXPECT_EQ(a.size(), b.size());
  float largest = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const float d = std::abs(a[i] - b[i]);
    if (!(d <= largest)) largest = std::isnan(d) ? INFINITY : d;
  }
  return largest;
}

/// ‖a − b‖ / ‖b‖
inline double relative_difference(std::span<const float> a, std::span<const float> b) {
  EXPECT_EQ(a.size(), b.size());
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    difference += (a[i] - b[i]) * static_cast<double>(a[i] - b[i]);
    norm += b[i] * static_cast<double>(b[i]);
  }
  return std::sqrt(difference / norm);
}

}  // namespace quatrain::testing

// SPDX-License-Identifier: Apache-2.0
// Checkpoint: a folder of safetensors files as named, typed tensors.
//
// Names are the official DeepSeek-V4 names ("layers.3.attn.wq_a.weight"), whatever the files use:
// transformers names, a "model." prefix and fused expert tensors are mapped when the folder is
// opened. Which format a linear has is found from its tensors, never from config.json. Files are
// hostile until checked: every size is verified before anything is allocated or read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/file.h"
#include "core/quant_matrix.h"

namespace quatrain {

/// One tensor under its official name. Where the file fuses several (experts, gate_up), this is the
/// slice that belongs to the name.
struct TensorInfo {
  std::string name;         ///< official name
  std::string stored_name;  ///< name in the file
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;  ///< of the slice; empty for a scalar
  int file = 0;                     ///< index into Checkpoint::files()
  std::int64_t offset = 0;          ///< absolute, in bytes, in that file
  std::int64_t bytes = 0;

  std::int64_t elements() const;
};

/// The tensors that make up one linear, found by name and shape.
struct LinearSource {
  std::string name;  ///< base name, without ".weight"
  WeightFormat format = WeightFormat::kDense;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  const TensorInfo* weight = nullptr;
  const TensorInfo* scale = nullptr;         ///< null for dense
  const TensorInfo* global_scale = nullptr;  ///< F32 scalar; null when absent
  const TensorInfo* input_scale = nullptr;   ///< F32 scalar; null when absent
  bool reciprocal_scalars = false;           ///< the two above are stored as 1/x
  std::vector<const TensorInfo*> tensors;    ///< every tensor consumed, scalars included

  DType scale_dtype() const { return scale != nullptr ? scale->dtype : DType::kF32; }
};

/// Multipliers of a linear beside its block scales.
struct LinearScalars {
  float global_scale = 1.0f;
  float input_scale = 0.0f;  ///< 0 when absent
  bool operator==(const LinearScalars&) const = default;
};

/// Host memory of one linear; `matrix` points into it, its name included. Movable, not copyable:
/// the views stay valid because they point to the heap.
struct LoadedLinear {
  LoadedLinear() = default;
  LoadedLinear(LoadedLinear&&) noexcept = default;
  LoadedLinear& operator=(LoadedLinear&&) noexcept = default;

  std::vector<std::byte> storage;  ///< values, scales, name
  std::string name;
  QuantMatrix matrix;

  std::span<std::byte> values();
  std::span<std::byte> scales();
};

/// Zeroed memory for a linear of the given format and types; scales 1.
LoadedLinear allocate_linear(std::string_view name, WeightFormat format, std::int64_t rows,
                             std::int64_t cols, DType dtype, DType scale_dtype);

class Checkpoint {
 public:
  /// Opens a folder (model.safetensors, or shards with model.safetensors.index.json) or one file.
  /// Reads and checks headers only. Throws Error naming file, tensor, expected and found.
  static Checkpoint open(const std::filesystem::path& path);

  /// The same for one safetensors file that is open already.
  static Checkpoint from_file(File file);

  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  const std::filesystem::path& path() const;
  const std::vector<std::string>& files() const;
  const std::vector<TensorInfo>& tensors() const;
  const TensorInfo* find(std::string_view name) const;

  /// The tensor of this name, with exactly this shape; throws when it is missing or has another.
  const TensorInfo& expect(std::string_view name, std::span<const std::int64_t> shape) const;

  /// "model-00001-of-00002.safetensors: tensor 'layers.0…'" (with the stored name if it differs).
  std::string where(const TensorInfo& tensor) const;

  /// Reads a tensor's bytes; `out` must have exactly tensor.bytes.
  void read(const TensorInfo& tensor, std::span<std::byte> out) const;
  /// Reads out.size() bytes of a tensor from byte `offset` of it. From any thread.
  void read_part(const TensorInfo& tensor, std::int64_t offset, std::span<std::byte> out) const;

  /// A small dense tensor of any float type as FP32, checked against `shape`. `name` is complete.
  std::vector<float> read_f32(std::string_view name, std::span<const std::int64_t> shape) const;
  /// An integer tensor (I64 or I32), checked against `shape`.
  std::vector<std::int64_t> read_ints(std::string_view name,
                                      std::span<const std::int64_t> shape) const;

  /// The linear with base name `base` ("layers.0.attn.wq_a"), of any supported format. Throws when
  /// it is missing, inconsistent, or not rows x cols. Reads nothing.
  LinearSource linear(std::string_view base, std::int64_t rows, std::int64_t cols) const;
  bool has_linear(std::string_view base) const;

  /// Reads a linear whole and checks its scales: NaN or negative ones are refused.
  LoadedLinear load(const LinearSource& source) const;
  /// Reads them; throws unless they are finite and positive.
  LinearScalars scalars(const LinearSource& source) const;
  /// Fills what remains of load() for values and scales that are in memory already: reads the
  /// scalars, checks all scales. From any thread.
  void finish(const LinearSource& source, QuantMatrix& matrix) const;

 private:
  struct Impl;
  explicit Checkpoint(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace quatrain

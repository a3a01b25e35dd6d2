// SPDX-License-Identifier: Apache-2.0
// QuantMatrix: a weight matrix exactly as a checkpoint stores it, and its reference decoder.
//
// A backend packs a QuantMatrix once into a layout of its own; nobody else looks at scale layouts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/dtype.h"

namespace quatrain {

enum class WeightFormat : std::uint8_t {
  kDense,  ///< F32, BF16 or F16 values, no scales
  kNvfp4,  ///< E2M1 pairs; E4M3 scale per 16 columns [rows, cols/16]; one FP32 global multiplier
  kMxfp4,  ///< E2M1 pairs; UE8M0 scale per 32 columns [rows, cols/32]
  kFp8Block,  ///< E4M3; one scale (UE8M0, F32 or BF16) per 128x128 block [⌈rows/128⌉, ⌈cols/128⌉]
  kFp8Row,     ///< E4M3; one scale (F32 or BF16) per row [rows]
  kFp8Tensor,  ///< E4M3; one scale (F32 or BF16)
};

/// Whether values are E4M3, whatever the scales.
constexpr bool is_fp8(WeightFormat format) {
  return format == WeightFormat::kFp8Block || format == WeightFormat::kFp8Row ||
         format == WeightFormat::kFp8Tensor;
}

/// "NVFP4", "MXFP4", "FP8 128x128", …
std::string_view name_of(WeightFormat format);

inline constexpr std::int64_t kNvfp4Block = 16;
inline constexpr std::int64_t kMxfp4Block = 32;
inline constexpr std::int64_t kFp8Block = 128;

/// A non-owning view; `values` and `scales` are row-major host memory.
struct QuantMatrix {
  std::string_view name;  ///< the tensor's name, for messages
  WeightFormat format = WeightFormat::kDense;
  std::int64_t rows = 0;       ///< output features
  std::int64_t cols = 0;       ///< input features
  DType dtype = DType::kBF16;  ///< of `values`
  const std::byte* values = nullptr;
  DType scale_dtype = DType::kF32;  ///< of `scales`
  const std::byte* scales = nullptr;
  float global_scale = 1.0f;  ///< NVFP4: multiplier (reciprocals are inverted by the reader)
  float input_scale = 0.0f;   ///< NVFP4: calibrated activation multiplier; 0 when the file has none

  /// Bytes of `values` for one row: cols/2 for the 4-bit formats.
  std::int64_t row_bytes() const;
  /// Elements of `scales`; 0 for dense.
  std::int64_t scale_count() const;
  std::int64_t scale_columns() const;
  /// Bytes of values and scales together.
  std::int64_t bytes() const;
};

/// Decodes row `row` to FP32: out[c] = W[row][c]. NVFP4 values are e2m1 * (e4m3 * global_scale),
/// with the scale product rounded to FP32 once.
void decode_row(const QuantMatrix& matrix, std::int64_t row, float* out);

}  // namespace quatrain

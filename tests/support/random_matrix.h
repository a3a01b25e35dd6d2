// SPDX-License-Identifier: Apache-2.0
// Random weight matrices of every storage format, made of random codes rather than by a quantiser.
#pragma once

#include <string>
#include <vector>

#include "core/codec.h"
#include "support/op_harness.h"

namespace quatrain::testing {

struct MatrixKind {
  const char* name;
  WeightFormat format;
  DType dtype;
  DType scale_dtype;
};

inline constexpr MatrixKind kMatrixKinds[] = {
    {"F32", WeightFormat::kDense, DType::kF32, DType::kF32},
    {"BF16", WeightFormat::kDense, DType::kBF16, DType::kF32},
    {"F16", WeightFormat::kDense, DType::kF16, DType::kF32},
    {"NVFP4", WeightFormat::kNvfp4, DType::kU8, DType::kF8E4M3},
    {"MXFP4", WeightFormat::kMxfp4, DType::kI8, DType::kF8E8M0},
    {"MXFP4_U8", WeightFormat::kMxfp4, DType::kU8, DType::kU8},
    {"FP8Block_UE8M0", WeightFormat::kFp8Block, DType::kF8E4M3, DType::kF8E8M0},
    {"FP8Block_F32", WeightFormat::kFp8Block, DType::kF8E4M3, DType::kF32},
    {"FP8Block_BF16", WeightFormat::kFp8Block, DType::kF8E4M3, DType::kBF16},
    {"FP8Row", WeightFormat::kFp8Row, DType::kF8E4M3, DType::kF32},
    {"FP8Tensor", WeightFormat::kFp8Tensor, DType::kF8E4M3, DType::kF32},
};

/// The multiple that a format asks of the number of columns.
inline std::int64_t column_multiple(WeightFormat format) {
  return format == WeightFormat::kNvfp4 ? 16 : format == WeightFormat::kMxfp4 ? 32 : 1;
}

class RandomMatrix {
 public:
  RandomMatrix(const MatrixKind& kind, std::int64_t rows, std::int64_t cols, unsigned seed)
      : name_(fmt::format("random.{}", kind.name)) {
    view_ = {.name = name_,
             .format = kind.format,
             .rows = rows,
             .cols = cols,
             .dtype = kind.dtype,
             .scale_dtype = kind.scale_dtype};
    if (kind.format == WeightFormat::kNvfp4) view_.global_scale = 0.37f;
    Random random(seed);
    fill_values(random);
    fill_scales(random);
    view_.values = values_.data();
    view_.scales = scales_.data();
  }

  QuantMatrix& view() { return view_; }
  /// Row r as core/quant_matrix.h decodes it.
  std::vector<double> row(std::int64_t r) const {
    std::vector<float> out(static_cast<std::size_t>(view_.cols));
    decode_row(view_, r, out.data());
    return {out.begin(), out.end()};
  }

 private:
  template <class T>
  static void append(std::vector<std::byte>& out, T value) {
    const auto* bytes = reinterpret_cast<const std::byte*>(&value);
    out.insert(out.end(), bytes, bytes + sizeof(T));
  }

  void fill_values(Random& random) {
    const std::int64_t bytes = view_.rows * view_.row_bytes();
    const std::int64_t count = bytes / bytes_of(view_.dtype);
    for (std::int64_t i = 0; i < count; ++i) {
      if (view_.dtype == DType::kF32)
        append(values_, random.normal());
      else if (view_.dtype == DType::kBF16)
        append(values_, bf16_encode(random.normal()));
      else if (view_.dtype == DType::kF16)
        append(values_, f16_encode(random.normal()));
      else if (view_.dtype == DType::kF8E4M3)
        append(values_, e4m3_encode(random.normal(20)));
      else
        append(values_, static_cast<std::uint8_t>(random.integer(0, 255)));
    }
  }

  void fill_scales(Random& random) {
    for (std::int64_t i = 0; i < view_.scale_count(); ++i) {
      const float scale = random.uniform(0.01f, 0.1f);
      if (view_.scale_dtype == DType::kF32)
        append(scales_, scale);
      else if (view_.scale_dtype == DType::kBF16)
        append(scales_, bf16_encode(scale));
      else if (view_.scale_dtype == DType::kF8E4M3)
        append(scales_, e4m3_encode(10 * scale));
      else
        append(scales_, static_cast<std::uint8_t>(random.integer(120, 126)));
    }
  }

  std::string name_;
  std::vector<std::byte> values_, scales_;
  QuantMatrix view_;
};

}  // namespace quatrain::testing

// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/linear_format.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>

#include "core/codec.h"
#include "core/error.h"

namespace quatrain {
namespace {

using Shape = std::vector<std::int64_t>;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

std::string shown(const Shape& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

bool is_one_of(DType dtype, std::initializer_list<DType> allowed) {
  for (const DType d : allowed)
    if (d == dtype) return true;
  return false;
}

/// Everything that may stand under a linear's base name; null where absent.
struct Parts {
  const TensorInfo* weight;
  const TensorInfo* weight_packed;
  const TensorInfo* scale;
  const TensorInfo* weight_scale;
  const TensorInfo* weight_scale_inv;
  const TensorInfo* weight_scale_2;
  const TensorInfo* weight_global_scale;
  const TensorInfo* input_scale;
  const TensorInfo* input_global_scale;
};

/// Builds the LinearSource of one base name.
class Detector {
 public:
  Detector(const Checkpoint& checkpoint, std::string_view base, std::int64_t rows,
           std::int64_t cols)
      : checkpoint_(checkpoint), base_(base) {
    out_.name = base;
    out_.rows = rows;
    out_.cols = cols;
    const auto part = [&](std::string_view suffix) {
      return checkpoint.find(fmt::format("{}.{}", base, suffix));
    };
    parts_ = {.weight = part("weight"),
              .weight_packed = part("weight_packed"),
              .scale = part("scale"),
              .weight_scale = part("weight_scale"),
              .weight_scale_inv = part("weight_scale_inv"),
              .weight_scale_2 = part("weight_scale_2"),
              .weight_global_scale = part("weight_global_scale"),
              .input_scale = part("input_scale"),
              .input_global_scale = part("input_global_scale")};
  }

  LinearSource detect() {
    if (parts_.weight && parts_.weight_packed)
      fail("{}: both weight and weight_packed exist", checkpoint_.where(*parts_.weight));
    const TensorInfo* weight = parts_.weight ? parts_.weight : parts_.weight_packed;
    if (!weight) fail("{}: tensor '{}.weight' is missing", checkpoint_.path().string(), base_);
    use(weight);
    out_.weight = weight;
    if (parts_.weight_packed) return packed_nvfp4();
    switch (weight->dtype) {
      case DType::kF32:
      case DType::kF16:
      case DType::kBF16:
        return dense();
      case DType::kF8E4M3:
        return fp8();
      case DType::kU8:
        if (parts_.weight_scale || parts_.weight_scale_2) return modelopt_nvfp4();
        return mxfp4();
      case DType::kI8:
        return mxfp4();
      default:
        fail("{}: a weight of type {} has no meaning", checkpoint_.where(*weight),
             name_of(weight->dtype));
    }
  }

 private:
  void use(const TensorInfo* tensor) { out_.tensors.push_back(tensor); }

  void expect_shape(const TensorInfo& tensor, const Shape& expected, std::string_view meaning) {
    if (tensor.shape != expected)
      fail("{}: expected shape {} ({}), found {}", checkpoint_.where(tensor), shown(expected),
           meaning, shown(tensor.shape));
  }

  /// The tensor that the format needs beside the weight.
  const TensorInfo& need(const TensorInfo* tensor, std::string_view suffix) {
    if (!tensor)
      fail("{}: tensor '{}.{}' is missing beside it", checkpoint_.where(*out_.weight), base_,
           suffix);
    return *tensor;
  }

  /// Refuses tensors that belong to another format than the one found.
  void forbid(std::initializer_list<const TensorInfo*> others) {
    for (const TensorInfo* other : others)
      if (other)
        fail("{}: does not belong to the {} weight of type {} beside it", checkpoint_.where(*other),
             name_of(out_.format), name_of(out_.weight->dtype));
  }

  /// An FP32 scalar ([] or [1]); its value is not read here.
  const TensorInfo* scalar(const TensorInfo& tensor) {
    if (tensor.dtype != DType::kF32 || tensor.shape.size() > 1 || tensor.elements() != 1)
      fail("{}: expected an F32 scalar, found {} {}", checkpoint_.where(tensor),
           name_of(tensor.dtype), shown(tensor.shape));
    use(&tensor);
    return &tensor;
  }

  void nvfp4_matrices() {
    out_.format = WeightFormat::kNvfp4;
    forbid({parts_.scale, parts_.weight_scale_inv});
    if (out_.weight->dtype != DType::kU8)
      fail("{}: expected U8 (pairs of E2M1), found {}", checkpoint_.where(*out_.weight),
           name_of(out_.weight->dtype));
    if (out_.cols % kNvfp4Block != 0)
      fail("{}: NVFP4 needs columns in multiples of {}, expected {}",
           checkpoint_.where(*out_.weight), kNvfp4Block, out_.cols);
    expect_shape(*out_.weight, {out_.rows, out_.cols / 2}, "rows, columns/2");
    const TensorInfo& scale = need(parts_.weight_scale, "weight_scale");
    if (scale.dtype != DType::kF8E4M3)
      fail("{}: expected F8_E4M3, found {}", checkpoint_.where(scale), name_of(scale.dtype));
    expect_shape(scale, {out_.rows, out_.cols / kNvfp4Block}, "rows, columns/16");
    out_.scale = &scale;
    use(&scale);
  }

  LinearSource modelopt_nvfp4() {
    nvfp4_matrices();
    forbid({parts_.weight_global_scale, parts_.input_global_scale});
    out_.global_scale = scalar(need(parts_.weight_scale_2, "weight_scale_2"));
    if (parts_.input_scale) out_.input_scale = scalar(*parts_.input_scale);
    return std::move(out_);
  }

  /// compressed-tensors: the global scales are stored as reciprocals.
  LinearSource packed_nvfp4() {
    nvfp4_matrices();
    forbid({parts_.weight_scale_2, parts_.input_scale});
    out_.reciprocal_scalars = true;
    out_.global_scale = scalar(need(parts_.weight_global_scale, "weight_global_scale"));
    if (parts_.input_global_scale) out_.input_scale = scalar(*parts_.input_global_scale);
    return std::move(out_);
  }

  LinearSource mxfp4() {
    out_.format = WeightFormat::kMxfp4;
    forbid({parts_.weight_scale, parts_.weight_scale_inv, parts_.weight_scale_2,
            parts_.weight_global_scale});
    if (out_.cols % kMxfp4Block != 0)
      fail("{}: MXFP4 needs columns in multiples of {}, expected {}",
           checkpoint_.where(*out_.weight), kMxfp4Block, out_.cols);
    expect_shape(*out_.weight, {out_.rows, out_.cols / 2}, "rows, columns/2");
    const TensorInfo& scale = need(parts_.scale, "scale");
    if (!is_one_of(scale.dtype, {DType::kF8E8M0, DType::kU8}))
      fail("{}: expected F8_E8M0 or U8, found {}", checkpoint_.where(scale), name_of(scale.dtype));
    expect_shape(scale, {out_.rows, out_.cols / kMxfp4Block}, "rows, columns/32");
    out_.scale = &scale;
    use(&scale);
    return std::move(out_);
  }

  LinearSource fp8() {
    out_.format = WeightFormat::kFp8Block;
    forbid({parts_.weight_scale_2, parts_.weight_global_scale});
    expect_shape(*out_.weight, {out_.rows, out_.cols}, "rows, columns");
    const TensorInfo* scale = nullptr;
    for (const TensorInfo* candidate :
         {parts_.scale, parts_.weight_scale, parts_.weight_scale_inv}) {
      if (candidate && scale)
        fail("{}: there is also a scale named '{}'", checkpoint_.where(*candidate), scale->name);
      if (candidate) scale = candidate;
    }
    const TensorInfo& found = need(scale, "scale");
    fp8_granularity(found);
    out_.scale = &found;
    use(&found);
    if (parts_.input_scale) out_.input_scale = scalar(*parts_.input_scale);
    return std::move(out_);
  }

  void fp8_granularity(const TensorInfo& scale) {
    const Shape blocks = {ceil_div(out_.rows, kFp8Block), ceil_div(out_.cols, kFp8Block)};
    const std::int64_t count = scale.elements();
    if (scale.shape == blocks) {
      // Bytes without a float type are exponents only under the official name.
      const bool exponents =
          scale.dtype == DType::kF8E8M0 || (scale.dtype == DType::kU8 && &scale == parts_.scale);
      if (!exponents && !is_one_of(scale.dtype, {DType::kF32, DType::kBF16}))
        fail("{}: expected F8_E8M0, F32 or BF16, found {}", checkpoint_.where(scale),
             name_of(scale.dtype));
      return;
    }
    if (scale.shape.size() <= 1 && count == 1)
      out_.format = WeightFormat::kFp8Tensor;
    else if (scale.shape == Shape{out_.rows} || scale.shape == Shape{out_.rows, 1})
      out_.format = WeightFormat::kFp8Row;
    else
      fail(
          "{}: expected shape {} (128x128 blocks), [{}] (rows) or [] for a weight of {}x{}, "
          "found {}",
          checkpoint_.where(scale), shown(blocks), out_.rows, out_.rows, out_.cols,
          shown(scale.shape));
    if (!is_one_of(scale.dtype, {DType::kF32, DType::kBF16}))
      fail("{}: expected F32 or BF16, found {}", checkpoint_.where(scale), name_of(scale.dtype));
  }

  LinearSource dense() {
    out_.format = WeightFormat::kDense;
    forbid({parts_.scale, parts_.weight_scale, parts_.weight_scale_inv, parts_.weight_scale_2,
            parts_.weight_global_scale});
    expect_shape(*out_.weight, {out_.rows, out_.cols}, "rows, columns");
    return std::move(out_);
  }

  const Checkpoint& checkpoint_;
  std::string_view base_;
  Parts parts_{};
  LinearSource out_;
};

/// Throws for the first scale whose bits, an unsigned T, are `bad`.
template <class T, class Bad>
void refuse_first(const QuantMatrix& m, std::string_view where, Bad bad) {
  constexpr std::int64_t kChunk = 4096;  // a loop without a way out becomes vector instructions
  const std::int64_t count = m.scale_count(), columns = m.scale_columns();
  const auto at = [&](std::int64_t i) {
    T value;
    std::memcpy(&value, m.scales + i * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
    return value;
  };
  for (std::int64_t begin = 0; begin < count; begin += kChunk) {
    const std::int64_t end = std::min(begin + kChunk, count);
    T any = 0;
    for (std::int64_t i = begin; i < end; ++i) any |= static_cast<T>(bad(at(i)));
    if (any == 0) [[likely]]
      continue;
    for (std::int64_t i = begin; i < end; ++i)
      if (bad(at(i)))
        fail("{}: the scale at row {}, column {} is NaN, infinite or negative ({} {:#x})", where,
             i / columns, i % columns, name_of(m.scale_dtype), at(i));
  }
}

}  // namespace

LinearSource detect_linear(const Checkpoint& checkpoint, std::string_view base, std::int64_t rows,
                           std::int64_t cols) {
  return Detector(checkpoint, base, rows, cols).detect();
}

float read_scalar(const Checkpoint& checkpoint, const LinearSource& source,
                  const TensorInfo& tensor) {
  float value = 0.0f;
  checkpoint.read(tensor, std::as_writable_bytes(std::span(&value, 1)));
  if (!std::isfinite(value) || value <= 0.0f)
    fail("{}: expected a finite scale above 0, found {}", checkpoint.where(tensor), value);
  if (!source.reciprocal_scalars) return value;
  const float inverse = 1.0f / value;
  if (!std::isfinite(inverse) || inverse <= 0.0f)
    fail("{}: the reciprocal of {} is not a finite scale", checkpoint.where(tensor), value);
  return inverse;
}

LinearShape stored_shape(const Checkpoint& checkpoint, std::string_view base) {
  const TensorInfo* weight = checkpoint.find(fmt::format("{}.weight", base));
  if (!weight) weight = checkpoint.find(fmt::format("{}.weight_packed", base));
  if (!weight) fail("{}: tensor '{}.weight' is missing", checkpoint.path().string(), base);
  if (weight->shape.size() != 2)
    fail("{}: expected a matrix, found {}", checkpoint.where(*weight), shown(weight->shape));
  const bool packed = weight->dtype == DType::kU8 || weight->dtype == DType::kI8;
  if (packed && weight->shape[1] > INT64_MAX / 2)
    fail("{}: shape {} overflows", checkpoint.where(*weight), shown(weight->shape));
  return {weight->shape[0], packed ? weight->shape[1] * 2 : weight->shape[1]};
}

void check_scales(const QuantMatrix& m, std::string_view where) {
  if (m.format == WeightFormat::kDense) return;
  switch (m.scale_dtype) {
    case DType::kF8E4M3:
      return refuse_first<std::uint8_t>(m, where, [](std::uint8_t b) { return b >= 0x7F; });
    case DType::kF8E8M0:
    case DType::kU8:
      return refuse_first<std::uint8_t>(m, where, [](std::uint8_t b) { return b == 0xFF; });
    case DType::kBF16:
      // Sign bit, or an exponent of all ones.
      return refuse_first<std::uint16_t>(m, where, [](std::uint16_t b) { return b >= 0x7F80; });
    case DType::kF32:
      return refuse_first<std::uint32_t>(m, where, [](std::uint32_t b) { return b >= 0x7F800000; });
    default:
      fail("{}: scales of type {} have no meaning", where, name_of(m.scale_dtype));
  }
}

}  // namespace quatrain

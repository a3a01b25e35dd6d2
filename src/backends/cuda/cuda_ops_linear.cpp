// SPDX-License-Identifier: Apache-2.0
// linear, grouped_linear and the fused products: packing of their weights, and from tensors to
// launches.
#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/launch/linear.h"
#include "backends/cuda/launch/linear_decoded.h"
#include "backends/cuda/launch/linear_fp8.h"
#include "backends/cuda/launch/matmul.h"
#include "backends/cuda/launch/quantise.h"
#include "backends/cuda/launch/row_pairs.h"
#include "backends/cuda/tensor_args.h"
#include "core/codec.h"

namespace quatrain {
namespace {

// Kernels read the scales of FP8 blocks as FP32; there are few of them.
std::vector<float> scales_as_f32(const QuantMatrix& w) {
  std::vector<float> out(static_cast<std::size_t>(w.scale_count()));
  for (std::size_t i = 0; i < out.size(); ++i) {
    switch (w.scale_dtype) {
      case DType::kF32:
        out[i] = reinterpret_cast<const float*>(w.scales)[i];
        break;
      case DType::kBF16:
        out[i] = bf16_decode(reinterpret_cast<const std::uint16_t*>(w.scales)[i]);
        break;
      case DType::kF8E8M0:
      case DType::kU8:
        out[i] = ue8m0_decode(reinterpret_cast<const std::uint8_t*>(w.scales)[i]);
        break;
      default:
        fail("{}: block scales of type {}; expected F8_E8M0, F32 or BF16", w.name,
             name_of(w.scale_dtype));
    }
  }
  return out;
}

const cuda::Matrix& matrix_of(const PackedLinear* w) {
  return static_cast<const CudaLinear*>(w)->matrix;
}

}  // namespace

std::unique_ptr<PackedLinear> CudaOps::pack_linear(const QuantMatrix& w) {
  auto packed = std::make_unique<CudaLinear>();
  packed->name = std::string(w.name);
  packed->format = w.format;
  packed->rows = w.rows;
  packed->cols = w.cols;
  packed->bytes = w.bytes();
  std::vector<float> block_scales;
  const void* scales = w.scales;
  DType scale_dtype = w.scale_dtype;
  if (w.format == WeightFormat::kFp8Block) {
    block_scales = scales_as_f32(w);
    scales = block_scales.data();
    scale_dtype = DType::kF32;
  }
  const std::int64_t value_bytes = w.rows * w.row_bytes();
  const std::int64_t scale_bytes = w.scale_count() * bytes_of(scale_dtype);
  const std::int64_t scale_offset = (value_bytes + 255) / 256 * 256;
  packed->memory = allocate(scale_offset + scale_bytes);
  char* base = static_cast<char*>(packed->memory.data());
  upload_bytes(base, w.values, value_bytes);
  upload_bytes(base + scale_offset, scales, scale_bytes);
  packed->matrix = {.format = w.format,
                    .dtype = w.dtype,
                    .scale_dtype = scale_dtype,
                    .values = base,
                    .scales = base + scale_offset,
                    .global_scale = w.global_scale,
                    .rows = static_cast<int>(w.rows),
                    .cols = static_cast<int>(w.cols)};
  return packed;
}

void CudaOps::reserve_linears() {
  constexpr std::int64_t kScratchBytes = std::int64_t{128} << 20, kManyRows = 9;
  constexpr std::int64_t kRoundedBytes = std::int64_t{16} << 20;
  linear_scratch_ = Buffer();
  rounded_inputs_ = Buffer();
  linear_meetings_ = Buffer();
  if (limits_.rows >= kManyRows) {
    // Twice as much where it holds weights as well.
    linear_scratch_ =
        allocate(limits_.rows >= cuda::kDecodedTokens ? 2 * kScratchBytes : kScratchBytes);
    linear_meetings_ =
        allocate_zeros(2 * cuda::multiprocessors() * std::int64_t{sizeof(cuda::LinearMeeting)});
  }
  if (limits_.linear_activations == LinearActivations::kFp8)
    rounded_inputs_ = allocate(kRoundedBytes);
}

cuda::LinearScratch CudaOps::linear_scratch() const {
  return {.memory = linear_scratch_.data(),
          .bytes = linear_scratch_.bytes(),
          .meetings = static_cast<cuda::LinearMeeting*>(linear_meetings_.data())};
}

// The kernel is a function of the matrix alone, so that a row's sums do not depend on the step.
void CudaOps::product(const cuda::LinearsArgs& args) {
  cuda::LinearsArgs fast = args;
  fast.count = 0;
  for (int i = 0; i < args.count; ++i) {
    const cuda::Product& product = args.products[i];
    if (cuda::has_fast_linear(product.w))
      fast.products[fast.count++] = product;
    else
      cuda::linear(product.w,
                   {.x = args.x, .out = product.out, .tokens = args.tokens, .groups = args.groups},
                   stream_);
  }
  cuda::linears(fast, linear_scratch(), stream_);
}

// Decode steps round the inputs and multiply as ever, so that a row has the same bits in any of
// them; longer steps go to FP8 tensor cores, whose sums have fewer bits.
void CudaOps::fp8_product(const cuda::LinearsArgs& args) {
  const cuda::LinearScratch scratch = linear_scratch();
  const int cols = args.products[0].w.cols, width = args.groups * cols;
  bool has_tiles = args.tokens >= cuda::kFp8TileTokens &&
                   scratch.bytes >= cuda::fp8_scratch_bytes(cols, args.groups);
  for (int i = 0; i < args.count; ++i)
    has_tiles = has_tiles && cuda::fits_row_pairs(args.products[i].w, args.groups);
  if (has_tiles) return cuda::multiply_fp8(args, scratch, stream_);
  QT_CHECK(cols % 4 == 0, "FP8 activations of {} columns, which are no multiple of 4", cols);
  const auto room = static_cast<int>(rounded_inputs_.bytes() / (std::int64_t{4} * width));
  QT_CHECK(room > 0, "FP8 activations of {} columns, which reserve() was not told of", width);
  auto* rounded = static_cast<float*>(rounded_inputs_.data());
  for (int first = 0; first < args.tokens; first += room) {
    cuda::LinearsArgs some = args;
    const std::int64_t from = std::int64_t{first} * width;
    some.tokens = std::min(room, args.tokens - first);
    cuda::fp8_quantise_rows({.x = args.x + from,
                             .up = args.up != nullptr ? args.up + from : nullptr,
                             .limit = args.limit,
                             .rows = some.tokens * args.groups,
                             .cols = cols,
                             .out = rounded},
                            stream_);
    some.x = rounded;
    some.up = nullptr;
    for (int i = 0; i < args.count; ++i) {
      some.products[i].out += std::int64_t{first} * args.products[i].w.rows;
      some.products[i].rounded_inputs = true;  // which lose nothing more
    }
    product(some);
  }
}

// Products that are not `precise` take the inputs as `activations` has them.
void CudaOps::product(const cuda::LinearsArgs& args, LinearActivations activations,
                      std::span<const bool> precise) {
  cuda::LinearsArgs fp8 = args, others = args;
  fp8.count = others.count = 0;
  for (int i = 0; i < args.count; ++i) {
    cuda::Product one = args.products[i];
    const auto nth = static_cast<std::size_t>(i);
    const bool is_full =
        activations == LinearActivations::kFull || (nth < precise.size() && precise[nth]);
    const bool is_fp8 = !is_full && activations == LinearActivations::kFp8 &&
                        one.w.format == WeightFormat::kFp8Block;
    one.rounded_inputs = !is_full && activations == LinearActivations::kF16;
    cuda::LinearsArgs& to = is_fp8 ? fp8 : others;
    to.products[to.count++] = one;
  }
  if (fp8.count > 0) fp8_product(fp8);
  if (others.count > 0) product(others);
}

void CudaOps::linear(const op::Linear& args) {
  product({.x = f32(args.x),
           .tokens = extent(args.x, 0),
           .count = 1,
           .products = {{.w = matrix_of(args.w), .out = f32(args.out)}}},
          args.precise ? LinearActivations::kFull : args.activations);
}

void CudaOps::grouped_linear(const op::GroupedLinear& args) {
  product({.x = f32(args.x),
           .tokens = extent(args.x, 0),
           .groups = extent(args.x, 1),
           .count = 1,
           .products = {{.w = matrix_of(args.w), .out = f32(args.out)}}},
          args.activations);
}

void CudaOps::linears(const op::Linears& args) {
  static_assert(op::Linears::kMost <= cuda::kMaxProducts);
  cuda::LinearsArgs all{.x = f32(args.x), .tokens = extent(args.x, 0), .count = args.count};
  std::array<bool, op::Linears::kMost> precise{};
  for (int i = 0; i < args.count; ++i) {
    const auto& one = args.products[static_cast<std::size_t>(i)];
    all.products[i] = {.w = matrix_of(one.w), .out = f32(one.out)};
    precise[static_cast<std::size_t>(i)] = one.precise;
  }
  product(all, args.activations, precise);
}

void CudaOps::swiglu_linear(const op::SwiGluLinear& args) {
  if (!cuda::has_fast_linear(matrix_of(args.w))) return Ops::swiglu_linear(args);
  product({.x = f32(args.gate),
           .up = f32(args.up),
           .limit = args.limit,
           .tokens = extent(args.gate, 0),
           .count = 1,
           .products = {{.w = matrix_of(args.w), .out = f32(args.out)}}},
          args.activations);
}

}  // namespace quatrain

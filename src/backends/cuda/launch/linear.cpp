// SPDX-License-Identifier: Apache-2.0
// linears: sorts the products of a launch by kind of weight and picks the kernel by tokens.
#include <algorithm>

#include "backends/cuda/launch/linear_stream.h"
#include "backends/cuda/launch/linear_tiles.h"

namespace quatrain::cuda {
namespace {

// From here on reading the weights once per 64 tokens, with a launch before it that splits the
// inputs, beats reading them once per 16.
constexpr int kSomeTokens = 17;
// From here on tiles of 128 tokens are faster.
constexpr int kManyTokens = 257;

int ceil_div(int a, int b) { return (a + b - 1) / b; }

LinearKind kind_of(const Matrix& w) {
  switch (w.format) {
    case WeightFormat::kDense:
      return LinearKind::kBf16;
    case WeightFormat::kNvfp4:
      return LinearKind::kNvfp4;
    case WeightFormat::kMxfp4:
      return LinearKind::kMxfp4;
    default:
      return LinearKind::kFp8;
  }
}

constexpr LinearKind kKinds[kLinearKinds] = {LinearKind::kBf16, LinearKind::kFp8,
                                             LinearKind::kNvfp4, LinearKind::kMxfp4};

LinearStream as_stream(const LinearsArgs& args) {
  const int cols = args.products[0].w.cols;
  LinearStream all{.x = args.x,
                   .up = args.up,
                   .limit = args.limit,
                   .tokens = args.tokens,
                   .groups = args.groups,
                   .cols = cols,
                   .slices = ceil_div(cols, kSliceBlocks * kLinearBlock)};
  int count = 0;
  for (const LinearKind kind : kKinds) {
    StreamPart part{.kind = kind, .first_product = count};
    for (int i = 0; i < args.count; ++i) {
      const Product& product = args.products[i];
      if (kind_of(product.w) != kind) continue;
      const int rows = product.w.rows / args.groups;
      all.products[count++] = {
          .w = product.w, .out = product.out, .first_strip = part.strips, .group_rows = rows};
      part.strips += ceil_div(rows, kStripRows);
      ++part.count;
    }
    if (part.count > 0) all.part[all.parts++] = part;
  }
  return all;
}

LinearTiles as_tiles(const LinearsArgs& args, LinearKind kind) {
  const int cols = args.products[0].w.cols;
  LinearTiles some{.x = args.x,
                   .up = args.up,
                   .limit = args.limit,
                   .tokens = args.tokens,
                   .groups = args.groups,
                   .cols = cols,
                   .slices = ceil_div(cols, kSliceBlocks * kLinearBlock)};
  for (int i = 0; i < args.count; ++i) {
    const Product& product = args.products[i];
    if (kind_of(product.w) != kind) continue;
    some.products[some.count++] = {.w = product.w, .out = product.out, .first_tile = some.tiles};
    some.tiles += args.groups * ceil_div(product.w.rows / args.groups, kTileRows);
  }
  return some;
}

}  // namespace

bool has_fast_linear(const Matrix& w) {
  if (!stream_takes(w.cols)) return false;
  switch (w.format) {
    case WeightFormat::kDense:
      return w.dtype == DType::kBF16 && w.cols % 8 == 0;
    case WeightFormat::kNvfp4:
    case WeightFormat::kMxfp4:
      return w.cols % 32 == 0;
    case WeightFormat::kFp8Block:
      return w.scale_dtype == DType::kF32 && w.cols % 16 == 0;
    default:
      return w.cols % 16 == 0;
  }
}

void linears(const LinearsArgs& args, const LinearScratch& scratch, cudaStream_t stream) {
  if (args.tokens == 0 || args.count == 0) return;
  LinearTiles tiles[kLinearKinds];
  std::int64_t wanted = 0;
  const bool few = args.tokens < kSomeTokens, many = args.tokens >= kManyTokens;
  for (int i = 0; i < kLinearKinds; ++i) {
    tiles[i] = as_tiles(args, kKinds[i]);
    wanted = std::max(wanted, many ? tile_scratch_bytes(tiles[i].cols, args.groups)
                                   : narrow_scratch_bytes(tiles[i]));
  }
  if (few || scratch.bytes < wanted) return stream_linears(as_stream(args), stream);
  for (int i = 0; i < kLinearKinds; ++i)
    if (tiles[i].count > 0)
      (many ? multiply_tiles : multiply_narrow)(kKinds[i], tiles[i], scratch, stream);
}

}  // namespace quatrain::cuda

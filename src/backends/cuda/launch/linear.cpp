// SPDX-License-Identifier: Apache-2.0
// linears: sorts the products of a launch by kind of weight and picks the kernel by tokens.
#include "backends/cuda/launch/linear_stream.h"
#include "backends/cuda/launch/linear_tiles.h"

namespace quatrain::cuda {
namespace {

// From here on a tile of 128 tokens beats reading the weights once more per 16.
constexpr int kManyTokens = 65;

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
  const int cols = args.products[0].w.cols;
  if (args.tokens < kManyTokens || scratch.bytes < tile_scratch_bytes(cols, args.groups))
    stream_linears(as_stream(args), stream);
  else
    for (const LinearKind kind : kKinds) {
      const LinearTiles tiles = as_tiles(args, kind);
      if (tiles.count > 0) multiply_tiles(kind, tiles, scratch, stream);
    }
}

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// linears: sorts the products of a launch by kind of weight and picks the kernel by tokens.
#include <algorithm>
#include <array>
#include <span>

#include "backends/cuda/cuda_check.h"
#include "backends/cuda/launch/linear_decoded.h"
#include "backends/cuda/launch/linear_stream.h"
#include "backends/cuda/launch/linear_tiles.h"
#include "backends/cuda/launch/linear_wave.h"
#include "core/error.h"

namespace quatrain::cuda {
namespace {

// From here on reading the weights once per 64 tokens, with a launch before it that splits the
// inputs, beats reading them once per 8; that launch pays earlier where there is much to read.
// Rounded inputs leave room for 16 tokens.
constexpr int kSomeTokens = 17, kSomeTokensOfLarge = 9;
constexpr std::int64_t kLargeBytes = 16 << 20;
constexpr int kSlicesOfLarge = 4;
// From here on tiles of 128 tokens are faster.
constexpr int kManyTokens = 257;

LinearKind kind_of(const Product& product) {
  switch (product.w.format) {
    case WeightFormat::kDense:
      return LinearKind::kBf16;
    case WeightFormat::kNvfp4:
      return LinearKind::kNvfp4;
    case WeightFormat::kMxfp4:
      return LinearKind::kMxfp4;
    default:
      return product.rounded_inputs ? LinearKind::kFp8Rounded : LinearKind::kFp8;
  }
}

constexpr LinearKind kKinds[kLinearKinds] = {LinearKind::kBf16, LinearKind::kFp8,
                                             LinearKind::kFp8Rounded, LinearKind::kNvfp4,
                                             LinearKind::kMxfp4};

/// Of a strip and slice.
std::int64_t strip_bytes(LinearKind kind) {
  switch (kind) {
    case LinearKind::kBf16:
      return 32768;
    case LinearKind::kFp8:
    case LinearKind::kFp8Rounded:
      return 16384;
    default:
      return 8192;
  }
}

LinearInputs inputs_of(const LinearsArgs& args) {
  const int cols = args.products[0].w.cols;
  return {.x = args.x,
          .up = args.up,
          .limit = args.limit,
          .tokens = args.tokens,
          .groups = args.groups,
          .cols = cols,
          .slices = ceil_div(cols, kSliceBlocks * kLinearBlock)};
}

LinearStream as_stream(const LinearsArgs& args) {
  LinearStream all{inputs_of(args)};
  int count = 0;
  for (const LinearKind kind : kKinds) {
    StreamPart part{.kind = kind, .first_product = count};
    for (int i = 0; i < args.count; ++i) {
      const Product& product = args.products[i];
      if (kind_of(product) != kind) continue;
      const int rows = product.w.rows / args.groups;
      all.products[count++] = {
          .w = product.w, .out = product.out, .first = part.strips, .group_rows = rows};
      part.strips += ceil_div(rows, kStripRows);
      ++part.count;
    }
    if (part.count > 0) all.part[all.parts++] = part;
  }
  std::int64_t bytes = 0;
  for (int p = 0; p < all.parts; ++p)
    bytes += strip_bytes(all.part[p].kind) * all.part[p].strips * all.groups * all.slices;
  all.is_large = all.parts == 1 && all.slices >= kSlicesOfLarge && bytes >= kLargeBytes;
  all.is_small = bytes < kLargeBytes;
  return all;
}

LinearTiles as_tiles(const LinearsArgs& args, LinearKind kind) {
  LinearTiles some{inputs_of(args), kind};
  for (int i = 0; i < args.count; ++i) {
    const Product& product = args.products[i];
    if (kind_of(product) != kind) continue;
    some.products[some.count++] = {.w = product.w, .out = product.out};
  }
  return some;
}

/// Whether all rows of a strip have the same scales: strips that follow each other from the first
/// row of a group do not straddle blocks of scales then.
bool shares_scales(const LinearsArgs& args) {
  if (args.groups == 1) return true;
  for (int i = 0; i < args.count; ++i) {
    const Matrix& w = args.products[i].w;
    if (w.format == WeightFormat::kFp8Block && w.rows / args.groups % kStripRows != 0) return false;
  }
  return true;
}

}  // namespace

void share_out(LinearStream& args, int clusters) {
  std::int64_t bytes_left = 0;
  for (int p = 0; p < args.parts; ++p)
    bytes_left += args.part[p].strips * strip_bytes(args.part[p].kind);
  int left = std::max(1, clusters / args.groups), first = 0;
  for (int p = 0; p < args.parts; ++p) {
    StreamPart& part = args.part[p];
    const std::int64_t bytes = part.strips * strip_bytes(part.kind);
    const int fair = static_cast<int>((left * bytes + bytes_left / 2) / bytes_left);
    const int count = std::clamp(fair, 1, part.strips);
    part.clusters = Divisor(count);
    part.first_cluster = first;
    first += count * args.groups;
    left = std::max(0, left - count);
    bytes_left -= bytes;
  }
}

int multiprocessors() {
  static const int count = [] {
    int device = 0, found = 0;
    QT_CUDA(cudaGetDevice(&device));
    QT_CUDA(cudaDeviceGetAttribute(&found, cudaDevAttrMultiProcessorCount, device));
    return found;
  }();
  return count;
}

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

std::string describe_linears() {
  return fmt::format(
      "weights streamed once per 8 rows, or 16 where a launch of {0} MiB and more has FP8 with "
      "rounded inputs, up to {1} (matrices of {0} MiB and more without: {2}), read once "
      "per 64 rows up to {3} (up to {4} in one wave of blocks where FP8 with rounded inputs fits "
      "it), then in tiles of 128 rows; from {5} on FP8 with rounded inputs is decoded beforehand "
      "where every block has {6} tiles",
      kLargeBytes >> 20, kSomeTokens - 1, kSomeTokensOfLarge - 1, kManyTokens - 1, kMostWaveTokens,
      kDecodedTokens, kDecodedRounds);
}

void linears(const LinearsArgs& args, const LinearScratch& scratch, cudaStream_t stream) {
  if (args.tokens == 0 || args.count == 0) return;
  const LinearStream all = as_stream(args);
  const bool reads_twice = all.is_large && all.part[0].kind != LinearKind::kFp8Rounded;
  const bool few = args.tokens < (reads_twice ? kSomeTokensOfLarge : kSomeTokens),
             many = args.tokens >= kManyTokens;
  if (few || !shares_scales(args)) return stream_linears(all, stream);
  if (multiply_wave(all, scratch, stream)) return;
  std::array<LinearTiles, kLinearKinds> tiles;
  std::size_t kinds = 0;
  for (const LinearKind kind : kKinds)
    if (const LinearTiles some = as_tiles(args, kind); some.count > 0) tiles[kinds++] = some;
  const std::span<const LinearTiles> of_kinds(tiles.data(), kinds);
  const std::int64_t wanted =
      many ? tile_scratch_bytes(tiles[0].cols, args.groups) : narrow_scratch_bytes(of_kinds);
  if (scratch.bytes < wanted) return stream_linears(all, stream);
  if (!many) return multiply_narrow(of_kinds, scratch, stream);
  for (const LinearTiles& some : of_kinds) {
    const bool decodes_first = takes_decoded(some) && prefers_decoded(some) &&
                               scratch.bytes >= decoded_scratch_bytes(some.cols, some.groups);
    (decodes_first ? multiply_decoded : multiply_tiles)(some, scratch, stream);
  }
}

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
#include "backends/cuda/launch/linear_wave.h"

#include <algorithm>

namespace quatrain::cuda {
namespace {

/// Up to here linear_narrow.cu is as fast, but where a block has more units than groups of warps:
/// there its tiles would take two rounds.
constexpr int kFewTokens = 32;
/// One unit in so many may be of BF16, whose inputs have two parts, of which shared memory holds
/// half: with more of them linear_narrow.cu is faster.
constexpr int kUnitsForBf16 = 8;
/// Blocks that split the inputs of a slice, at least where there are some left.
constexpr int kSplittingTiles = 8;

/// What a block of a part reads for each column, in bytes: the split inputs, and weights.
int column_bytes(const WavePart& part, int tokens, int tiles) {
  const bool is_fp8 = part.kind == LinearKind::kFp8Rounded;
  return tokens * (is_fp8 ? 2 : 4) + ceil_div(part.units, tiles) * kUnitRows * (is_fp8 ? 1 : 2);
}

/// Shares `tiles` tiles out so that the busiest block reads least.
bool share_tiles(const LinearWave& args, int tiles, WaveCut& cut) {
  int left = tiles;
  for (int p = 0; p < args.parts; ++p) {
    cut.tiles[p] = ceil_div(args.part[p].units, kMostUnits);
    left -= cut.tiles[p];
  }
  if (left < 0) return false;
  for (;;) {
    int busiest = 0, most = 0;
    for (int p = 0; p < args.parts; ++p) {
      const int bytes = column_bytes(args.part[p], cut.tokens, cut.tiles[p]);
      if (bytes > most) {
        most = bytes;
        busiest = p;
      }
    }
    const int units = args.part[busiest].units;
    const int busy = ceil_div(units, cut.tiles[busiest]);
    const int more = busy > 1 ? ceil_div(units, busy - 1) - cut.tiles[busiest] : left + 1;
    if (more > left) break;
    cut.tiles[busiest] += more;
    left -= more;
  }
  // Those without units help to split the inputs.
  cut.tiles[0] += std::clamp(kSplittingTiles - (tiles - left), 0, left);
  return true;
}

}  // namespace

WaveCut wave_cut(const LinearWave& args, int multiprocessors) {
  int units = 0, bf16_units = 0;
  for (int p = 0; p < args.parts; ++p) {
    const WavePart& part = args.part[p];
    units += part.units;
    if (part.kind == LinearKind::kBf16) bf16_units += part.units;
    // A unit's rows share their scales.
    for (int i = part.first_product; i < part.first_product + part.count; ++i)
      if (args.groups > 1 && args.products[i].group_rows % kUnitRows != 0) return {};
  }
  if (bf16_units * kUnitsForBf16 > units) return {};
  WaveCut cut{.tokens = args.tokens > kFewTokens ? kMostWaveTokens : kFewTokens};
  if (!share_tiles(args, multiprocessors / (args.slices * args.groups), cut)) return {};
  int most = 0;  // units of a block
  for (int p = 0; p < args.parts; ++p)
    most = std::max(most, ceil_div(args.part[p].units, cut.tiles[p]));
  if (args.tokens <= kFewTokens && most <= kWaveGroups) return {};
  return cut;
}

}  // namespace quatrain::cuda

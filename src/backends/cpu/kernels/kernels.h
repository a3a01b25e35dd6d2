// SPDX-License-Identifier: Apache-2.0
// The kernels of one instruction set, as a table of functions on raw pointers.
//
// A kernel's result for a row depends on that row alone: sums run in one order whatever the number
// of rows. Instruction sets may differ from each other in the last bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backends/cpu/kernels/isa.h"

namespace quatrain {

/// Output rows that one panel holds, and so one product computes together.
inline constexpr std::int64_t kPanelRows = 32;
/// Columns that share one FP32 multiplier in the panels of unquantised and FP8 weights.
inline constexpr std::int64_t kPanelBlock = 128;
/// Columns that share one integer sum: an NVFP4 block.
inline constexpr std::int64_t kInt8Block = 16;
/// Columns that share one scale of int8 activations and whose products are added, exactly as a
/// rule, before they join the running sum. docs/numerics.md has the measurement.
inline constexpr std::int64_t kInt8Chunk = 32;
/// Columns that one Int8Activations holds.
inline constexpr std::int64_t kInt8Group = 128;

enum class PanelFormat : std::uint8_t { kF32, kF16, kBf16, kFp8, kNvfp4, kMxfp4 };
inline constexpr int kPanelFormats = 6;

/// 32 output rows of a matrix. panel_matrix.h describes `data`.
struct Panel {
  const std::byte* data = nullptr;
  std::int64_t cols = 0;
  const float* block_scales = nullptr;  ///< [⌈cols/128⌉]; not for the 4-bit formats
  const float* row_scales = nullptr;    ///< [32]; results are multiplied by them
};

/// 128 consecutive activations of a row as int8: x[c] ≈ values[c] · scales[c / 32] · row_scale;
/// columns that the row does not have are 0. Scales are powers of two, those of 32 columns between
/// 2^-24 and 1, so that values times scales are exact in BF16 and far from FP32's limits. An offset
/// is −12 times the sum of a block's values: weight codes are multiplied as 2w + 12.
struct alignas(64) Int8Activations {
  std::int8_t values[kInt8Group];
  std::int32_t offsets[kInt8Group / kInt8Block];
  float scales[kInt8Group / kInt8Chunk];
  float row_scale;  ///< the same in all groups of a row; NaN where the row has no finite maximum
};

/// out[t][n] = Σ_c W[n][c] x[t][c] for the panel's 32 rows n and a fixed number of tokens t.
using FloatProduct = void (*)(const Panel& panel, const float* const* x, float* const* out);
using Int8Product = void (*)(const Panel& panel, const Int8Activations* const* x,
                             float* const* out);

/// Rows of activations as matrix tiles take them: tiles of 16 rows and 32 columns of BF16. Int8
/// activations are integers times the scale of their 32 columns. FP32 ones are the sum of two BF16
/// values, a tile of the first parts before one of the second.
///
/// For each group of 128 columns, padded with zeros, the blocks of 16 rows follow each other, for
/// each block the tiles of the group. Rows that nobody set may be anything.
struct TileInputs {
  static constexpr std::int64_t kBlock = 16;
  static constexpr std::int64_t kColumns = 32;

  std::uint16_t* values = nullptr;  ///< on a cache line
  float* scales = nullptr;          ///< [16 blocks], row scales of int8 activations
  std::int64_t blocks = 0;
  int parts = 1;  ///< BF16 values for each activation

  std::int64_t block_values() const { return kBlock * kInt8Group * parts; }
  std::int64_t group_values() const { return blocks * block_values(); }
  /// Columns 0–31 of a group; the next tile is kBlock · kColumns further.
  std::uint16_t* tile_row(std::int64_t row, std::int64_t group) const {
    return values + group * group_values() + row / kBlock * block_values() +
           row % kBlock * kColumns;
  }
  float* scale(std::int64_t row) const { return scales + row; }
};

/// Most rows of activations of one TileTask, and most output rows.
inline constexpr std::int64_t kTileTokens = 512;
inline constexpr std::int64_t kTileRows = 8 * kPanelRows;

/// Products of up to eight panels, of one format and with as many columns, with rows
/// [first_row, first_row + tokens) of x.
struct TileTask {
  /// Rows of activations that are multiplied together. Their sums with a panel are four tiles: of
  /// the first 16 of them with the panel's first and last 16 rows, then of the last 16.
  static constexpr std::int64_t kBlockRows = 32;

  Panel panels[kTileRows / kPanelRows];
  int panel_count = 0;
  TileInputs x;
  std::int64_t first_row = 0;  ///< a multiple of 16
  std::int64_t tokens = 0;     ///< at most kTileTokens
  float* sums = nullptr;       ///< room for kTileTokens · kTileRows, on a cache line

  float* block_sums(std::int64_t token, int panel) const {
    return sums + (token / kBlockRows * panel_count + panel) * kBlockRows * kPanelRows;
  }
};
/// Computes the sums of a task.
using TileProduct = void (*)(const TileTask& task);
/// out[32 i + n] = row n of panel i · row first_row + t of x: row t of the sums, times their
/// scales.
using TileRow = void (*)(const TileTask& task, std::int64_t t, float* out);

/// Attention of `heads` queries of one token over the same keys (which are the values, too).
struct AttendTask {
  const float* q = nullptr;            // [heads, width]
  const float* const* keys = nullptr;  // [count] rows of `width`
  const float* sinks = nullptr;        // [heads]
  std::int64_t heads = 0;
  std::int64_t width = 0;
  std::int64_t count = 0;
  float scale = 1;
  float* scores = nullptr;  // scratch [heads, count]
  float* out = nullptr;     // [heads, width]
};

struct CpuKernels {
  static constexpr int kMaxTile = 8;

  CpuIsa isa = CpuIsa::kPlain;
  int float_tile = 0;  ///< most tokens of one float_product; 0: no products, weights stay as stored
  int int8_tile = 0;
  FloatProduct float_product[kPanelFormats][kMaxTile + 1] = {};  ///< by format and tokens
  Int8Product nvfp4_int8[kMaxTile + 1] = {};
  Int8Product mxfp4_int8[kMaxTile + 1] = {};

  /// Products on matrix tiles, by format; null where there are none. `int8_tiles` have the bits of
  /// the int8 products for panels with exact chunks (panel_matrix.h) and pay from
  /// `int8_tile_tokens` rows on; `float_tiles` serve any number of rows, and block scales that are
  /// powers of two.
  TileProduct int8_tiles[kPanelFormats] = {};
  TileProduct float_tiles[kPanelFormats] = {};
  TileRow int8_tile_row = nullptr;
  TileRow float_tile_row = nullptr;
  std::int64_t int8_tile_tokens = 0;
  /// Sets a row of the inputs of the int8_tiles of `format`.
  void (*expand_int8)(PanelFormat format, const Int8Activations* x, std::int64_t groups,
                      const TileInputs& inputs, std::int64_t row) = nullptr;
  /// Sets a row of n values of the inputs of float_tiles.
  void (*split_floats)(const float* x, std::int64_t n, const TileInputs& inputs,
                       std::int64_t row) = nullptr;

  /// Rounds a row to int8, ⌈n / 128⌉ groups; n is a multiple of 16. The definition is
  /// int8_quantise_row() in activation_quant.h.
  void (*quantise_int8)(const float* x, std::int64_t n, Int8Activations* out) = nullptr;

  float (*dot)(const float* a, const float* b, std::int64_t n) = nullptr;
  /// out[k] = Σ_h weights[h] · max(0, q[h] · keys[k])
  void (*index_scores)(const float* q, const float* weights, const float* const* keys,
                       std::int64_t heads, std::int64_t width, std::int64_t count,
                       float* out) = nullptr;
  void (*attend)(const AttendTask& task) = nullptr;
  void (*rms_norm)(const float* x, const float* weight, std::int64_t n, float eps,
                   float* out) = nullptr;
  void (*swiglu)(const float* gate, const float* up, std::int64_t n, float limit,
                 float* out) = nullptr;
  /// out += w · x
  void (*add_scaled)(const float* x, float w, std::int64_t n, float* out) = nullptr;
  /// out = Σ_s w[s] x[s, :], for n of the streams' `stride` columns
  void (*weighted_sum)(const float* x, const float* w, std::int64_t streams, std::int64_t stride,
                       std::int64_t n, float* out) = nullptr;
  /// The update of hc_post for n of one token's `stride` columns.
  void (*mix_streams)(const float* f, const float* post, const float* comb, std::int64_t hc,
                      std::int64_t stride, std::int64_t n, float* streams) = nullptr;
  /// sums[i] = Σ_s Σ_c fn[i, s, c] x[s, c] over n of the `stride` columns of each stream, for i <
  /// mixes; sums[mixes] = Σ x².
  void (*site_sums)(const float* x, const float* fn, std::int64_t mixes, std::int64_t streams,
                    std::int64_t stride, std::int64_t n, float* sums) = nullptr;
  /// Pools windows: out[c] = softmax over i of scores[i][c], applied to values[i][c].
  void (*pool)(const float* const* values, const float* const* scores, std::int64_t count,
               std::int64_t n, float* out) = nullptr;
};

/// The kernels of an instruction set, which the machine must have. Those of kPlain are the
/// definitions; it has no panel products.
const CpuKernels& select_kernels(CpuIsa isa);

}  // namespace quatrain

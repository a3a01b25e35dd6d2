// SPDX-License-Identifier: Apache-2.0
// Runs a panel product over any number of tokens, and for part of the panel's rows.
#pragma once

#include <algorithm>
#include <cstring>

#include "backends/cpu/kernels/panel_matrix.h"

namespace quatrain {

/// Row t of a task's sums, times their scales, of which the matrix has only the first `rows`.
inline void store_tile_row(TileRow tile_row, const TileTask& task, std::int64_t t,
                           std::int64_t rows, float* out) {
  if (rows >= task.panel_count * kPanelRows) return tile_row(task, t, out);
  alignas(64) float row[kTileRows];
  tile_row(task, t, row);
  std::copy_n(row, rows, out);
}

/// The rows of a panel that are wanted.
struct PanelRows {
  std::int64_t first = 0;
  std::int64_t last = kPanelRows;
};

/// out(t)[n] = W[32 p + n] · x(t) for the wanted rows n of panel p and t < tokens. `x(t)` is what
/// the kernel takes (const float* or const Int8Activations*), `out(t)` a float* for row 0 of the
/// panel. `products` are a kernel's by number of tokens, up to `tile`.
template <class Product, class X, class Out>
void multiply_panel(const Product* products, int tile, const Panel& panel, PanelRows rows,
                    std::int64_t tokens, X&& x, Out&& out) {
  constexpr int kMost = CpuKernels::kMaxTile;
  const bool whole = rows.first == 0 && rows.last == kPanelRows;
  alignas(64) float buffer[kMost][kPanelRows];
  decltype(x(std::int64_t{})) inputs[kMost];
  float* outputs[kMost];
  for (std::int64_t begin = 0; begin < tokens; begin += tile) {
    const auto count = static_cast<int>(std::min<std::int64_t>(tile, tokens - begin));
    for (int i = 0; i < count; ++i) {
      inputs[i] = x(begin + i);
      outputs[i] = whole ? out(begin + i) : buffer[i];
    }
    products[count](panel, inputs, outputs);
    if (whole) continue;
    for (int i = 0; i < count; ++i)
      std::memcpy(out(begin + i) + rows.first, buffer[i] + rows.first,
                  static_cast<std::size_t>(rows.last - rows.first) * sizeof(float));
  }
}

template <class X, class Out>
void multiply_floats(const CpuKernels& kernels, const PanelMatrix& w, std::int64_t p,
                     PanelRows rows, std::int64_t tokens, X&& x, Out&& out) {
  multiply_panel(kernels.float_product[static_cast<int>(w.format())], kernels.float_tile,
                 w.panel(p), rows, tokens, x, out);
}

/// For the 4-bit formats.
template <class X, class Out>
void multiply_int8(const CpuKernels& kernels, const PanelMatrix& w, std::int64_t p, PanelRows rows,
                   std::int64_t tokens, X&& x, Out&& out) {
  multiply_panel(w.format() == PanelFormat::kNvfp4 ? kernels.nvfp4_int8 : kernels.mxfp4_int8,
                 kernels.int8_tile, w.panel(p), rows, tokens, x, out);
}

/// The rows of panel p that the matrix has.
inline PanelRows existing_rows(const PanelMatrix& w, std::int64_t p) {
  return {0, std::min(kPanelRows, w.rows() - p * kPanelRows)};
}

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// Rounding of activations to NVFP4 and FP8 on the device, bit for bit as
// backends/cpu/activation_quant.cpp.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace quatrain::cuda {

struct RoundRowsArgs {
  const float* x = nullptr;
  const int* row_map = nullptr;  // [rows] row of x that row r is made from, or null for r itself
  const int* batch_slots =
      nullptr;             // rows of a token whose slot is −1 are skipped; null skips none
  int rows_per_token = 1;  // row r belongs to token r / rows_per_token
  int rows = 0;
  int cols = 0;                          // multiple of 16
  const float* global_scales = nullptr;  // [rows], or null: max|row| / 2688, at least 1e-30
  float* out = nullptr;                  // [rows, cols]; may be x when row_map is null
  // With `units` out is left in units of the global scale, e2m1 · e4m3, which BF16 holds exactly:
  // the product multiplies the scale back in. row_scales [rows] receives it, when not null.
  bool units = false;
  float* row_scales = nullptr;
};

/// out[r] = x[row_map[r]] rounded to NVFP4 with the row's global scale
void nvfp4_round_rows(const RoundRowsArgs& args, cudaStream_t stream);

/// FP8 on the grid of core/fp8_activations.h. Outputs that are null are not wanted.
struct Fp8RowsArgs {
  const float* x = nullptr;
  const float* up = nullptr;     // as x: what is quantised is swiglu(x, up); null for x itself
  float limit = 0;               // of swiglu
  const int* row_map = nullptr;  // [rows] row of x (and up) that row r is made from, or null for r
  int rows = 0;
  int cols = 0;                   // multiple of 4
  std::uint8_t* codes = nullptr;  // [rows, cols] E4M3
  // The scale of row r and block b of 128 columns is at r * scale_row + b * scale_block.
  float* scales = nullptr;
  std::int64_t scale_row = 0;
  std::int64_t scale_block = 1;
  float* out = nullptr;  // [rows, cols] codes times scales; may be x where there is no row_map
};

void fp8_quantise_rows(const Fp8RowsArgs& args, cudaStream_t stream);

}  // namespace quatrain::cuda

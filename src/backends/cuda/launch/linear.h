// SPDX-License-Identifier: Apache-2.0
// Products of FP32 activations with weights in device memory, several weights of one input at once.
//
// THE ORDER OF A SUM. Columns are taken in blocks of 128 and slices of kSliceBlocks blocks. The
// products of a block are summed by tensor cores, 16 columns at a time, for both 16-bit parts of
// the input; blocks of a slice are added in order, scaled; slices are added in order. All of that
// depends on the matrix alone, so a row of x gives the same bits alone, among others and in any
// launch.
//
// INPUTS are split into two 16-bit parts. For FP8 weights these are F16, which decodes E4M3 exactly
// in one instruction, with a power of two per token and block: 22 bits, or 11 where rounded inputs
// have one part. For the others BF16: 16 bits, any range.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "backends/cuda/launch/matrix.h"

namespace quatrain::cuda {

inline constexpr int kLinearBlock = 128;  // columns
inline constexpr int kSliceBlocks = 8;    // blocks of a slice: 1024 columns
inline constexpr int kStripRows = 16;     // of a warp's products
/// Weights of one launch.
inline constexpr int kMaxProducts = 8;

/// How weights and inputs become operands of tensor cores.
enum class LinearKind : std::uint8_t {
  kFp8,
  kFp8Rounded,  ///< with inputs of one part, the grid of core/f16_activations.h
  kBf16,
  kNvfp4,
  kMxfp4
};

struct Product {
  Matrix w;              // [rows, cols]
  float* out = nullptr;  // [tokens, rows]
  /// Of FP8 weights: inputs are rounded to the grid of core/f16_activations.h, or are on it.
  bool rounded_inputs = false;
};

struct LinearsArgs {
  const float* x = nullptr;   // [tokens, groups, cols]
  const float* up = nullptr;  // as x: the input is swiglu(x, up); null for x itself
  float limit = 0;            // of swiglu
  int tokens = 0;
  int groups = 1;  // group g of the rows of a weight reads group g of the inputs
  int count = 0;
  Product products[kMaxProducts] = {};  // all of the same cols
};

/// Inputs of a launch, and how their columns are cut.
struct LinearInputs {
  const float* x = nullptr;  // as in LinearsArgs
  const float* up = nullptr;
  float limit = 0;
  int tokens = 0;
  int groups = 1;
  int cols = 0;
  int slices = 0;  // of the columns
};

/// Where blocks meet that share inputs or an output; zero at first, and left as the next launch
/// needs it.
struct alignas(128) LinearMeeting {
  std::uint32_t arrivals;
};

/// Memory for the split inputs and the sums of many tokens. Without it, or where it is too small,
/// the weights are read once more for every 8 tokens.
struct LinearScratch {
  void* memory = nullptr;
  std::int64_t bytes = 0;
  LinearMeeting* meetings = nullptr;  ///< [2 multiprocessors()]
};

/// Whether linears() takes the matrix: a format it knows, in rows of whole 16-byte words.
bool has_fast_linear(const Matrix& w);

/// How linears() chooses by tokens, for people to read.
std::string describe_linears();

/// Multiprocessors of the device in use.
int multiprocessors();

/// out_i[t, n] = Σ_k x[t, g(n), k] W_i[n, k]; has_fast_linear() must hold for every W_i.
void linears(const LinearsArgs& args, const LinearScratch& scratch, cudaStream_t stream);

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// Launches of the operations on single rows: embedding, norms, rotations, grids, activations.
//
// All only enqueue work. Pointers are to device memory, rows are contiguous, and rows = 0 launches
// nothing.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace quatrain::cuda {

struct EmbedArgs {
  const int* ids = nullptr;     // [rows]
  const void* table = nullptr;  // BF16 or F32 [V, width]
  bool table_is_bf16 = true;
  int rows = 0;
  int copies = 0;
  int width = 0;
  float* streams = nullptr;  // [rows, copies, width]
};
/// streams[t, s] = table[ids[t]]
void embed(const EmbedArgs& args, cudaStream_t stream);

struct RmsNormArgs {
  const float* x = nullptr;       // [rows, width]
  const float* weight = nullptr;  // [width], or null
  std::int64_t rows = 0;
  int width = 0;
  float eps = 0;
  float* out = nullptr;  // [rows, width]; may be x
};
/// out = x / sqrt(mean(x²) + eps) · weight
void rms_norm(const RmsNormArgs& args, cudaStream_t stream);

struct RopeArgs {
  float* x = nullptr;               // [rows, heads, width]
  const int* positions = nullptr;   // [rows]
  const float* inv_freq = nullptr;  // [pairs]
  int rows = 0;
  int heads = 0;
  int width = 0;
  int pairs = 0;
  bool inverse = false;
};
/// Rotates the last `pairs` interleaved pairs of every row by ±position·inv_freq, in place.
void rope(const RopeArgs& args, cudaStream_t stream);

inline constexpr int kMaxNormRopeWidth = 1536;

struct NormRopeArgs {
  struct Array {
    float* x = nullptr;  // [rows, heads, width]; width even, at most kMaxNormRopeWidth
    bool norm = true;
    const float* weight = nullptr;    // [width], or null
    const float* inv_freq = nullptr;  // [pairs]
    int heads = 0;
    int width = 0;
    int pairs = 0;
  };
  Array arrays[2];
  int count = 0;
  const int* positions = nullptr;  // [rows]
  int rows = 0;
  float eps = 0;
};
/// rms_norm of every row of the arrays where asked for, then rope, in place. The positions are
/// those of a step.
void norm_rope(const NormRopeArgs& args, cudaStream_t stream);

enum class Grid : std::uint8_t {
  kNone,
  kFp8,          ///< E4M3 with a power-of-two scale per 64 columns, on all but the rotary dims
  kHadamardFp4,  ///< Hadamard transform, then E2M1 with a power-of-two scale per 32 columns
};

struct RoundToGridArgs {
  float* x = nullptr;  // [rows, width]; for kHadamardFp4 width is a power of two
  std::int64_t rows = 0;
  int width = 0;
  Grid grid = Grid::kNone;
  int rope_dim = 0;
};
/// Rounds every row to the grid, in place.
void round_to_grid(const RoundToGridArgs& args, cudaStream_t stream);

struct SwiGluArgs {
  const float* gate = nullptr;  // [count]
  const float* up = nullptr;    // [count]
  std::int64_t count = 0;
  float limit = 0;       // 0: no clamp
  float* out = nullptr;  // [count]; may be gate
};
/// out = silu(min(gate, limit)) · clamp(up, ±limit)
void swiglu(const SwiGluArgs& args, cudaStream_t stream);

/// out[i] = x[rows[i]]: x [.., words], rows [count], out [count, words] of 32-bit words.
struct GatherRowsArgs {
  const std::uint32_t* x = nullptr;
  const int* rows = nullptr;
  int count = 0;
  std::int64_t words = 0;
  std::uint32_t* out = nullptr;
};
void gather_rows(const GatherRowsArgs& args, cudaStream_t stream);

struct AddToStreamsArgs {
  const float* e = nullptr;  // [rows, width]
  int rows = 0;
  int copies = 0;
  int width = 0;
  float* streams = nullptr;  // [rows, copies, width]
};
/// streams[t, s] += e[t]
void add_to_streams(const AddToStreamsArgs& args, cudaStream_t stream);

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// Routed experts in NVFP4 on Hopper: packing, and both projections of a layer.
//
// Weights enter the tensor cores as BF16, which holds every E2M1 · E4M3 product; inputs as one BF16
// part, or as two, which keeps 16 bits of them; sums are FP32. Global scales multiply FP32 sums.
// A slot is a (token, choice) pair, t * k + i.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backends/cuda/launch/divisor.h"
#include "backends/cuda/launch/experts_config.h"
#include "backends/cuda/launch/experts_decode_layout.h"
#include "backends/cuda/launch/experts_layout.h"

namespace quatrain::cuda {

struct PackArgs {
  const std::uint8_t* scales = nullptr;  // E4M3 [rows, cols / 16]
  const std::uint8_t* codes = nullptr;   // E2M1 pairs [rows, cols / 2]
  int rows = 0;
  int cols = 0;                          // multiple of 16
  PackedRows kind = PackedRows::kPlain;  // gate rows are packed before the up rows beside them
  PackedShape shape;                     // of the packed matrix
  std::uint8_t* out = nullptr;           // its bytes, zero at first
  const std::int8_t* tops = nullptr;     // [rows] of fp8_row_tops(), of experts for FP8 inputs
};

/// Puts the scales into their places, as they are; pack_codes() turns them into packed scales.
void pack_scales(const PackArgs& args, cudaStream_t stream);
/// Puts the codes into their places. Scales must have been packed before. With `tops` the words are
/// those for FP8.
void pack_codes(const PackArgs& args, cudaStream_t stream);

/// The packed experts of a layer: expert e's matrices start at e times their size.
struct PackedExpertsView {
  int experts = 0;
  int hidden = 0;
  int inner = 0;
  const std::uint8_t* first = nullptr;   // gate and up
  const std::uint8_t* second = nullptr;  // down
  const float* gate_scales = nullptr;    // [E] global scales
  const float* up_scales = nullptr;
  const float* down_scales = nullptr;
  bool fp8 = false;  // packed for FP8 inputs
};

/// What routing gave, by token; and the parts of numerics that both kernels share.
struct RoutedTokens {
  const int* ids = nullptr;          // [T, k]
  const int* batch_slots = nullptr;  // [T], −1 marks padding: such rows are left alone
  const float* weights = nullptr;    // [T, k]
  int tokens = 0;
  int k = 0;
  int parts = 1;              // BF16 parts of an input
  bool weight_first = false;  // weights multiply what the second projection reads
  float limit = 0;            // of SwiGLU
};

/// Rows of BF16 that a projection reads: [rows, parts, padded columns] for the prefill kernel,
/// [rows, chunks, parts, 256] for the decode kernel, by decode_input_place().
struct InputRows {
  std::uint16_t* values = nullptr;
  Divisor slots_per_row{};            // slot s reads row s / slots_per_row
  const float* row_scales = nullptr;  // multiply the products of a row; null for 1
};

/// Words that the decode kernel's blocks meet at, for one stream and zero at first: a grid barrier,
/// and a count for each of `tiles` tiles of tokens, of which there are no more than slots.
inline constexpr int kGridBarrierWords = 32;
inline int decode_sync_words(int tiles) { return kGridBarrierWords + tiles; }

/// One launch over one or both projections. Whichever comes first converts `source` to BF16.
struct DecodeArgs {
  PackedExpertsView w;
  RoutedTokens routed;
  bool first = true;              // hidden = swiglu(first projection)
  bool second = true;             // out += Σ weights · second projection
  const float* source = nullptr;  // [source_rows, hidden], or [.., inner] without `first`
  int source_rows = 0;
  InputRows inputs;               // of the first projection
  InputRows middle;               // of the second; written by the first one when both run
  float* hidden = nullptr;        // F32 [T * k, inner]; written when only the first projection runs
  float* outputs = nullptr;       // F32 [T * k, hidden], by slot
  float* out = nullptr;           // F32 [T, hidden], added to
  std::uint32_t* sync = nullptr;  // decode_sync_words()
  Divisor blocks{}, columns{};    // of the grid and of `out`: set by experts_decode(), and
  Divisor groups[2]{};            // of rows in both projections of an expert, and
  DecodeLayout at{};              // of shared memory, and
  bool own_inputs = false;        // every block converts all of `source` for itself, and
  std::uint32_t scale_place = 0;  // kScaleFloatPlace
};

/// A few tokens: bound by the bytes of the weights. A row's bits depend on nothing but the row.
void experts_decode(DecodeArgs args, const DecodeConfig& config, cudaStream_t stream);

/// Up to kWidestPass slots of one expert: sorted[first, first + count), in one pass over its
/// weights.
struct PassTile {
  int expert = 0;
  int first = 0;
  int count = 0;
  int width = 0;  // of the products: a multiple of 8 that holds the count
};
inline constexpr int kWidestPass = 128;
inline constexpr int kWidestFp8Pass = 112;   // twice as many sums take more registers
inline constexpr int kWidestWidePass = 208;  // of FP8 inputs, two products to an operand

/// The most tiles of any width up to kWidestFp8Pass that `slots` slots of `experts` experts make.
inline int most_pass_tiles(int slots, int experts) {
  return (slots < experts ? slots : experts) + slots / kWidestFp8Pass;
}

/// tiles[0, *count): the slots of every expert cut evenly into tiles of one width, `widest` at
/// most, the widest tiles first. `offsets` as SortArgs.
void list_pass_tiles(const int* offsets, int experts, int widest, PassTile* tiles, int* count,
                     cudaStream_t stream);

/// to[r] = the BF16 parts of x[r], columns padded with zeros to whole chunks
void convert_rows(const float* x, int rows, int cols, int parts, std::uint16_t* to,
                  cudaStream_t stream);

/// Rows on the grid of core/fp8_activations.h.
struct Fp8Rows {
  std::uint8_t* codes = nullptr;  // [rows, padded columns], columns at fp8_input_place()
  float* scales = nullptr;        // [rows, padded columns / 128]
};

/// to[r] = x[r], columns padded with zeros to whole chunks
void quantise_expert_rows(const float* x, int rows, int cols, const Fp8Rows& to,
                          cudaStream_t stream);

/// One projection for many tokens: bound by the tensor cores.
struct PrefillArgs {
  PackedExpertsView w;
  RoutedTokens routed;
  bool first = true;  // hidden = swiglu(first projection), or out = second projection
  InputRows inputs = {};
  const int* sorted = nullptr;  // as SortArgs
  const PassTile* tiles = nullptr;
  const int* tile_count = nullptr;
  // Where results go: of the first projection to one of the first two, of the second to one of the
  // others, of which BF16 is for inputs of one part.
  std::uint16_t* hidden16 = nullptr;   // [T * k, parts, padded inner]
  float* hidden = nullptr;             // [T * k, inner]
  std::uint16_t* outputs16 = nullptr;  // [T * k, hidden]
  float* outputs = nullptr;            // [T * k, hidden]
  int blocks = 0;                      // one per multiprocessor
};

void experts_prefill(const PrefillArgs& args, cudaStream_t stream);

/// The same of experts packed for FP8 inputs, at most kWidestFp8Pass slots to a tile.
struct Fp8PrefillArgs {
  PrefillArgs common;  // of its inputs only slots_per_row; of the places of results, outputs16
  Fp8Rows inputs = {};
  Fp8Rows hidden = {};  // [T * k] of the first projection
};

void experts_prefill_fp8(const Fp8PrefillArgs& args, cudaStream_t stream);

/// The same with up to kWidestWidePass slots to a tile.
void experts_prefill_fp8_wide(const Fp8PrefillArgs& args, cudaStream_t stream);

}  // namespace quatrain::cuda

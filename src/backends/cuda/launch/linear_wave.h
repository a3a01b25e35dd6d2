// SPDX-License-Identifier: Apache-2.0
// Several products of one input by some dozens of tokens, in one launch all of whose blocks the
// chip holds at once: what linears() hands to linear_wave.cu, and how it is cut.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "backends/cuda/launch/divisor.h"
#include "backends/cuda/launch/linear.h"
#include "backends/cuda/launch/linear_stream.h"

namespace quatrain::cuda {

inline constexpr int kMostWaveTokens = 64;
/// Rows of a unit, which a warpgroup multiplies by one slice of the columns.
inline constexpr int kUnitRows = 64;
inline constexpr int kWaveGroups = 4;
/// Units of a block.
inline constexpr int kMostUnits = 6;

struct WavePart {
  LinearKind kind = LinearKind::kBf16;
  int first_product = 0;
  int count = 0;
  int units = 0;          // of a group, all products together
  Divisor tiles{};        // set by multiply_wave(): the blocks that share a group's, by slice, and
  int first_tile = 0;     // of all parts, and all groups of those before
  char* blobs = nullptr;  // [groups][blocks of columns]: split inputs
};

struct LinearWave : LinearInputs {
  static constexpr int kMostParts = 2;  // kinds of weights
  int parts = 0;
  WavePart part[kMostParts] = {};
  MappedProduct products[kMaxProducts] = {};
  // Set by multiply_wave().
  Divisor slice_of{};      // the slices of the columns
  int tiles = 0;           // of a group, of all parts
  float4* sums = nullptr;  // [blocks][units][token tiles of 8][threads of a warpgroup]
  // [2][blocks]: of inputs, by group and slice; of sums, by tile
  LinearMeeting* meetings = nullptr;
};

/// Tokens that blocks have room for, 0 where the launch has no cut; of each part, among how many
/// blocks the units of a group are shared out for every slice.
struct WaveCut {
  int tokens = 0;
  int tiles[LinearWave::kMostParts] = {};
};
/// The cut whose busiest block reads least: a function of the problem and the chip alone.
WaveCut wave_cut(const LinearWave& args, int multiprocessors);

/// Takes FP8 weights with rounded inputs, and few BF16 weights beside them, by 64 tokens at most.
/// Returns whether it takes the launch and the scratch has room for it; if not, nothing is
/// enqueued.
bool multiply_wave(const LinearStream& args, const LinearScratch& scratch, cudaStream_t stream);

}  // namespace quatrain::cuda

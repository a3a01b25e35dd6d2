// SPDX-License-Identifier: Apache-2.0
// Which kernel runs routed NVFP4 experts, and how: a pure function of the problem and the chip.
#pragma once

#include <cstdint>
#include <string>

namespace quatrain::cuda {

/// What the choice depends on; token and expert counts are those a launch is sized for.
struct ExpertsProblem {
  int tokens = 0;
  int k = 0;
  int experts = 0;
  int hidden = 0;
  int inner = 0;
  int parts = 1;  // BF16 parts of an input
};

struct ChipLimits {
  int multiprocessors = 0;
  int shared_bytes = 0;  // that one block may have
};

/// Byte offsets into the decode kernel's shared memory; the rings start at 0.
struct DecodeLayout {
  int sums;  // [rounds, stream warps, slabs, tokens / 8, 32 lanes] of 16 bytes
  int own_inputs;
  int barriers;
  int tiles, sorted, ids, ranks, offsets;
  int state;
  int bytes;

  /// Whether every block has room for the inputs of the first projection.
  bool has_own_inputs() const { return barriers > own_inputs; }
};

/// The decode kernel's shape.
struct DecodeConfig {
  int tile_tokens = 8;  // 8 or 16 tokens of an expert per pass over its weights
  int parts = 1;
  int blocks = 0;  // one per multiprocessor
  DecodeLayout at = {};
};

/// The most tokens of k experts each that one launch of the decode kernel takes: it sorts slots in
/// shared memory, and with more of them a pass over the weights is bound by the tensor cores.
int decode_max_tokens(int k);

/// The fewest tokens of k of so many experts each for which experts with FP8 inputs take wide
/// passes: where an average expert has more tokens than one narrow pass.
int first_wide_tokens(int k, int experts);

/// Throws Error when the chip's shared memory is too small for the problem.
DecodeConfig decode_config(const ExpertsProblem& problem, const ChipLimits& chip);

/// "decode: 8 tokens per pass, 132 blocks, 144000 bytes of shared memory", for reports.
std::string describe(const DecodeConfig& config);

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// The choice of kernel and shape for routed NVFP4 experts.
#include "backends/cuda/launch/experts_config.h"

#include <algorithm>

#include "backends/cuda/launch/experts.h"
#include "backends/cuda/launch/experts_decode_layout.h"
#include "core/error.h"

namespace quatrain::cuda {
namespace {

constexpr int kMostTokens = 256;
constexpr int kMostSlots = 1536;

// Up to so many tokens of an average expert, few experts have more than 8, and those are read twice
// for less than what passes of 16 tokens cost all others.
constexpr int kFewTokens = 6;

int tile_tokens_for(const ExpertsProblem& p) {
  if (p.parts > 1) return 8;  // whose parts take the place of more
  return std::int64_t{p.tokens} * p.k <= std::int64_t{kFewTokens} * p.experts ? 8 : 16;
}

}  // namespace

int decode_max_tokens(int k) { return std::min(kMostTokens, kMostSlots / std::max(1, k)); }

int first_wide_tokens(int k, int experts) { return kWidestFp8Pass * experts / std::max(1, k) + 1; }

DecodeConfig decode_config(const ExpertsProblem& p, const ChipLimits& chip) {
  DecodeConfig config{
      .tile_tokens = tile_tokens_for(p), .parts = p.parts, .blocks = chip.multiprocessors};
  config.at = decode_layout(p, config.tile_tokens);
  if (config.at.bytes > chip.shared_bytes)
    fail("experts: {} tokens of {} experts need {} bytes of shared memory, a block has {}",
         p.tokens, p.experts, config.at.bytes, chip.shared_bytes);
  return config;
}

std::string describe(const DecodeConfig& c) {
  return fmt::format("decode: {} tokens per pass, {} blocks, {} bytes of shared memory",
                     c.tile_tokens, c.blocks, c.at.bytes);
}

}  // namespace quatrain::cuda

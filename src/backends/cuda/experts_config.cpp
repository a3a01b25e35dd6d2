// SPDX-License-Identifier: Apache-2.0
// The choice of kernel and shape for routed NVFP4 experts.
#include "backends/cuda/launch/experts_config.h"

#include <algorithm>

#include "backends/cuda/launch/experts_decode_layout.h"
#include "core/error.h"

namespace quatrain::cuda {
namespace {

constexpr int kMaxStages = 12;
constexpr int kMostTokens = 256;
constexpr int kMostSlots = 2048;

// Tokens per pass: enough for the fullest expert of a step that routes evenly, so that hardly any
// expert's weights are read twice; narrower passes leave more of shared memory to the ring.
int tile_tokens_for(const ExpertsProblem& p) { return p.tokens <= 8 ? 8 : 16; }

}  // namespace

int decode_max_tokens(int k) { return std::min(kMostTokens, kMostSlots / std::max(1, k)); }

DecodeConfig decode_config(const ExpertsProblem& p, const ChipLimits& chip) {
  DecodeConfig config{.tile_tokens = tile_tokens_for(p), .parts = p.parts};
  const int fixed = decode_layout(p, config.tile_tokens, 0).bytes + 16 * kMaxStages;
  const int stage_bytes = decode_stage_bytes(config.tile_tokens, p.parts);
  config.stages = std::min(kMaxStages, (chip.shared_bytes - fixed) / stage_bytes / 2 * 2);
  if (config.stages < 2)
    fail("experts: {} tokens of {} experts need {} bytes of shared memory, a block has {}",
         p.tokens, p.experts, fixed + 2 * stage_bytes, chip.shared_bytes);
  const DecodeLayout layout = decode_layout(p, config.tile_tokens, config.stages);
  config.blocks = chip.multiprocessors;
  config.shared_bytes = layout.bytes;
  // 16 warps of 32 lanes with 16 bytes per 8 tokens.
  config.partial_bytes =
      std::int64_t{config.blocks} * layout.max_pieces * 16 * 32 * 16 * (config.tile_tokens / 8);
  return config;
}

std::string describe(const DecodeConfig& c) {
  return fmt::format("decode: {} tokens per pass, {} stages, {} blocks, {} bytes of shared memory",
                     c.tile_tokens, c.stages, c.blocks, c.shared_bytes);
}

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// Which kernels steps will take, as text.
#include <algorithm>

#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/launch/attention.h"
#include "backends/cuda/launch/experts.h"
#include "backends/cuda/launch/experts_config.h"
#include "backends/cuda/launch/linear_fp8.h"
#include "backends/cuda/tensor_args.h"
#include "core/error.h"

namespace quatrain {
namespace {

std::string range_of(int first, int last) {
  return first == last ? fmt::format("{} row{}", first, first == 1 ? "" : "s")
                       : fmt::format("{} to {} rows", first, last);
}

}  // namespace

std::vector<std::string> CudaOps::kernel_choices() const {
  std::vector<std::string> lines = {"linears: " + cuda::describe_linears()};
  if (limits_.linear_activations == LinearActivations::kFp8)
    lines.push_back(
        fmt::format("linears of FP8 blocks: FP8 tensor cores from {} rows", cuda::kFp8TileTokens));
  if (cache_dtype() == DType::kF16 && limits_.rows >= cuda::kLongStepRows)
    lines.push_back(fmt::format(
        "attention of prompts: from {} rows on blocks that take one row after the other",
        cuda::kLongStepRows));
  if (limits_.num_experts == 0) return lines;

  const int rows = as_int(limits_.rows), k = as_int(limits_.experts_per_token);
  const int most = std::min(rows, cuda::decode_max_tokens(k));
  const auto config_of = [&](int tokens) {
    return cuda::decode_config(
        {.tokens = tokens,
         .k = k,
         .experts = as_int(limits_.num_experts),
         .hidden = as_int(limits_.hidden_size),
         .inner = as_int(limits_.intermediate_size),
         .parts = 1},
        {.multiprocessors = properties_.multiProcessorCount,
         .shared_bytes = static_cast<int>(properties_.sharedMemPerBlockOptin)});
  };
  int first = 1;
  for (int tokens = 1; tokens <= most; ++tokens) {
    const cuda::DecodeConfig config = config_of(tokens);
    if (tokens < most && config_of(tokens + 1).tile_tokens == config.tile_tokens) continue;
    lines.push_back(
        fmt::format("NVFP4 experts, {}: {}", range_of(first, tokens), describe(config)));
    first = tokens + 1;
  }
  if (rows > most)
    lines.push_back(fmt::format(
        "NVFP4 experts, more than {} rows: tensor cores over sorted tokens, in passes of up to {}; "
        "of FP8 inputs {}, from {} rows on {}",
        most, cuda::kWidestPass, cuda::kWidestFp8Pass,
        cuda::first_wide_tokens(k, as_int(limits_.num_experts)), cuda::kWidestWidePass));
  return lines;
}

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// attention_inputs: norms and rotations, and the compressors, side by side in one
// launch: every block does its share of one of them.
#include <algorithm>

#include "backends/cuda/device/compress_window.cuh"
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/norm_rope_rows.cuh"
#include "backends/cuda/launch/attention_inputs.h"
#include "backends/cuda/launch/launch.h"

namespace quatrain::cuda {
namespace {

constexpr int kWarps = 8;
static_assert(kWarps * kWarp >= kNormThreads);

__global__ void __launch_bounds__(kWarps* kWarp)
    attention_inputs_kernel(const __grid_constant__ AttentionInputsArgs args) {
  extern __shared__ float2 scratch[];  // rotations, or an entry
  let_next_start();
  const int block = static_cast<int>(blockIdx.x), r = static_cast<int>(blockIdx.y);
  if (block >= args.count) return norm_rope_block(args.norm_rope, r, block - args.count, scratch);
  const CompressArgs& compressor = args.compressors[block];
  const int slot = compressor.batch.slots[r];
  const Window window(compressor, r);
  const EntryScratch entry(compressor, scratch);
  if (slot >= 0) prepare_entry(compressor, window, entry);
  wait_for_previous();
  if (slot >= 0) compress_row(compressor, window, r, entry);
}

}  // namespace

void attention_inputs(const AttentionInputsArgs& args, cudaStream_t stream) {
  if (args.norm_rope.rows == 0) return;
  std::size_t shared = norm_rope_scratch(args.norm_rope);
  for (int i = 0; i < args.count; ++i)
    shared = std::max(shared, compress_scratch(args.compressors[i]));
  const unsigned blocks =
      norm_rope_blocks(args.norm_rope, kWarps) + static_cast<unsigned>(args.count);
  launch(attention_inputs_kernel,
         {.grid = dim3(blocks, static_cast<unsigned>(args.norm_rope.rows)),
          .block = kWarps * kWarp,
          .shared = shared},
         stream, args);
  for (int i = 0; i < args.count; ++i) keep_chunks(args.compressors[i], stream);
}

}  // namespace quatrain::cuda

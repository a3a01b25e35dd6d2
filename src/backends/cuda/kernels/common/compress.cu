// SPDX-License-Identifier: Apache-2.0
// compress: pools closed windows into entries. A block per row of the step; all but those whose
// window closes do next to nothing, so the grid does not depend on positions.
#include <algorithm>

#include "backends/cuda/device/compress_window.cuh"
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/launch/launch.h"

namespace quatrain::cuda {
namespace {

constexpr int kMaxThreads = 1024;

__global__ void __launch_bounds__(kMaxThreads) compress_kernel(CompressArgs args) {
  extern __shared__ float2 scratch[];
  let_next_start();
  const int r = static_cast<int>(blockIdx.x);
  const bool is_row = args.batch.slots[r] >= 0;
  const Window window(args, r);
  const EntryScratch entry(args, scratch);
  if (is_row) prepare_entry(args, window, entry);
  wait_for_previous();
  if (is_row) compress_row(args, window, r, entry);
}

// Keeps the last rows of chunks of several rows, once all windows of the step have been pooled.
__global__ void keep_kernel(CompressArgs args) {
  let_next_start();
  wait_for_previous();
  const int r = static_cast<int>(blockIdx.x);
  if (args.batch.slots[r] < 0 || is_alone(args.batch, r) ||
      !is_recent(args.batch, r, args.capacity))
    return;
  Window(args, r).keep(r);
}

}  // namespace

void compress(const CompressArgs& args, cudaStream_t stream) {
  if (args.batch.rows == 0) return;
  const int threads = std::min(kMaxThreads / 2, (args.width + kWarp - 1) / kWarp * kWarp);
  const int parts = args.entries.ratio >= kManySlots ? 2 : 1;
  launch(compress_kernel,
         {.grid = static_cast<unsigned>(args.batch.rows),
          .block = static_cast<unsigned>(parts * threads),
          .shared = compress_scratch(args)},
         stream, args);
  keep_chunks(args, stream);
}

void keep_chunks(const CompressArgs& args, cudaStream_t stream) {
  if (args.batch.rows <= 1 || args.batch.is_decode) return;
  launch(keep_kernel,
         {.grid = static_cast<unsigned>(args.batch.rows),
          .block = static_cast<unsigned>(std::min(kMaxThreads / 2, args.channels))},
         stream, args);
}

}  // namespace quatrain::cuda

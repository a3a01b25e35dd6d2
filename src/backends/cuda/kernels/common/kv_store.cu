// SPDX-License-Identifier: Apache-2.0
// kv_store: this step's last rows of each sequence, into its ring.
#include <algorithm>

#include "backends/cuda/device/cache_rows.cuh"
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/sequence_view.cuh"
#include "backends/cuda/launch/cache.h"
#include "backends/cuda/launch/launch.h"

namespace quatrain::cuda {
namespace {

__global__ void store_recent_kernel(StoreRecentArgs args) {
  let_next_start();
  wait_for_previous();
  const int r = static_cast<int>(blockIdx.x);
  const int slot = args.batch.slots[r];
  if (slot < 0 || !is_recent(args.batch, r, args.capacity)) return;
  const std::int64_t row =
      std::int64_t{slot} * args.capacity + args.batch.positions[r] % args.capacity;
  store_row(args.ring, row, args.step + std::int64_t{r} * args.ring.width);
}

}  // namespace

void store_recent(const StoreRecentArgs& args, cudaStream_t stream) {
  if (args.batch.rows == 0) return;
  const int threads = std::min(256, (args.ring.width + 31) / 32 * 32);
  launch(store_recent_kernel,
         {.grid = static_cast<unsigned>(args.batch.rows), .block = static_cast<unsigned>(threads)},
         stream, args);
}

}  // namespace quatrain::cuda

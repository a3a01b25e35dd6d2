// SPDX-License-Identifier: Apache-2.0
// kv_store and the states of compressors: this step's last rows of each sequence, into its ring.
#include <algorithm>

#include "backends/cuda/cuda_check.h"
#include "backends/cuda/device/cache_rows.cuh"
#include "backends/cuda/launch/cache.h"

namespace quatrain::cuda {
namespace {

// Is batch row r among the last `capacity` rows of its sequence in this step? Only those are
// stored, so no two rows of a step write to the same place.
__device__ bool is_recent(const BatchView& batch, int r, int capacity) {
  const int after = r + capacity;
  return after >= batch.rows || batch.first_rows[after] != batch.first_rows[r] ||
         batch.slots[after] != batch.slots[r];
}

__global__ void store_recent_kernel(StoreRecentArgs args) {
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
  store_recent_kernel<<<static_cast<unsigned>(args.batch.rows), threads, 0, stream>>>(args);
  QT_CUDA(cudaGetLastError());
}

}  // namespace quatrain::cuda

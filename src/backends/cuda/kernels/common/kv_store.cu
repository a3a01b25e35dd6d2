// SPDX-License-Identifier: Apache-2.0
// kv_store and the states of compressors: this step's last rows of each sequence, into its ring.
#include <algorithm>

#include "backends/cuda/cuda_check.h"
#include "backends/cuda/launch/cache.h"
#include "core/codec.h"

namespace quatrain::cuda {
namespace {

__device__ void store(float* to, float value) { *to = value; }
__device__ void store(std::uint16_t* to, float value) { *to = bf16_encode(value); }

// Is batch row r among the last `capacity` rows of its sequence in this step? Only those are
// stored, so no two rows of a step write to the same place.
__device__ bool is_recent(const BatchView& batch, int r, int capacity) {
  const int after = r + capacity;
  return after >= batch.rows || batch.first_rows[after] != batch.first_rows[r] ||
         batch.slots[after] != batch.slots[r];
}

template <class T>
__global__ void store_recent_kernel(StoreRecentArgs<T> args) {
  const int r = static_cast<int>(blockIdx.x);
  const int slot = args.batch.slots[r];
  if (slot < 0 || !is_recent(args.batch, r, args.capacity)) return;
  const float* from = args.step + std::int64_t{r} * args.width;
  const std::int64_t row =
      std::int64_t{slot} * args.capacity + args.batch.positions[r] % args.capacity;
  T* to = args.ring + row * args.width;
  for (int c = static_cast<int>(threadIdx.x); c < args.width; c += blockDim.x)
    store(to + c, from[c]);
}

template <class T>
void launch(const StoreRecentArgs<T>& args, cudaStream_t stream) {
  if (args.batch.rows == 0) return;
  const int threads = std::min(256, (args.width + 31) / 32 * 32);
  store_recent_kernel<<<static_cast<unsigned>(args.batch.rows), threads, 0, stream>>>(args);
  QT_CUDA(cudaGetLastError());
}

}  // namespace

void store_recent(const StoreRecentArgs<float>& args, cudaStream_t stream) { launch(args, stream); }
void store_recent(const StoreRecentArgs<std::uint16_t>& args, cudaStream_t stream) {
  launch(args, stream);
}

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// route: scores, choice and weights of the experts, a warp per token.
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/scalar.cuh"
#include "backends/cuda/launch/launch.h"
#include "backends/cuda/launch/routing.h"

namespace quatrain::cuda {
namespace {

constexpr int kWarpsPerBlock = 4;

// The id that lane i < k chooses: the i-th largest key, the lowest id among equals. `keys` is used
// up: a lane reads and clears only its own experts.
__device__ int choose(const RouteArgs& args, unsigned* keys) {
  const int lane = lane_id();
  int mine = 0;
  for (int i = 0; i < args.k; ++i) {
    unsigned best = 0;
    int id = args.experts;
    for (int e = lane; e < args.experts; e += kWarp) {
      const unsigned key = keys[e];
      if (key > best) id = e;  // the first of equals
      best = max(best, key);
    }
    const unsigned largest = __reduce_max_sync(kAllLanes, best);
    id = static_cast<int>(
        __reduce_min_sync(kAllLanes, static_cast<unsigned>(best == largest ? id : args.experts)));
    id = min(id, args.experts - 1);
    if (id % kWarp == lane) keys[id] = 0;
    if (i == lane) mine = id;
  }
  return mine;
}

__global__ void route_kernel(RouteArgs args) {
  extern __shared__ float shared[];  // [kWarpsPerBlock][2][experts]: scores; biases, then keys
  let_next_start();
  const int t = static_cast<int>(blockIdx.x) * kWarpsPerBlock + warp_id();
  const bool is_row = t < args.rows;
  const int lane = lane_id();
  float* score = shared + 2 * warp_id() * args.experts;
  float* bias = score + args.experts;
  auto* keys = reinterpret_cast<unsigned*>(bias);
  int id = 0;
  if (args.bias != nullptr)
    for (int e = lane; e < args.experts; e += kWarp) bias[e] = args.bias[e];
  else if (is_row && lane < args.k)
    id = args.hash_table[static_cast<long long>(args.token_ids[t]) * args.k + lane];
  wait_for_previous();
  if (!is_row) return;
  const float* logits = args.logits + static_cast<long long>(t) * args.experts;
#pragma unroll 8
  for (int e = lane; e < args.experts; e += kWarp) {
    score[e] = sqrt_softplus(logits[e]);
    if (args.bias != nullptr) keys[e] = ordered_key(score[e] + bias[e]);
  }
  if (args.bias != nullptr) id = choose(args, keys);
  __syncwarp();

  // The bias selects only: weights are of the unbiased scores, summed in order of choice.
  const float chosen = score[id];
  float total = 0;
  for (int i = 0; i < args.k; ++i) total += __shfl_sync(kAllLanes, chosen, i);
  if (lane < args.k) {
    const long long at = static_cast<long long>(t) * args.k + lane;
    args.ids[at] = id;
    args.weights[at] = chosen / total * args.scale;
  }
}

}  // namespace

void route(const RouteArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return;
  const auto blocks = static_cast<unsigned>((args.rows + kWarpsPerBlock - 1) / kWarpsPerBlock);
  const std::size_t shared =
      static_cast<std::size_t>(kWarpsPerBlock * 2 * args.experts) * sizeof(float);
  launch(route_kernel, {.grid = blocks, .block = kWarpsPerBlock * kWarp, .shared = shared}, stream,
         args);
}

}  // namespace quatrain::cuda

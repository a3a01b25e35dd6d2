// SPDX-License-Identifier: Apache-2.0
// route: scores, choice and weights of the experts, a block per token: all of its threads find the
// scores, and its first warp chooses.
#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/scalar.cuh"
#include "backends/cuda/launch/launch.h"
#include "backends/cuda/launch/routing.h"

namespace quatrain::cuda {
namespace {

constexpr int kThreads = 256;

// The id that lane i < k chooses: the i-th largest key, the lowest id among equals. A lane holds
// the keys of every 32nd expert, up to kPerLane.
template <int kPerLane>
__device__ int choose(const RouteArgs& args, const unsigned* all) {
  const int lane = lane_id();
  unsigned keys[kPerLane];
#pragma unroll
  for (int j = 0; j < kPerLane; ++j)
    keys[j] = lane + j * kWarp < args.experts ? all[lane + j * kWarp] : 0;
  int mine = 0;
  for (int i = 0; i < args.k; ++i) {
    unsigned best = 0;
    int id = args.experts;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      if (keys[j] > best) id = lane + j * kWarp;  // the first of equals
      best = max(best, keys[j]);
    }
    const unsigned largest = __reduce_max_sync(kAllLanes, best);
    id = static_cast<int>(
        __reduce_min_sync(kAllLanes, static_cast<unsigned>(best == largest ? id : args.experts)));
    id = min(id, args.experts - 1);
#pragma unroll
    for (int j = 0; j < kPerLane; ++j)
      if (lane + j * kWarp == id) keys[j] = 0;
    if (i == lane) mine = id;
  }
  return mine;
}

template <int kPerLane>
__global__ void __launch_bounds__(kThreads) route_kernel(RouteArgs args) {
  __shared__ float scores[kPerLane * kWarp];
  __shared__ unsigned keys[kPerLane * kWarp];
  constexpr int kPerThread = (kPerLane * kWarp + kThreads - 1) / kThreads;
  const long long t = blockIdx.x;
  const int lane = lane_id();
  int id = 0;
  float bias[kPerThread] = {};
  if (args.bias == nullptr) {
    if (lane < args.k)
      id = args.hash_table[static_cast<long long>(args.token_ids[t]) * args.k + lane];
  } else {
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      const int e = static_cast<int>(threadIdx.x) + j * kThreads;
      if (e < args.experts) bias[j] = args.bias[e];
    }
  }
  wait_for_previous();
  let_next_start();
  const float* logits = args.logits + t * args.experts;
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const int e = static_cast<int>(threadIdx.x) + j * kThreads;
    if (e >= args.experts) continue;
    scores[e] = sqrt_softplus(logits[e]);
    keys[e] = ordered_key(scores[e] + bias[j]);
  }
  __syncthreads();
  if (warp_id() > 0) return;
  if (args.bias != nullptr) id = choose<kPerLane>(args, keys);

  // The bias selects only: weights are of the unbiased scores, summed in order of choice.
  const float chosen = scores[id];
  float total = 0;
  for (int i = 0; i < args.k; ++i) total += __shfl_sync(kAllLanes, chosen, i);
  if (lane < args.k) {
    args.ids[t * args.k + lane] = id;
    args.weights[t * args.k + lane] = chosen / total * args.scale;
  }
}

}  // namespace

void route(const RouteArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return;
  const LaunchShape shape{.grid = static_cast<unsigned>(args.rows), .block = kThreads};
  if (args.experts <= 8 * kWarp)
    launch(route_kernel<8>, shape, stream, args);
  else if (args.experts <= 12 * kWarp)
    launch(route_kernel<12>, shape, stream, args);
  else
    launch(route_kernel<kMaxExperts / kWarp>, shape, stream, args);
}

}  // namespace quatrain::cuda

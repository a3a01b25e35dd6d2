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

__device__ unsigned long long warp_max(unsigned long long value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const unsigned long long other = __shfl_xor_sync(kAllLanes, value, offset);
    value = other > value ? other : value;
  }
  return value;
}

// The id that lane i < k chooses: the i-th largest of score + bias, the lowest id among equals.
// Candidates are (key, ~id) in one integer, so that one maximum decides both; `keys` is used up.
__device__ int choose(const RouteArgs& args, const float* score, unsigned* keys) {
  const int lane = lane_id();
  for (int e = lane; e < args.experts; e += kWarp) keys[e] = ordered_key(score[e] + args.bias[e]);
  int mine = 0;
  for (int i = 0; i < args.k; ++i) {
    unsigned long long best = 0;
    for (int e = lane; e < args.experts; e += kWarp) {
      const unsigned long long candidate =
          static_cast<unsigned long long>(keys[e]) << 32 | ~static_cast<unsigned>(e);
      best = candidate > best ? candidate : best;
    }
    const int id = static_cast<int>(~static_cast<unsigned>(warp_max(best)));
    if (id % kWarp == lane) keys[id] = 0;  // a lane reads and clears only its own experts
    if (i == lane) mine = id;
  }
  return mine;
}

__global__ void route_kernel(RouteArgs args) {
  let_next_start();
  wait_for_previous();
  extern __shared__ float shared[];  // [kWarpsPerBlock][2][experts]: scores, keys
  const int t = static_cast<int>(blockIdx.x) * kWarpsPerBlock + warp_id();
  if (t >= args.rows) return;
  const int lane = lane_id();
  float* score = shared + 2 * warp_id() * args.experts;
  auto* keys = reinterpret_cast<unsigned*>(score + args.experts);
  const float* logits = args.logits + static_cast<long long>(t) * args.experts;
  for (int e = lane; e < args.experts; e += kWarp) score[e] = sqrt_softplus(logits[e]);
  __syncwarp();

  int id = 0;
  if (args.hash_table == nullptr)
    id = choose(args, score, keys);
  else if (lane < args.k)
    id = args.hash_table[static_cast<long long>(args.token_ids[t]) * args.k + lane];

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

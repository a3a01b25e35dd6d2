// SPDX-License-Identifier: Apache-2.0
// A warp's arrival at a barrier: one lane's, after __syncwarp(). racecheck does not see that this
// orders what the other lanes did, so in a build for it every lane arrives for itself.
#pragma once

#include "backends/cuda/device/async_copy.cuh"
#include "backends/cuda/device/cluster.cuh"
#include "backends/cuda/device/reduce.cuh"

namespace quatrain::cuda {

/// What a barrier has to count for each warp.
#ifdef QUATRAIN_RACECHECK
inline constexpr int kWarpArrivals = kWarp;
#else
inline constexpr int kWarpArrivals = 1;
#endif

/// All lanes of a warp.
__device__ inline void warp_arrive(Barrier* barrier) {
  __syncwarp();
  if (lane_id() < kWarpArrivals) barrier_arrive(barrier);
}

/// The same at the barrier of every block of the cluster, which has at most kWarp of them.
__device__ inline void warp_arrive_in_ranks(Barrier* barrier) {
  __syncwarp();
#ifdef QUATRAIN_RACECHECK
  for (unsigned rank = 0; rank < cluster_size(); ++rank)
    arrive_in_rank(address_in_rank(shared_address(barrier), rank));
#else
  if (lane_id() < static_cast<int>(cluster_size()))
    arrive_in_rank(address_in_rank(shared_address(barrier), static_cast<unsigned>(lane_id())));
#endif
}

/// Says at the barriers of the first kRanks blocks of the cluster that the warp has done reading.
template <int kRanks>
__device__ inline void warp_signal_ranks(Barrier* barrier) {
  __syncwarp();
#ifdef QUATRAIN_RACECHECK
  for (unsigned rank = 0; rank < kRanks; ++rank)
    signal_rank(address_in_rank(shared_address(barrier), rank));
#else
  if (lane_id() < kRanks)
    signal_rank(address_in_rank(shared_address(barrier), static_cast<unsigned>(lane_id())));
#endif
}

}  // namespace quatrain::cuda

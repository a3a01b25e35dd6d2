// SPDX-License-Identifier: Apache-2.0
// Indices of the scores above a threshold and of the first ones equal to it, ascending.
#pragma once

#include "backends/cuda/device/reduce.cuh"

namespace quatrain::cuda {

/// What a warp writes, 32 scores after the other, once it knows how many precede its first one.
struct SelectedIndices {
  int* indices;
  int wanted;  // of those that are equal
  int larger_before, equal_before;

  /// By lanes: which scores are larger and which are equal; `index` is the lane's own.
  __device__ void write(unsigned larger, unsigned equal, int index) {
    const unsigned lower_lanes = (1u << lane_id()) - 1;
    const int my_larger = larger_before + __popc(larger & lower_lanes);
    const int my_equal = equal_before + __popc(equal & lower_lanes);
    const bool is_larger = (larger >> lane_id() & 1u) != 0;
    const bool is_equal = (equal >> lane_id() & 1u) != 0;
    if (is_larger || (is_equal && my_equal < wanted))
      indices[my_larger + min(my_equal, wanted)] = index;
    larger_before += __popc(larger);
    equal_before += __popc(equal);
  }
};

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// What a device can do at best, as its probes measured it.
#pragma once

#include <algorithm>

#include "ops/op_cost.h"

namespace quatrain {

struct DeviceLimits {
  double read_bytes = 0;  ///< per second, from memory that no cache holds
  double flops = 0;       ///< per second, of the products that the backend's kernels are made of
  double fp8_flops = 0;   ///< per second in FP8; 0 where there is no such unit
  double int8_flops = 0;  ///< per second in INT8; 0 where there is no such unit
  double tile_flops = 0;  ///< per second in BF16 on a CPU's matrix tiles; 0 where there are none

  /// Seconds below which nothing of this cost can stay. For products of 8-bit factors the fastest
  /// unit that is exact counts.
  double seconds(const OpCost& cost) const {
    const double reading = read_bytes > 0 ? cost.bytes / read_bytes : 0.0;
    if (flops <= 0) return reading;
    const double wide = cost.flops - cost.int8_flops - cost.fp8_flops;
    const double computing = wide / flops +
                             cost.int8_flops / std::max({flops, int8_flops, tile_flops}) +
                             cost.fp8_flops / std::max(flops, fp8_flops);
    return std::max(reading, computing);
  }
};

}  // namespace quatrain

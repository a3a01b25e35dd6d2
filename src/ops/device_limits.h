// SPDX-License-Identifier: Apache-2.0
// What a device can do at best, as its probes measured it.
#pragma once

namespace quatrain {

struct DeviceLimits {
  double read_bytes = 0;  ///< per second, from memory that no cache holds
  double flops = 0;       ///< per second, of the products that the backend's kernels are made of
  double fp8_flops = 0;   ///< per second in FP8 (INT8 on a CPU); 0 where there is no such unit
  double tile_flops = 0;  ///< per second in BF16 on a CPU's matrix tiles; 0 where there are none

  /// Seconds below which nothing that reads `bytes` and multiplies `operations` can stay;
  /// `of_int8` of them are products of 8-bit integers, for which the fastest unit that is exact
  /// counts.
  double seconds(double bytes, double operations, double of_int8 = 0) const {
    const double reading = read_bytes > 0 ? bytes / read_bytes : 0.0;
    const double narrow = fp8_flops > tile_flops ? fp8_flops : tile_flops;
    const double int8_flops = narrow > flops ? narrow : flops;
    const double computing =
        flops > 0 ? (operations - of_int8) / flops + of_int8 / int8_flops : 0.0;
    return reading > computing ? reading : computing;
  }
};

}  // namespace quatrain

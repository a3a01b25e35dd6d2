// SPDX-License-Identifier: Apache-2.0
// What a device can do at best, as its probes measured it.
#pragma once

namespace quatrain {

struct DeviceLimits {
  double read_bytes = 0;  ///< per second, from memory that no cache holds
  double flops = 0;       ///< per second, of the products that the backend's kernels are made of
  double fp8_flops = 0;   ///< per second in FP8 (INT8 on a CPU); 0 where there is no such unit

  /// Seconds below which nothing that reads `bytes` and multiplies `flops` can stay.
  double seconds(double bytes, double operations) const {
    const double reading = read_bytes > 0 ? bytes / read_bytes : 0.0;
    const double computing = flops > 0 ? operations / flops : 0.0;
    return reading > computing ? reading : computing;
  }
};

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// What an operation has to read, write and multiply.
#pragma once

namespace quatrain {

struct OpCost {
  double bytes = 0;       ///< weights, states and activations, each read or written once
  double flops = 0;       ///< multiply-adds count two
  double int8_flops = 0;  ///< those of `flops` whose factors are 8-bit integers
  double fp8_flops = 0;   ///< those whose factors are both FP8

  OpCost& operator+=(const OpCost& other) {
    bytes += other.bytes;
    flops += other.flops;
    int8_flops += other.int8_flops;
    fp8_flops += other.fp8_flops;
    return *this;
  }
};

}  // namespace quatrain

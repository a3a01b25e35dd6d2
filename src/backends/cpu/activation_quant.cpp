// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/activation_quant.h"

#include <algorithm>
#include <cmath>

#include "core/codec.h"
#include "core/quant_matrix.h"

namespace quatrain {

float nvfp4_row_scale(const float* x, std::int64_t n) {
  float amax = 0;
  for (std::int64_t i = 0; i < n; ++i) amax = std::max(amax, std::abs(x[i]));
  return std::max(amax / (kE2M1Max * kE4M3Max), 1e-30f);
}

void nvfp4_round_row(const float* x, std::int64_t n, float g, float* out) {
  for (std::int64_t b = 0; b < n; b += kNvfp4Block) {
    float amax = 0;
    for (std::int64_t i = b; i < b + kNvfp4Block; ++i) amax = std::max(amax, std::abs(x[i]));
    const float scale = e4m3_decode(e4m3_encode(amax / kE2M1Max / g)) * g;
    for (std::int64_t i = b; i < b + kNvfp4Block; ++i)
      out[i] = scale > 0 ? e2m1_decode(e2m1_encode(x[i] / scale)) * scale : 0.0f;
  }
}

}  // namespace quatrain

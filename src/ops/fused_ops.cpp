// SPDX-License-Identifier: Apache-2.0
// The fused operations as what they are made of.
#include "ops/ops.h"

namespace quatrain {

void Ops::linears(const op::Linears& args) {
  for (int i = 0; i < args.count; ++i) {
    const auto& product = args.products[static_cast<std::size_t>(i)];
    linear({.x = args.x, .w = product.w, .out = product.out, .precise = product.precise});
  }
}

void Ops::swiglu_linear(const op::SwiGluLinear& args) {
  swiglu({.gate = args.gate, .up = args.up, .limit = args.limit, .out = args.gate});
  linear({.x = args.gate, .w = args.w, .out = args.out});
}

void Ops::hc_pre_norm(const op::HcPreNorm& args) {
  hc_pre(args.pre);
  rms_norm({.x = args.pre.out, .weight = args.norm_weight, .eps = args.eps, .out = args.pre.out});
}

void Ops::norm_rope(const op::NormRope& args) {
  rms_norm({.x = args.x, .weight = args.weight, .eps = args.eps, .out = args.x});
  rope({.x = args.x, .positions = args.positions, .inv_freq = args.inv_freq});
  if (args.grid != CacheGrid::kNone)
    round_to_grid({.x = args.x, .grid = args.grid, .rope_dim = args.rope_dim});
}

}  // namespace quatrain

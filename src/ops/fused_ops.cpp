// SPDX-License-Identifier: Apache-2.0
// The fused operations as what they are made of.
#include "ops/ops.h"

namespace quatrain {

void Ops::linears(const op::Linears& args) {
  for (int i = 0; i < args.count; ++i) {
    const auto& product = args.products[static_cast<std::size_t>(i)];
    linear({.x = args.x,
            .w = product.w,
            .out = product.out,
            .precise = product.precise,
            .activations = args.activations});
  }
}

void Ops::swiglu_linear(const op::SwiGluLinear& args) {
  swiglu({.gate = args.gate, .up = args.up, .limit = args.limit, .out = args.gate});
  linear({.x = args.gate, .w = args.w, .out = args.out, .activations = args.activations});
}

void Ops::hc_pre_norm(const op::HcPreNorm& args) {
  hc_pre(args.pre);
  rms_norm({.x = args.pre.out, .weight = args.norm_weight, .eps = args.eps, .out = args.pre.out});
}

void Ops::hc_post_pre_norm(const op::HcPostPreNorm& args) {
  hc_post(args.post);
  hc_pre_norm(args.next);
}

void Ops::norm_rope(const op::NormRope& args) {
  for (int i = 0; i < args.count; ++i) {
    const auto& r = args.rows[static_cast<std::size_t>(i)];
    if (r.norm) rms_norm({.x = r.x, .weight = r.weight, .eps = args.eps, .out = r.x});
    if (r.inv_freq) rope({.x = r.x, .positions = args.positions, .inv_freq = r.inv_freq});
    if (r.grid != CacheGrid::kNone)
      round_to_grid({.x = r.x, .grid = r.grid, .rope_dim = r.rope_dim});
  }
}

void Ops::attention_inputs(const op::AttentionInputs& args) {
  norm_rope(args.rows);
  for (int i = 0; i < args.count; ++i) compress(args.compressors[static_cast<std::size_t>(i)]);
}

void Ops::attend_store(const op::AttendStore& args) {
  if (args.queries.count > 0) norm_rope(args.queries);
  attend(args.attend);
  kv_store(args.store());
}

}  // namespace quatrain

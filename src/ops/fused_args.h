// SPDX-License-Identifier: Apache-2.0
// Arguments of the fused operations: several plain ones that a backend may do in one go.
//
// Each is defined by its parts: the default body in fused_ops.cpp calls them, and is the reference
// that a backend's own body is tested against. Symbols and `fields` as in op_args.h.
#pragma once

#include <array>
#include <cstdint>

#include "ops/op_args.h"

namespace quatrain::op {

// out_i = x W_iᵀ: several linears of one input
struct Linears {
  static constexpr const char* kName = "linears";
  static constexpr int kMost = 7;
  struct Product {
    const PackedLinear* w = nullptr;
    Tensor out;  // [T, rows]; activation type or F32
    bool precise = false;
  };
  Tensor x;  // [T, cols]
  std::array<Product, kMost> products{};
  int count = 0;
  LinearActivations activations = LinearActivations::kFull;

  void add(const PackedLinear& w, Tensor out, bool precise = false) {
    QT_CHECK(count < kMost, "more than {} linears of one input", kMost);
    products[static_cast<std::size_t>(count++)] = {&w, out, precise};
  }
  template <class F>
  void fields(F&& f) const {
    static constexpr const char* kOut[kMost] = {"out0", "out1", "out2", "out3",
                                                "out4", "out5", "out6"};
    f.in("x", x);
    for (int i = 0; i < count; ++i) f.out(kOut[i], products[static_cast<std::size_t>(i)].out);
  }
};

// out = swiglu(gate, up) Wᵀ; gate may be overwritten
struct SwiGluLinear {
  static constexpr const char* kName = "swiglu_linear";
  Tensor gate;  // [T, I]
  Tensor up;    // [T, I]
  float limit = 0;
  const PackedLinear* w = nullptr;  // [rows, I]
  Tensor out;                       // [T, rows]
  LinearActivations activations = LinearActivations::kFull;
  template <class F>
  void fields(F&& f) const {
    f.in("gate", gate);
    f.in("up", up);
    f.out("out", out);
  }
};

// hc_pre, then rms_norm of its output in place
struct HcPreNorm {
  static constexpr const char* kName = "hc_pre_norm";
  HcPre pre;           // pre.out [T, D] holds the normalised rows in the end
  Tensor norm_weight;  // F32 [D]
  float eps = 0;
  template <class F>
  void fields(F&& f) const {
    f.in("streams", pre.streams);
    f.out("out", pre.out);
    f.out("post", pre.post);
    f.out("comb", pre.comb);
  }
};

// hc_post of a sub-layer, then hc_pre_norm of the next one on the same streams, whose post and comb
// may be those of the first
struct HcPostPreNorm {
  static constexpr const char* kName = "hc_post_pre_norm";
  HcPost post;
  HcPreNorm next;
  template <class F>
  void fields(F&& v) const {
    v.in("f", post.f);
    v.out("streams", post.streams);
    v.out("out", next.pre.out);
    v.out("post", next.pre.post);
    v.out("comb", next.pre.comb);
  }
};

// rms_norm over the innermost dimension, rope, round_to_grid of one or two arrays, each step where
// it is asked for; in place
struct NormRope {
  static constexpr const char* kName = "norm_rope";
  struct Rows {
    Tensor x = {};  // [T, m] or [T, H, m]
    bool norm = true;
    Tensor weight = {};    // F32 [m], or empty for none
    Tensor inv_freq = {};  // F32 [rope_dim / 2], or empty for no rotation
    CacheGrid grid = CacheGrid::kNone;
    std::int64_t rope_dim = 0;  // of the grid
  };
  static constexpr int kMost = 2;
  std::array<Rows, kMost> rows{};
  int count = 1;
  float eps = 0;
  Tensor positions;  // I32 [T]
  template <class F>
  void fields(F&& f) const {
    f.in("positions", positions);
    f.out("x", rows[0].x);
    if (count > 1) f.out("x1", rows[1].x);
  }
};

// What becomes of the projections of x: norm_rope of the queries' low rank and the latents, and up
// to two compressors
struct AttentionInputs {
  static constexpr const char* kName = "attention_inputs";
  NormRope rows;
  static constexpr int kMost = 2;
  std::array<Compress, kMost> compressors{};
  int count = 0;
  template <class F>
  void fields(F&& f) const {
    rows.fields(f);
    if (count > 0) compressors[0].fields(f);
    if (count > 1) compressors[1].fields(f);
  }
};

// norm_rope of the queries, attend, then kv_store of its latents into its ring; the queries may be
// overwritten
struct AttendStore {
  static constexpr const char* kName = "attend_store";
  Attend attend;
  NormRope queries = {.rows = {}, .count = 0, .positions = {}};  // of attend.q; count 0: none
  KvStore store() const {
    return {.batch = attend.batch, .latents = attend.latents, .ring = attend.ring};
  }
  template <class F>
  void fields(F&& f) const {
    attend.fields(f);
  }
};

}  // namespace quatrain::op

// SPDX-License-Identifier: Apache-2.0
// Launches of the hyper-connections (mHC): mixes, Sinkhorn and collapse before a sub-layer, the
// update of the streams after it, and the collapse before the head.
#pragma once

#include <cuda_runtime.h>

namespace quatrain::cuda {

/// Residual streams that the kernels have room for.
inline constexpr int kMaxStreams = 8;

struct HcPreArgs {
  const float* streams = nullptr;  // [rows, hc, width]; width a multiple of 4
  const float* fn = nullptr;       // [(2 + hc) * hc, hc * width]
  const float* base = nullptr;     // [(2 + hc) * hc]
  const float* scale = nullptr;    // [3]
  int rows = 0;
  int hc = 0;
  int width = 0;
  int sinkhorn_iters = 0;
  float hc_eps = 0;
  float norm_eps = 0;
  float* out = nullptr;   // [rows, width]
  float* post = nullptr;  // [rows, hc]
  float* comb = nullptr;  // [rows, hc, hc]
};
void hc_pre(const HcPreArgs& args, cudaStream_t stream);

struct HcPostArgs {
  const float* f = nullptr;     // [rows, width]
  const float* post = nullptr;  // [rows, hc]
  const float* comb = nullptr;  // [rows, hc, hc]
  int rows = 0;
  int hc = 0;
  int width = 0;
  float* streams = nullptr;  // [rows, hc, width], updated
};
void hc_post(const HcPostArgs& args, cudaStream_t stream);

struct HcPreNormArgs {
  HcPreArgs pre;                       // pre.out receives the normalised rows
  const float* norm_weight = nullptr;  // [width]
  float eps = 0;
  HcPostArgs update;  // of the same streams; f null: none. post and comb may be those of `pre`
};
/// Whether hc_pre_norm() takes this many streams of this width.
bool has_hc_pre_norm(int hc, int width);
/// hc_post where there is an update, then hc_pre, then rms_norm of its output.
void hc_pre_norm(const HcPreNormArgs& args, cudaStream_t stream);

/// The same of many tokens; the bits are those of a launch for each. Part of hc_pre_norm().
bool has_hc_pre_norm_rows(const HcPreNormArgs& args);
void hc_pre_norm_rows(const HcPreNormArgs& args, cudaStream_t stream);

struct HcHeadArgs {
  const float* streams = nullptr;  // [rows, hc, width]; width a multiple of 4
  const float* fn = nullptr;       // [hc, hc * width]
  const float* base = nullptr;     // [hc]
  const float* scale = nullptr;    // [1]
  int rows = 0;
  int hc = 0;
  int width = 0;
  float hc_eps = 0;
  float norm_eps = 0;
  float* out = nullptr;  // [rows, width]
};
void hc_head(const HcHeadArgs& args, cudaStream_t stream);

}  // namespace quatrain::cuda

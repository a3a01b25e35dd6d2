// SPDX-License-Identifier: Apache-2.0
// hc_pre, hc_post, hc_head: manifold-constrained hyper-connections (mHC).
#include "backends/cpu/hyper_connections.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/scalar.h"

namespace quatrain {
void sinkhorn(float* c, std::int64_t hc, int iterations, float eps) {
  const auto columns = [&] {
    for (std::int64_t k = 0; k < hc; ++k) {
      float sum = eps;
      for (std::int64_t j = 0; j < hc; ++j) sum += c[j * hc + k];
      for (std::int64_t j = 0; j < hc; ++j) c[j * hc + k] /= sum;
    }
  };
  const auto rows = [&] {
    for (std::int64_t j = 0; j < hc; ++j) {
      float sum = eps;
      for (std::int64_t k = 0; k < hc; ++k) sum += c[j * hc + k];
      for (std::int64_t k = 0; k < hc; ++k) c[j * hc + k] /= sum;
    }
  };
  for (std::int64_t j = 0; j < hc; ++j) {
    float* row = c + j * hc;
    const float largest = *std::max_element(row, row + hc);
    float sum = 0;
    for (std::int64_t k = 0; k < hc; ++k) sum += row[k] = std::exp(row[k] - largest);
    for (std::int64_t k = 0; k < hc; ++k) row[k] = row[k] / sum + eps;
  }
  columns();
  for (int i = 1; i < iterations; ++i) {
    rows();
    columns();
  }
}

// m = (fn · v) / rms(v) for one token's flattened streams v. `fn` is as large as a projection: with
// one token, its rows are what threads share.
void CpuOps::site_mixes(const float* v, std::int64_t n, const Tensor& fn, float eps, bool share,
                        float* m) {
  const std::int64_t count = fn.dim(0);
  const auto rows = [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) m[i] = kernels_.dot(v, fn.f32() + i * n, n);
  };
  if (share)
    parallel_for(count, std::max<std::int64_t>(1, count / (2 * pool_.threads())), 4 * count * n,
                 rows);
  else
    rows(0, count, 0);
  const float rs = 1.0f / std::sqrt(kernels_.dot(v, v, n) / static_cast<float>(n) + eps);
  for (std::int64_t i = 0; i < count; ++i) m[i] *= rs;
}

// body(t, m) for each token and its mixes.
template <class Body>
void CpuOps::each_site(const Tensor& streams, const Tensor& fn, float eps, Body&& body) {
  const std::int64_t tokens = streams.dim(0);
  const std::int64_t n = streams.dim(1) * streams.dim(2);
  QT_CHECK(streams.dim(1) <= kMaxStreams, "hc_mult {} is above {}", streams.dim(1), kMaxStreams);
  const auto token = [&](std::int64_t t, bool share) {
    std::array<float, (kMaxStreams + 2) * kMaxStreams> m;
    site_mixes(streams.f32() + t * n, n, fn, eps, share, m.data());
    body(t, m.data());
  };
  if (tokens == 1) return token(0, true);
  pool_.parallel_for(tokens, 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) token(t, false);
  });
}

void CpuOps::hc_pre(const op::HcPre& args) {
  const std::int64_t hc = args.streams.dim(1);
  const std::int64_t width = args.streams.dim(2);
  const float* base = args.weights.base.f32();
  const float* scale = args.weights.scale.f32();
  each_site(args.streams, args.weights.fn, args.norm_eps, [&](std::int64_t t, const float* m) {
    std::array<float, kMaxStreams> pre;
    float* post = args.post.f32() + t * hc;
    float* comb = args.comb.f32() + t * hc * hc;
    for (std::int64_t j = 0; j < hc; ++j) {
      pre[static_cast<std::size_t>(j)] = sigmoid(m[j] * scale[0] + base[j]) + args.hc_eps;
      post[j] = 2.0f * sigmoid(m[hc + j] * scale[1] + base[hc + j]);
    }
    for (std::int64_t i = 0; i < hc * hc; ++i)
      comb[i] = m[2 * hc + i] * scale[2] + base[2 * hc + i];
    sinkhorn(comb, hc, args.sinkhorn_iters, args.hc_eps);
    kernels_.weighted_sum(args.streams.f32() + t * hc * width, pre.data(), hc, width,
                          args.out.f32() + t * width);
  });
}

void CpuOps::hc_post(const op::HcPost& args) {
  const std::int64_t tokens = args.streams.dim(0);
  const std::int64_t hc = args.streams.dim(1);
  const std::int64_t width = args.streams.dim(2);
  QT_CHECK(hc <= kMaxStreams, "hc_mult {} is above {}", hc, kMaxStreams);
  parallel_for(tokens, 4, tokens * hc * width, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t)
      kernels_.mix_streams(args.f.f32() + t * width, args.post.f32() + t * hc,
                           args.comb.f32() + t * hc * hc, hc, width,
                           args.streams.f32() + t * hc * width);
  });
}

void CpuOps::hc_head(const op::HcHead& args) {
  const std::int64_t hc = args.streams.dim(1);
  const std::int64_t width = args.streams.dim(2);
  const float* base = args.weights.base.f32();
  const float scale = args.weights.scale.f32()[0];
  each_site(args.streams, args.weights.fn, args.norm_eps, [&](std::int64_t t, const float* m) {
    std::array<float, kMaxStreams> pre;
    for (std::int64_t j = 0; j < hc; ++j)
      pre[static_cast<std::size_t>(j)] = sigmoid(m[j] * scale + base[j]) + args.hc_eps;
    kernels_.weighted_sum(args.streams.f32() + t * hc * width, pre.data(), hc, width,
                          args.out.f32() + t * width);
  });
}

}  // namespace quatrain

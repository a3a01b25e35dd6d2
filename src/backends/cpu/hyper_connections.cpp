// SPDX-License-Identifier: Apache-2.0
// hc_pre, hc_post, hc_head: manifold-constrained hyper-connections (mHC).
#include "backends/cpu/hyper_connections.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/scalar.h"

namespace quatrain {
namespace {

// m = (fn · v) / rms(v) with v the flattened streams of one token.
void mixes(const float* v, std::int64_t n, const Tensor& fn, float eps, float* m) {
  const float rs = 1.0f / std::sqrt(dot(v, v, n) / static_cast<float>(n) + eps);
  for (std::int64_t i = 0; i < fn.dim(0); ++i) m[i] = dot(v, fn.f32() + i * n, n) * rs;
}

void weighted_sum(const float* v, const float* pre, std::int64_t streams, std::int64_t width,
                  float* out) {
  for (std::int64_t d = 0; d < width; ++d) {
    float sum = 0;
    for (std::int64_t s = 0; s < streams; ++s) sum += pre[s] * v[s * width + d];
    out[d] = sum;
  }
}

}  // namespace

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

void CpuOps::hc_pre(const op::HcPre& args) {
  const std::int64_t hc = args.streams.dim(1);
  const std::int64_t width = args.streams.dim(2);
  QT_CHECK(hc <= kMaxStreams, "hc_mult {} is above {}", hc, kMaxStreams);
  const float* base = args.weights.base.f32();
  const float* scale = args.weights.scale.f32();
  pool_.parallel_for(args.streams.dim(0), 1, [&](std::int64_t begin, std::int64_t end, int) {
    std::array<float, (kMaxStreams + 2) * kMaxStreams> m;
    std::array<float, kMaxStreams> pre;
    for (std::int64_t t = begin; t < end; ++t) {
      const float* v = args.streams.f32() + t * hc * width;
      mixes(v, hc * width, args.weights.fn, args.norm_eps, m.data());
      float* post = args.post.f32() + t * hc;
      float* comb = args.comb.f32() + t * hc * hc;
      for (std::int64_t j = 0; j < hc; ++j) {
        const auto i = static_cast<std::size_t>(j);
        pre[i] = sigmoid(m[i] * scale[0] + base[j]) + args.hc_eps;
        post[j] = 2.0f * sigmoid(m[i + static_cast<std::size_t>(hc)] * scale[1] + base[hc + j]);
      }
      for (std::int64_t i = 0; i < hc * hc; ++i)
        comb[i] = m[static_cast<std::size_t>(2 * hc + i)] * scale[2] + base[2 * hc + i];
      sinkhorn(comb, hc, args.sinkhorn_iters, args.hc_eps);
      weighted_sum(v, pre.data(), hc, width, args.out.f32() + t * width);
    }
  });
}

void CpuOps::hc_post(const op::HcPost& args) {
  const std::int64_t hc = args.streams.dim(1);
  const std::int64_t width = args.streams.dim(2);
  QT_CHECK(hc <= kMaxStreams, "hc_mult {} is above {}", hc, kMaxStreams);
  pool_.parallel_for(args.streams.dim(0), 4, [&](std::int64_t begin, std::int64_t end, int) {
    std::array<float, kMaxStreams> old;
    for (std::int64_t t = begin; t < end; ++t) {
      const float* f = args.f.f32() + t * width;
      const float* post = args.post.f32() + t * hc;
      const float* comb = args.comb.f32() + t * hc * hc;
      float* streams = args.streams.f32() + t * hc * width;
      for (std::int64_t d = 0; d < width; ++d) {
        for (std::int64_t j = 0; j < hc; ++j)
          old[static_cast<std::size_t>(j)] = streams[j * width + d];
        for (std::int64_t k = 0; k < hc; ++k) {
          float sum = post[k] * f[d];
          for (std::int64_t j = 0; j < hc; ++j)
            sum += comb[j * hc + k] * old[static_cast<std::size_t>(j)];
          streams[k * width + d] = sum;
        }
      }
    }
  });
}

void CpuOps::hc_head(const op::HcHead& args) {
  const std::int64_t hc = args.streams.dim(1);
  const std::int64_t width = args.streams.dim(2);
  QT_CHECK(hc <= kMaxStreams, "hc_mult {} is above {}", hc, kMaxStreams);
  pool_.parallel_for(args.streams.dim(0), 1, [&](std::int64_t begin, std::int64_t end, int) {
    std::array<float, kMaxStreams> pre;
    for (std::int64_t t = begin; t < end; ++t) {
      const float* v = args.streams.f32() + t * hc * width;
      mixes(v, hc * width, args.weights.fn, args.norm_eps, pre.data());
      for (std::int64_t j = 0; j < hc; ++j) {
        float& p = pre[static_cast<std::size_t>(j)];
        p = sigmoid(p * args.weights.scale.f32()[0] + args.weights.base.f32()[j]) + args.hc_eps;
      }
      weighted_sum(v, pre.data(), hc, width, args.out.f32() + t * width);
    }
  });
}

}  // namespace quatrain

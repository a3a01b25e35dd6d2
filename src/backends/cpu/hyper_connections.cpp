// SPDX-License-Identifier: Apache-2.0
// hc_pre, hc_post, hc_head: manifold-constrained hyper-connections (mHC).
#include "backends/cpu/hyper_connections.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/scalar.h"

namespace quatrain {
namespace {

constexpr std::int64_t kMostMixes = (kMaxStreams + 2) * kMaxStreams;
constexpr std::int64_t kMostParts = 64;

// The columns of a stream in parts that threads share. The sums of a site are added by parts,
// whoever computes them, so that its bits depend on the width alone.
struct SiteParts {
  explicit SiteParts(std::int64_t stream_width)
      : width(stream_width),
        columns(std::max<std::int64_t>(256, (width / kMostParts / 16 + 1) * 16)),
        count((width + columns - 1) / columns) {}
  std::int64_t begin(std::int64_t p) const { return p * columns; }
  std::int64_t size(std::int64_t p) const { return std::min(columns, width - begin(p)); }

  std::int64_t width, columns, count;
};

using SiteSums = std::array<float, kMostParts*(kMostMixes + 1)>;

// Four values that are computed together; GCC's and Clang's vectors are portable.
using Four __attribute__((vector_size(16))) = float;

void transpose(Four* c) {
  const Four a = __builtin_shufflevector(c[0], c[1], 0, 4, 1, 5);
  const Four b = __builtin_shufflevector(c[2], c[3], 0, 4, 1, 5);
  const Four d = __builtin_shufflevector(c[0], c[1], 2, 6, 3, 7);
  const Four e = __builtin_shufflevector(c[2], c[3], 2, 6, 3, 7);
  c[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
  c[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
  c[2] = __builtin_shufflevector(d, e, 0, 1, 4, 5);
  c[3] = __builtin_shufflevector(d, e, 2, 3, 6, 7);
}

// The rounds of sinkhorn() for four streams, from normalising columns on, with the same additions
// and divisions in the same order.
void sinkhorn_four(float* values, int iterations, float eps) {
  Four c[4];
  std::memcpy(c, values, sizeof c);
  const auto normalise = [&] {
    const Four sum = eps + c[0] + c[1] + c[2] + c[3];
    for (Four& row : c) row /= sum;
  };
  normalise();
  for (int i = 1; i < iterations; ++i) {
    transpose(c);
    normalise();
    transpose(c);
    normalise();
  }
  std::memcpy(values, c, sizeof c);
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
  if (hc == 4) return sinkhorn_four(c, iterations, eps);
  columns();
  for (int i = 1; i < iterations; ++i) {
    rows();
    columns();
  }
}

// Runs body(t, m, share) for each token and its mixes m = (fn · v) / rms(v), v being its flattened
// streams. `update` may come first. With fewer tokens than threads, the parts of one token are what
// threads share, also in `body`, if `share`.
template <class Body>
void CpuOps::each_site(const Tensor& streams, const Tensor& fn, float eps, const op::HcPost* update,
                       Body&& body) {
  const std::int64_t tokens = streams.dim(0), hc = streams.dim(1), width = streams.dim(2);
  const std::int64_t mixes = fn.dim(0);
  QT_CHECK(hc <= kMaxStreams, "hc_mult {} is above {}", hc, kMaxStreams);
  const SiteParts parts(width);
  const auto part = [&](std::int64_t t, std::int64_t p, SiteSums& sums) {
    const std::int64_t first = parts.begin(p), n = parts.size(p);
    float* x = streams.f32() + t * hc * width + first;
    if (update != nullptr)
      kernels_.mix_streams(update->f.f32() + t * width + first, update->post.f32() + t * hc,
                           update->comb.f32() + t * hc * hc, hc, width, n, x);
    kernels_.site_sums(x, fn.f32() + first, mixes, hc, width, n, sums.data() + p * (mixes + 1));
  };
  const auto finish = [&](std::int64_t t, const SiteSums& sums, bool share) {
    std::array<float, kMostMixes + 1> m{};
    for (std::int64_t p = 0; p < parts.count; ++p)
      for (std::int64_t i = 0; i <= mixes; ++i)
        m[static_cast<std::size_t>(i)] += sums[static_cast<std::size_t>(p * (mixes + 1) + i)];
    const float squares = m[static_cast<std::size_t>(mixes)];
    const float rs = 1.0f / std::sqrt(squares / static_cast<float>(hc * width) + eps);
    for (std::int64_t i = 0; i < mixes; ++i) m[static_cast<std::size_t>(i)] *= rs;
    body(t, m.data(), share);
  };
  if (tokens >= pool_.threads() && pool_.threads() > 1) {
    pool_.parallel_for(tokens, 1, [&](std::int64_t begin, std::int64_t end, int) {
      SiteSums sums;
      for (std::int64_t t = begin; t < end; ++t) {
        for (std::int64_t p = 0; p < parts.count; ++p) part(t, p, sums);
        finish(t, sums, false);
      }
    });
    return;
  }
  SiteSums sums;
  for (std::int64_t t = 0; t < tokens; ++t) {
    parallel_for(parts.count, 1, mixes * hc * width * 4,
                 [&](std::int64_t begin, std::int64_t end, int) {
                   for (std::int64_t p = begin; p < end; ++p) part(t, p, sums);
                 });
    finish(t, sums, true);
  }
}

// out = Σ_s pre_s streams_s of one token.
void CpuOps::collapse_streams(const float* streams, const float* pre, std::int64_t hc,
                              std::int64_t width, bool share, float* out) {
  const auto columns = [&](std::int64_t begin, std::int64_t end, int) {
    kernels_.weighted_sum(streams + begin, pre, hc, width, end - begin, out + begin);
  };
  if (share)
    parallel_for(width, SiteParts(width).columns, hc * width * 4, columns);
  else
    columns(0, width, 0);
}

// `update` may be null, and so may `norm`.
void CpuOps::enter_site(const op::HcPost* update, const op::HcPre& args,
                        const op::HcPreNorm* norm) {
  const std::int64_t hc = args.streams.dim(1);
  const std::int64_t width = args.streams.dim(2);
  const float* base = args.weights.base.f32();
  const float* scale = args.weights.scale.f32();
  each_site(args.streams, args.weights.fn, args.norm_eps, update,
            [&](std::int64_t t, const float* m, bool share) {
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
              float* out = args.out.f32() + t * width;
              collapse_streams(args.streams.f32() + t * hc * width, pre.data(), hc, width, share,
                               out);
              if (norm != nullptr)
                kernels_.rms_norm(out, norm->norm_weight.f32(), width, norm->eps, out);
            });
}

void CpuOps::hc_pre(const op::HcPre& args) { enter_site(nullptr, args, nullptr); }

void CpuOps::hc_pre_norm(const op::HcPreNorm& args) { enter_site(nullptr, args.pre, &args); }

void CpuOps::hc_post_pre_norm(const op::HcPostPreNorm& args) {
  enter_site(&args.post, args.next.pre, &args.next);
}

void CpuOps::hc_post(const op::HcPost& args) {
  const std::int64_t tokens = args.streams.dim(0);
  const std::int64_t hc = args.streams.dim(1);
  const std::int64_t width = args.streams.dim(2);
  QT_CHECK(hc <= kMaxStreams, "hc_mult {} is above {}", hc, kMaxStreams);
  parallel_for(tokens, 1, tokens * hc * width, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t)
      kernels_.mix_streams(args.f.f32() + t * width, args.post.f32() + t * hc,
                           args.comb.f32() + t * hc * hc, hc, width, width,
                           args.streams.f32() + t * hc * width);
  });
}

void CpuOps::hc_head(const op::HcHead& args) {
  const std::int64_t hc = args.streams.dim(1);
  const std::int64_t width = args.streams.dim(2);
  const float* base = args.weights.base.f32();
  const float scale = args.weights.scale.f32()[0];
  each_site(args.streams, args.weights.fn, args.norm_eps, nullptr,
            [&](std::int64_t t, const float* m, bool share) {
              std::array<float, kMaxStreams> pre;
              for (std::int64_t j = 0; j < hc; ++j)
                pre[static_cast<std::size_t>(j)] = sigmoid(m[j] * scale + base[j]) + args.hc_eps;
              collapse_streams(args.streams.f32() + t * hc * width, pre.data(), hc, width, share,
                               args.out.f32() + t * width);
            });
}

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// The formulas of the model, stated once more in double precision and in the plainest form.
//
// Independent of the engine: nothing of src/ is used, so that a mistake there cannot hide here.
// Section numbers are those of docs/paper_map.md.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace quatrain::testing::reference {

using Row = std::vector<double>;

inline Row to_double(std::span<const float> x) { return {x.begin(), x.end()}; }

inline double inner(std::span<const double> a, std::span<const double> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

inline double mean_square(const Row& x) { return inner(x, x) / static_cast<double>(x.size()); }

/// `weight` may be empty.
inline Row rms_norm(Row x, const Row& weight, double eps) {
  const double factor = 1 / std::sqrt(mean_square(x) + eps);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] *= factor * (weight.empty() ? 1 : weight[i]);
  return x;
}

/// Rotates pairs (n − 2P + 2p, n − 2P + 2p + 1) by position·inv_freq[p]; the product is FP32 (1.4).
inline void rotate(Row& x, std::span<const float> inv_freq, double position, double sign = 1) {
  const std::size_t first = x.size() - 2 * inv_freq.size();
  for (std::size_t p = 0; p < inv_freq.size(); ++p) {
    const double angle = static_cast<float>(position) * inv_freq[p];
    const double c = std::cos(angle), s = sign * std::sin(angle);
    const double a = x[first + 2 * p], b = x[first + 2 * p + 1];
    x[first + 2 * p] = a * c - b * s;
    x[first + 2 * p + 1] = a * s + b * c;
  }
}

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

inline double swiglu(double gate, double up, double limit) {
  if (limit > 0) {
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : up < -limit ? -limit : up;
  }
  return gate * sigmoid(gate) * up;
}

inline double sqrt_softplus(double x) {
  return std::sqrt(x > 30 ? x + std::exp(-x) : std::log1p(std::exp(x)));
}

// ---- hyper-connections (2.2) ----

/// One column normalisation, then `iterations` − 1 rounds of rows and columns.
inline Row sinkhorn(Row logits, std::size_t hc, int iterations, double eps) {
  Row c(hc * hc);
  for (std::size_t j = 0; j < hc; ++j) {
    double sum = 0;
    const double top = *std::max_element(&logits[j * hc], &logits[j * hc] + hc);
    for (std::size_t k = 0; k < hc; ++k) sum += std::exp(logits[j * hc + k] - top);
    for (std::size_t k = 0; k < hc; ++k)
      c[j * hc + k] = std::exp(logits[j * hc + k] - top) / sum + eps;
  }
  // stride 1 walks a row, stride hc a column
  const auto normalise = [&](std::size_t line_step, std::size_t stride) {
    for (std::size_t line = 0; line < hc; ++line) {
      double sum = eps;
      for (std::size_t i = 0; i < hc; ++i) sum += c[line * line_step + i * stride];
      for (std::size_t i = 0; i < hc; ++i) c[line * line_step + i * stride] /= sum;
    }
  };
  normalise(1, hc);
  for (int i = 1; i < iterations; ++i) {
    normalise(hc, 1);
    normalise(1, hc);
  }
  return c;
}

/// (fn v) / rms(v) over all streams of a token.
inline Row mixes(const Row& v, const Row& fn, double eps) {
  const double rs = 1 / std::sqrt(mean_square(v) + eps);
  Row m(fn.size() / v.size());
  for (std::size_t i = 0; i < m.size(); ++i)
    m[i] = inner(std::span(fn).subspan(i * v.size(), v.size()), v) * rs;
  return m;
}

struct Site {
  Row pre, post, comb;
};

inline Site hc_site(const Row& v, std::size_t hc, const Row& fn, const Row& base, const Row& scale,
                    int iterations, double hc_eps, double norm_eps) {
  const Row m = mixes(v, fn, norm_eps);
  Site site;
  Row logits(hc * hc);
  for (std::size_t j = 0; j < hc; ++j) {
    site.pre.push_back(sigmoid(m[j] * scale[0] + base[j]) + hc_eps);
    site.post.push_back(2 * sigmoid(m[hc + j] * scale[1] + base[hc + j]));
  }
  for (std::size_t i = 0; i < hc * hc; ++i) logits[i] = m[2 * hc + i] * scale[2] + base[2 * hc + i];
  site.comb = sinkhorn(logits, hc, iterations, hc_eps);
  return site;
}

/// Σ_s weight_s · stream s
inline Row collapse(const Row& v, const Row& weights) {
  const std::size_t width = v.size() / weights.size();
  Row out(width, 0);
  for (std::size_t s = 0; s < weights.size(); ++s)
    for (std::size_t d = 0; d < width; ++d) out[d] += weights[s] * v[s * width + d];
  return out;
}

/// streams'[k] = post_k f + Σ_j comb[j][k] streams[j]
inline Row hc_post(const Row& v, const Row& f, const Row& post, const Row& comb) {
  const std::size_t hc = post.size(), width = f.size();
  Row out(v.size());
  for (std::size_t k = 0; k < hc; ++k)
    for (std::size_t d = 0; d < width; ++d) {
      double sum = post[k] * f[d];
      for (std::size_t j = 0; j < hc; ++j) sum += comb[j * hc + k] * v[j * width + d];
      out[k * width + d] = sum;
    }
  return out;
}

// ---- attention (2.4, 2.6, 2.7) ----

/// One softmax over all keys and the sink; keys are values too.
inline Row attend(const Row& q, const std::vector<Row>& keys, double sink) {
  const double scale = 1 / std::sqrt(static_cast<double>(q.size()));
  std::vector<double> z;
  double top = sink;
  for (const Row& key : keys) {
    z.push_back(inner(q, key) * scale);
    top = std::max(top, z.back());
  }
  double total = std::exp(sink - top);
  Row out(q.size(), 0);
  for (std::size_t k = 0; k < keys.size(); ++k) {
    const double weight = std::exp(z[k] - top);
    total += weight;
    for (std::size_t d = 0; d < q.size(); ++d) out[d] += weight * keys[k][d];
  }
  for (double& o : out) o /= total;
  return out;
}

/// Pools window w from all rows of a sequence: `values` and `scores` [tokens][c·width], scores with
/// the bias added. Ratio 4 overlaps (2.6).
inline Row pool_window(const std::vector<Row>& values, const std::vector<Row>& scores,
                       std::int64_t w, std::int64_t ratio, std::size_t width) {
  struct Slot {
    std::size_t token, first_channel;
  };
  std::vector<Slot> slots;
  const bool overlaps = ratio == 4;
  for (std::int64_t i = 0; overlaps && w > 0 && i < ratio; ++i)
    slots.push_back({static_cast<std::size_t>((w - 1) * ratio + i), 0});
  for (std::int64_t i = 0; i < ratio; ++i)
    slots.push_back({static_cast<std::size_t>(w * ratio + i), overlaps ? width : 0});
  Row out(width);
  for (std::size_t c = 0; c < width; ++c) {
    double top = -std::numeric_limits<double>::infinity(), total = 0;
    for (const Slot& s : slots) top = std::max(top, scores[s.token][s.first_channel + c]);
    for (const Slot& s : slots) {
      const double weight = std::exp(scores[s.token][s.first_channel + c] - top);
      total += weight;
      out[c] += weight * values[s.token][s.first_channel + c];
    }
    out[c] /= total;
  }
  return out;
}

inline double index_score(const std::vector<Row>& q, const Row& head_weights, const Row& key) {
  double sum = 0;
  for (std::size_t h = 0; h < q.size(); ++h) {
    const double product = inner(q[h], key);
    sum += head_weights[h] * (product > 0 ? product : 0);
  }
  return sum / std::sqrt(static_cast<double>(key.size())) /
         std::sqrt(static_cast<double>(q.size()));
}

// ---- number grids (2.0) ----

/// Magnitudes of a float format with 4-bit and 1-bit exponents, by code.
inline std::vector<double> e4m3_values() {
  std::vector<double> out;
  for (int code = 0; code < 127; ++code)
    out.push_back(code < 8 ? std::ldexp(code, -9) : std::ldexp(8 + code % 8, code / 8 - 10));
  return out;
}
inline std::vector<double> e2m1_values() { return {0, 0.5, 1, 1.5, 2, 3, 4, 6}; }

/// The nearest value of `grid` with the sign of x; ties go to the even code, larger values
/// saturate.
inline double nearest(double x, const std::vector<double>& grid) {
  const double a = std::abs(x);
  std::size_t best = 0;
  for (std::size_t c = 1; c < grid.size(); ++c) {
    const double now = std::abs(a - grid[c]), before = std::abs(a - grid[best]);
    if (now < before || (now == before && c % 2 == 0)) best = c;
  }
  return std::copysign(grid[best], x);
}

/// Rounds x[0, n) to `grid` with a power-of-two scale per block: 2^ceil(log2(max(amax, floor) /
/// top)).
inline void block_grid(Row& x, std::size_t n, std::size_t block, const std::vector<double>& grid,
                       double smallest) {
  for (std::size_t begin = 0; begin < n; begin += block) {
    const std::size_t end = std::min(n, begin + block);
    double amax = smallest;
    for (std::size_t i = begin; i < end; ++i) amax = std::max(amax, std::abs(x[i]));
    const double scale = std::exp2(std::ceil(std::log2(amax / grid.back())));
    for (std::size_t i = begin; i < end; ++i) x[i] = nearest(x[i] / scale, grid) * scale;
  }
}
inline void latent_grid(Row& x, std::size_t rope_dim) {
  block_grid(x, x.size() - rope_dim, 64, e4m3_values(), 1e-4);
}

/// Row i of the Sylvester matrix has sign (−1)^popcount(i & j).
inline Row hadamard(const Row& x) {
  Row out(x.size(), 0);
  for (std::size_t i = 0; i < x.size(); ++i) {
    for (std::size_t j = 0; j < x.size(); ++j)
      out[i] += __builtin_popcountll(i & j) % 2 == 0 ? x[j] : -x[j];
    out[i] /= std::sqrt(static_cast<double>(x.size()));
  }
  return out;
}

inline void index_grid(Row& x) {
  x = hadamard(x);
  block_grid(x, x.size(), 32, e2m1_values(), 6 * std::ldexp(1.0, -126));
}

/// x rounded to NVFP4: E4M3 scale per 16 of g, E2M1 values.
inline Row nvfp4(Row x, double g) {
  for (std::size_t b = 0; b < x.size(); b += 16) {
    double amax = 0;
    for (std::size_t i = b; i < b + 16; ++i) amax = std::max(amax, std::abs(x[i]));
    const double scale = nearest(amax / 6 / g, e4m3_values()) * g;
    for (std::size_t i = b; i < b + 16; ++i)
      x[i] = scale > 0 ? nearest(x[i] / scale, e2m1_values()) * scale : 0;
  }
  return x;
}

// ---- router (2.8) ----

struct Choice {
  std::vector<int> ids;
  Row weights;
};

inline Row normalised(const Row& scores, const std::vector<int>& ids, double scale) {
  Row out;
  double total = 0;
  for (const int e : ids) total += scores[static_cast<std::size_t>(e)];
  for (const int e : ids) out.push_back(scores[static_cast<std::size_t>(e)] / total * scale);
  return out;
}

/// Top-k by biased score, descending, lowest id first among equals; weights of unbiased scores.
inline Choice route(const Row& logits, const Row& bias, std::size_t k, double scale) {
  Row scores;
  for (const double g : logits) scores.push_back(sqrt_softplus(g));
  Choice choice;
  std::vector<bool> taken(scores.size(), false);
  for (std::size_t i = 0; i < k; ++i) {
    int best = -1;
    for (std::size_t e = 0; e < scores.size(); ++e)
      if (!taken[e] && (best < 0 || scores[e] + bias[e] > scores[static_cast<std::size_t>(best)] +
                                                              bias[static_cast<std::size_t>(best)]))
        best = static_cast<int>(e);
    taken[static_cast<std::size_t>(best)] = true;
    choice.ids.push_back(best);
  }
  choice.weights = normalised(scores, choice.ids, scale);
  return choice;
}

}  // namespace quatrain::testing::reference

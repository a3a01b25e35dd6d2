// SPDX-License-Identifier: Apache-2.0
// Kernels on rows of FP32 values. Compiled once per instruction set, like panel_products.h.
#pragma once

#include <cmath>
#include <cstring>

#include "backends/cpu/kernels/kernels.h"

namespace quatrain {
namespace {

using F = Simd::F;
inline constexpr int kLanes = Simd::kLanes;

// ---- vectors whose last lanes may be missing ----

F load_part(const float* p, std::int64_t count) {
  float lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<std::size_t>(count) * sizeof(float));
  return Simd::load(lanes);
}

void store_part(float* p, std::int64_t count, F x) {
  float lanes[kLanes];
  Simd::store(lanes, x);
  std::memcpy(p, lanes, static_cast<std::size_t>(count) * sizeof(float));
}

/// body(load, store, i): `load(p)` and `store(p, x)` move the elements from index i on.
template <class Body>
void each_vector(std::int64_t n, Body&& body) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    body([](const float* p) { return Simd::load(p); }, [](float* p, F x) { Simd::store(p, x); }, i);
  if (i < n)
    body([rest = n - i](const float* p) { return load_part(p, rest); },
         [rest = n - i](float* p, F x) { store_part(p, rest, x); }, i);
}

/// e^x with a relative error below 3e-7; 0 below −104, infinity above 89, NaN for NaN.
F exp(F x) {
  x = Simd::max(Simd::set(-104.0f), Simd::min(Simd::set(89.0f), x));
  const F n = Simd::round(Simd::mul(x, Simd::set(1.44269504f)));
  F r = Simd::fma(n, Simd::set(-0.693145752f), x);  // ln 2 in two parts
  r = Simd::fma(n, Simd::set(-1.42860677e-6f), r);
  F y = Simd::set(1.0f / 5040);
  for (const float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    y = Simd::fma(y, r, Simd::set(c));
  return Simd::scale_by_power(y, n);
}

float largest_lane(F x) {
  float lanes[kLanes];
  Simd::store(lanes, x);
  float largest = lanes[0];
  for (int i = 1; i < kLanes; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  return largest;
}

// ---- reductions ----

float dot(const float* a, const float* b, std::int64_t n) {
  F sums[4] = {Simd::zero(), Simd::zero(), Simd::zero(), Simd::zero()};
  std::int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    for (int s = 0; s < 4; ++s)
      sums[s] = Simd::fma(Simd::load(a + i + s * kLanes), Simd::load(b + i + s * kLanes), sums[s]);
  for (int s = 0; i < n; i += kLanes, ++s) {
    const std::int64_t rest = n - i;
    sums[s] = rest >= kLanes ? Simd::fma(Simd::load(a + i), Simd::load(b + i), sums[s])
                             : Simd::fma(load_part(a + i, rest), load_part(b + i, rest), sums[s]);
  }
  return Simd::sum(Simd::add(Simd::add(sums[0], sums[1]), Simd::add(sums[2], sums[3])));
}

// ---- elementwise ----

void rms_norm(const float* x, const float* weight, std::int64_t n, float eps, float* out) {
  const F factor = Simd::set(1.0f / std::sqrt(dot(x, x, n) / static_cast<float>(n) + eps));
  each_vector(n, [&](auto load, auto store, std::int64_t i) {
    F y = Simd::mul(load(x + i), factor);
    if (weight != nullptr) y = Simd::mul(load(weight + i), y);
    store(out + i, y);
  });
}

void swiglu(const float* gate, const float* up, std::int64_t n, float limit, float* out) {
  const F one = Simd::set(1.0f), high = Simd::set(limit), low = Simd::set(-limit);
  each_vector(n, [&](auto load, auto store, std::int64_t i) {
    F g = load(gate + i), u = load(up + i);
    if (limit > 0) {
      g = Simd::min(high, g);
      u = Simd::max(low, Simd::min(high, u));
    }
    const F sigmoid = Simd::div(one, Simd::add(one, exp(Simd::sub(Simd::zero(), g))));
    store(out + i, Simd::mul(Simd::mul(g, sigmoid), u));
  });
}

void add_scaled(const float* x, float w, std::int64_t n, float* out) {
  const F factor = Simd::set(w);
  each_vector(n, [&](auto load, auto store, std::int64_t i) {
    store(out + i, Simd::fma(factor, load(x + i), load(out + i)));
  });
}

void weighted_sum(const float* x, const float* w, std::int64_t streams, std::int64_t stride,
                  std::int64_t n, float* out) {
  each_vector(n, [&](auto load, auto store, std::int64_t i) {
    F sum = Simd::zero();
    for (std::int64_t s = 0; s < streams; ++s)
      sum = Simd::fma(Simd::set(w[s]), load(x + s * stride + i), sum);
    store(out + i, sum);
  });
}

template <int kStreams>
void mix_some_streams(const float* f, const float* post, const float* comb, std::int64_t hc,
                      std::int64_t stride, std::int64_t n, float* streams) {
  constexpr std::int64_t kMost = 8;
  if constexpr (kStreams > 0) hc = kStreams;  // a constant, so that all stays in registers
  each_vector(n, [&](auto load, auto store, std::int64_t i) {
    F old[kMost];
    for (std::int64_t j = 0; j < hc; ++j) old[j] = load(streams + j * stride + i);
    const F added = load(f + i);
    for (std::int64_t k = 0; k < hc; ++k) {
      F sum = Simd::mul(Simd::set(post[k]), added);
      for (std::int64_t j = 0; j < hc; ++j)
        sum = Simd::fma(Simd::set(comb[j * hc + k]), old[j], sum);
      store(streams + k * stride + i, sum);
    }
  });
}

void mix_streams(const float* f, const float* post, const float* comb, std::int64_t hc,
                 std::int64_t stride, std::int64_t n, float* streams) {
  (hc == 4 ? mix_some_streams<4> : mix_some_streams<0>)(f, post, comb, hc, stride, n, streams);
}

// Rows of fn that share the loads of x.
inline constexpr int kMixTile = 8;

template <int kRows>
void site_tile(const float* x, const float* fn, std::int64_t streams, std::int64_t stride,
               std::int64_t n, float* out) {
  F sums[kRows];
  for (F& sum : sums) sum = Simd::zero();
  for (std::int64_t s = 0; s < streams; ++s)
    each_vector(n, [&](auto load, auto, std::int64_t c) {
      const F v = load(x + s * stride + c);
      for (int i = 0; i < kRows; ++i)
        sums[i] = Simd::fma(load(fn + (i * streams + s) * stride + c), v, sums[i]);
    });
  for (int i = 0; i < kRows; ++i) out[i] = Simd::sum(sums[i]);
}

void site_sums(const float* x, const float* fn, std::int64_t mixes, std::int64_t streams,
               std::int64_t stride, std::int64_t n, float* sums) {
  const std::int64_t row = streams * stride;
  std::int64_t i = 0;
  for (; i + kMixTile <= mixes; i += kMixTile)
    site_tile<kMixTile>(x, fn + i * row, streams, stride, n, sums + i);
  for (; i < mixes; ++i) site_tile<1>(x, fn + i * row, streams, stride, n, sums + i);
  site_tile<1>(x, x, streams, stride, n, sums + mixes);
}

void pool(const float* const* values, const float* const* scores, std::int64_t count,
          std::int64_t n, float* out) {
  each_vector(n, [&](auto load, auto store, std::int64_t c) {
    F largest = load(scores[0] + c);
    for (std::int64_t i = 1; i < count; ++i) largest = Simd::max(largest, load(scores[i] + c));
    F total = Simd::zero(), sum = Simd::zero();
    for (std::int64_t i = 0; i < count; ++i) {
      const F weight = exp(Simd::sub(load(scores[i] + c), largest));
      total = Simd::add(total, weight);
      sum = Simd::fma(weight, load(values[i] + c), sum);
    }
    store(out + c, Simd::div(sum, total));
  });
}

// ---- int8 activations: the bits of int8_quantise_row() in activation_quant.cpp ----

// The biased exponent of the largest magnitude. Magnitudes compare as integers, and infinity and
// NaN are above all others.
std::int32_t largest_exponent(const float* x, std::int64_t n) {
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, x + i, 4);
    bits &= 0x7FFFFFFFu;
    largest = largest > bits ? largest : bits;
  }
  return static_cast<std::int32_t>(largest >> 23);
}

float power_of_two(std::int32_t biased_exponent) {
  const std::int32_t bits = biased_exponent << 23;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// values = x · inverse to nearest, limited to ±127; returns their sum.
std::int32_t quantise_int8_block(const float* x, float inverse, std::int8_t* values) {
  constexpr float kShift = 12582912.0f;  // 1.5 · 2^23: an integer added to it is added to its bits
  constexpr std::int32_t kShiftBits = 0x4B400000;
  float shifted[kInt8Block];
  for (std::int64_t i = 0; i < kInt8Block; i += kLanes) {
    const F scaled = Simd::mul(Simd::load(x + i), Simd::set(inverse));
    const F limited = Simd::min(Simd::set(127.0f), Simd::max(Simd::set(-127.0f), scaled));
    Simd::store(shifted + i, Simd::add(limited, Simd::set(kShift)));
  }
  std::int32_t integers[kInt8Block];
  std::memcpy(integers, shifted, sizeof integers);
  std::int32_t sum = 0;
  for (int i = 0; i < static_cast<int>(kInt8Block); ++i) sum += integers[i] -= kShiftBits;
  for (int i = 0; i < static_cast<int>(kInt8Block); ++i)
    values[i] = static_cast<std::int8_t>(integers[i]);
  return sum;
}

// `count` columns, up to a group, of a row: `row` is its exponent, `least` that of its scales.
template <class S = Simd>
void quantise_int8_group(const float* x, std::int64_t count, std::int32_t row, std::int32_t least,
                         Int8Activations* out) {
  if constexpr (S::kQuantisesGroups)
    if (count == kInt8Group) return S::quantise_int8_group(x, row, least, out);
  if (count < kInt8Group) std::memset(out, 0, sizeof *out);
  for (std::int64_t c = 0; c < kInt8Group; c += kInt8Chunk) {
    float& scale = out->scales[c / kInt8Chunk];
    scale = 1;
    if (c >= count) continue;
    const std::int64_t size = count - c < kInt8Chunk ? count - c : kInt8Chunk;
    const std::int32_t largest = largest_exponent(x + c, size);
    const std::int32_t exponent = largest > least ? largest : least;
    scale = power_of_two(127 + exponent - row);
    const float inverse = power_of_two(2 * 127 + 6 - exponent);
    for (std::int64_t b = c; b < c + size; b += kInt8Block)
      out->offsets[b / kInt8Block] = -12 * quantise_int8_block(x + b, inverse, out->values + b);
  }
}

void quantise_int8(const float* x, std::int64_t n, Int8Activations* out) {
  constexpr std::int32_t kLeast = 27, kSpread = 24, kNotFinite = 255;
  const auto larger = [](std::int32_t a, std::int32_t b) { return a > b ? a : b; };
  const std::int32_t row = larger(largest_exponent(x, n), kLeast);
  const std::int32_t least = larger(row - kSpread, kLeast);
  for (std::int64_t begin = 0; begin < n; begin += kInt8Group, ++out) {
    const std::int64_t count = n - begin < kInt8Group ? n - begin : kInt8Group;
    if (row == kNotFinite) {
      std::memset(out, 0, sizeof *out);
      for (float& scale : out->scales) scale = 1;
      out->row_scale = __builtin_nanf("");
      continue;
    }
    quantise_int8_group(x + begin, count, row, least, out);
    out->row_scale = power_of_two(row - 6);
  }
}

// ---- attention ----

// Tiles of queries and keys (or of queries and vectors of values) that fit the registers.
inline constexpr int kHeadTile = kLanes == 16 ? 4 : 2;
inline constexpr int kKeyTile = kLanes == 16 ? 4 : 2;

template <int kHeads, int kKeys>
void score_tile(const float* q, const float* const* keys, std::int64_t width, std::int64_t stride,
                float* out) {
  F sums[kHeads * kKeys];
  for (F& sum : sums) sum = Simd::zero();
  each_vector(width, [&](auto load, auto, std::int64_t d) {
    F k[kKeys];
    for (int j = 0; j < kKeys; ++j) k[j] = load(keys[j] + d);
    for (int h = 0; h < kHeads; ++h) {
      const F x = load(q + h * width + d);
      for (int j = 0; j < kKeys; ++j) sums[h * kKeys + j] = Simd::fma(x, k[j], sums[h * kKeys + j]);
    }
  });
  float scores[kHeads * kKeys];
  Simd::store_sums<kHeads * kKeys>(sums, scores);
  for (int h = 0; h < kHeads; ++h)
    std::memcpy(out + h * stride, scores + h * kKeys, kKeys * sizeof(float));
}

template <int kHeads>
void score_rows(const float* q, const float* const* keys, std::int64_t width, std::int64_t count,
                float* out) {
  std::int64_t j = 0;
  for (; j + kKeyTile <= count; j += kKeyTile)
    score_tile<kHeads, kKeyTile>(q, keys + j, width, count, out + j);
  for (; j < count; ++j) score_tile<kHeads, 1>(q, keys + j, width, count, out + j);
}

void index_scores(const float* q, const float* weights, const float* const* keys,
                  std::int64_t heads, std::int64_t width, std::int64_t count, float* out) {
  for (std::int64_t j = 0; j < count; j += kKeyTile) {
    const std::int64_t found = count - j < kKeyTile ? count - j : kKeyTile;
    float sums[kKeyTile] = {};
    const auto tile = [&]<int kHeads>(std::int64_t h) {
      float products[kHeads][kKeyTile];
      if (found == kKeyTile)
        score_tile<kHeads, kKeyTile>(q + h * width, keys + j, width, kKeyTile, products[0]);
      else
        for (std::int64_t i = 0; i < found; ++i)
          score_tile<kHeads, 1>(q + h * width, keys + j + i, width, kKeyTile, products[0] + i);
      const auto add = [&](int i, int k) {
        sums[k] += weights[h + i] * (products[i][k] > 0 ? products[i][k] : 0.0f);
      };
      for (int i = 0; i < kHeads; ++i) {
        if (found == kKeyTile)  // a constant number, so that keys become lanes
          for (int k = 0; k < kKeyTile; ++k) add(i, k);
        else
          for (int k = 0; k < found; ++k) add(i, k);
      }
    };
    std::int64_t h = 0;
    for (; h + kHeadTile <= heads; h += kHeadTile) tile.template operator()<kHeadTile>(h);
    for (; h < heads; ++h) tile.template operator()<1>(h);
    for (std::int64_t k = 0; k < found; ++k) out[j + k] = sums[k];
  }
}

// scores → weights of the softmax with a sink; returns the reciprocal of their sum.
float softmax(float* scores, std::int64_t count, float scale, float sink) {
  F most = Simd::set(sink);
  const F factor = Simd::set(scale);
  std::int64_t whole = count / kLanes * kLanes;
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    const F s = Simd::mul(Simd::load(scores + i), factor);
    Simd::store(scores + i, s);
    most = Simd::max(most, s);
  }
  float largest = largest_lane(most);
  for (std::int64_t i = whole; i < count; ++i) {
    scores[i] *= scale;
    largest = scores[i] > largest ? scores[i] : largest;
  }
  F total = Simd::zero();
  const F shift = Simd::set(largest);
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    const F w = exp(Simd::sub(Simd::load(scores + i), shift));
    Simd::store(scores + i, w);
    total = Simd::add(total, w);
  }
  float rest = std::exp(sink - largest);  // the sink has a weight but no value
  if (whole < count) {
    store_part(scores + whole, count - whole,
               exp(Simd::sub(load_part(scores + whole, count - whole), shift)));
    for (std::int64_t i = whole; i < count; ++i) rest += scores[i];
  }
  return 1.0f / (Simd::sum(total) + rest);
}

// out[h, d…] = factors[h] Σ_k weights[h, k] keys[k][d…] for a tile of heads and vectors.
template <int kHeads, int kVecs, class Load, class Store>
void value_tile(const AttendTask& task, std::int64_t head, const float* factors, std::int64_t d,
                Load load, Store store) {
  F sums[kHeads][kVecs];
  for (auto& h : sums)
    for (F& sum : h) sum = Simd::zero();
  for (std::int64_t k = 0; k < task.count; ++k) {
    F v[kVecs];
    for (int i = 0; i < kVecs; ++i) v[i] = load(task.keys[k] + d + i * kLanes);
    for (int h = 0; h < kHeads; ++h) {
      const F w = Simd::set(task.scores[(head + h) * task.count + k]);
      for (int i = 0; i < kVecs; ++i) sums[h][i] = Simd::fma(w, v[i], sums[h][i]);
    }
  }
  for (int h = 0; h < kHeads; ++h)
    for (int i = 0; i < kVecs; ++i)
      store(task.out + (head + h) * task.width + d + i * kLanes,
            Simd::mul(sums[h][i], Simd::set(factors[h])));
}

template <int kHeads>
void value_rows(const AttendTask& task, std::int64_t head, const float* factors) {
  constexpr int kVecs = kKeyTile;
  std::int64_t d = 0;
  for (; d + kVecs * kLanes <= task.width; d += kVecs * kLanes)
    value_tile<kHeads, kVecs>(
        task, head, factors, d, [](const float* p) { return Simd::load(p); },
        [](float* p, F x) { Simd::store(p, x); });
  for (; d < task.width; d += kLanes) {
    const std::int64_t rest = task.width - d < kLanes ? task.width - d : kLanes;
    value_tile<kHeads, 1>(
        task, head, factors, d, [rest](const float* p) { return load_part(p, rest); },
        [rest](float* p, F x) { store_part(p, rest, x); });
  }
}

void attend(const AttendTask& task) {
  std::int64_t h = 0;
  const auto tile = [&]<int kHeads>() {
    score_rows<kHeads>(task.q + h * task.width, task.keys, task.width, task.count,
                       task.scores + h * task.count);
    float factors[kHeads];
    for (int i = 0; i < kHeads; ++i)
      factors[i] =
          softmax(task.scores + (h + i) * task.count, task.count, task.scale, task.sinks[h + i]);
    value_rows<kHeads>(task, h, factors);
    h += kHeads;
  };
  while (h + kHeadTile <= task.heads) tile.template operator()<kHeadTile>();
  while (h + 2 <= task.heads) tile.template operator()<2>();
  if (h < task.heads) tile.template operator()<1>();
}

void fill_row_kernels(CpuKernels& k) {
  k.quantise_int8 = quantise_int8;
  k.dot = dot;
  k.index_scores = index_scores;
  k.attend = attend;
  k.rms_norm = rms_norm;
  k.swiglu = swiglu;
  k.add_scaled = add_scaled;
  k.weighted_sum = weighted_sum;
  k.mix_streams = mix_streams;
  k.site_sums = site_sums;
  k.pool = pool;
}

}  // namespace
}  // namespace quatrain

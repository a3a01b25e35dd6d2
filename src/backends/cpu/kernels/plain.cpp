// SPDX-License-Identifier: Apache-2.0
// The plain row kernels: the definitions that the vector kernels are tested against.
#include <algorithm>
#include <cmath>
#include <limits>

#include "backends/cpu/activation_quant.h"
#include "backends/cpu/kernels/tables.h"
#include "backends/cpu/row_decoder.h"
#include "backends/cpu/row_math.h"
#include "backends/cpu/scalar.h"

namespace quatrain {
namespace {

void index_scores(const float* q, const float* weights, const float* const* keys,
                  std::int64_t heads, std::int64_t width, std::int64_t count, float* out) {
  for (std::int64_t k = 0; k < count; ++k) {
    float sum = 0;
    for (std::int64_t h = 0; h < heads; ++h)
      sum += weights[h] * std::max(dot(q + h * width, keys[k], width), 0.0f);
    out[k] = sum;
  }
}

void attend(const AttendTask& task) {
  const std::int64_t width = task.width;
  for (std::int64_t h = 0; h < task.heads; ++h) {
    float largest = task.sinks[h];
    for (std::int64_t k = 0; k < task.count; ++k) {
      task.scores[k] = dot(task.q + h * width, task.keys[k], width) * task.scale;
      largest = std::max(largest, task.scores[k]);
    }
    float* out = task.out + h * width;
    std::fill_n(out, width, 0.0f);
    float total = std::exp(task.sinks[h] - largest);  // the sink has a weight but no value
    for (std::int64_t k = 0; k < task.count; ++k) {
      const float weight = std::exp(task.scores[k] - largest);
      total += weight;
      for (std::int64_t d = 0; d < width; ++d) out[d] += weight * task.keys[k][d];
    }
    for (std::int64_t d = 0; d < width; ++d) out[d] /= total;
  }
}

void swiglu(const float* gate, const float* up, std::int64_t n, float limit, float* out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = swiglu_value(gate[i], up[i], limit);
}

void add_scaled(const float* x, float w, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] += w * x[i];
}

void weighted_sum(const float* x, const float* w, std::int64_t streams, std::int64_t stride,
                  std::int64_t n, float* out) {
  for (std::int64_t d = 0; d < n; ++d) {
    float sum = 0;
    for (std::int64_t s = 0; s < streams; ++s) sum += w[s] * x[s * stride + d];
    out[d] = sum;
  }
}

void mix_streams(const float* f, const float* post, const float* comb, std::int64_t hc,
                 std::int64_t stride, std::int64_t n, float* streams) {
  float old[8];
  for (std::int64_t d = 0; d < n; ++d) {
    for (std::int64_t j = 0; j < hc; ++j) old[j] = streams[j * stride + d];
    for (std::int64_t k = 0; k < hc; ++k) {
      float sum = post[k] * f[d];
      for (std::int64_t j = 0; j < hc; ++j) sum += comb[j * hc + k] * old[j];
      streams[k * stride + d] = sum;
    }
  }
}

void site_sums(const float* x, const float* fn, std::int64_t mixes, std::int64_t streams,
               std::int64_t stride, std::int64_t n, float* sums) {
  std::fill_n(sums, mixes + 1, 0.0f);
  for (std::int64_t s = 0; s < streams; ++s, x += stride) {
    for (std::int64_t i = 0; i < mixes; ++i) sums[i] += dot(fn + (i * streams + s) * stride, x, n);
    sums[mixes] += dot(x, x, n);
  }
}

void pool(const float* const* values, const float* const* scores, std::int64_t count,
          std::int64_t n, float* out) {
  for (std::int64_t c = 0; c < n; ++c) {
    float largest = -std::numeric_limits<float>::infinity();
    for (std::int64_t i = 0; i < count; ++i) largest = std::max(largest, scores[i][c]);
    float total = 0;
    float sum = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      const float weight = std::exp(scores[i][c] - largest);
      total += weight;
      sum += weight * values[i][c];
    }
    out[c] = sum / total;
  }
}

}  // namespace

void fill_plain_kernels(CpuKernels& k) {
  k.isa = CpuIsa::kPlain;
  k.quantise_int8 = int8_quantise_row;
  k.dot = dot;
  k.index_scores = index_scores;
  k.attend = attend;
  k.rms_norm = rms_norm_row;
  k.swiglu = swiglu;
  k.add_scaled = add_scaled;
  k.weighted_sum = weighted_sum;
  k.mix_streams = mix_streams;
  k.site_sums = site_sums;
  k.pool = pool;
}

}  // namespace quatrain

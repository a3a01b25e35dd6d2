// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/row_decoder.h"

#include <array>
#include <cstring>

#include "core/codec.h"

// The same loops compiled for wider vectors, chosen when the program starts. Sixteen running sums
// and no contraction give the same bits on each. Sanitizers do not work with such functions.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(QUATRAIN_SANITIZED)
#define QT_VECTOR_CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define QT_VECTOR_CLONES
#endif

namespace quatrain {
namespace {

struct Tables {
  std::array<std::array<float, 2>, 256> e2m1_pair;
  std::array<float, 256> e4m3;
  std::array<float, 256> ue8m0;

  Tables() {
    for (unsigned b = 0; b < 256; ++b) {
      e2m1_pair[b] = {e2m1_decode(b & 15u), e2m1_decode(b >> 4)};
      e4m3[b] = e4m3_decode(static_cast<std::uint8_t>(b));
      ue8m0[b] = ue8m0_decode(static_cast<std::uint8_t>(b));
    }
  }
};

const Tables kTables;

template <std::int64_t kBlock>
void decode_fp4_row(const QuantMatrix& m, std::int64_t row, const std::array<float, 256>& scales,
                    float* out) {
  const auto* values = reinterpret_cast<const std::uint8_t*>(m.values) + row * (m.cols / 2);
  const std::int64_t blocks = m.cols / kBlock;
  const auto* scale = reinterpret_cast<const std::uint8_t*>(m.scales) + row * blocks;
  for (std::int64_t b = 0; b < blocks; ++b) {
    const float s = scales[scale[b]] * m.global_scale;
    for (std::int64_t i = 0; i < kBlock / 2; ++i) {
      const auto& pair = kTables.e2m1_pair[values[b * kBlock / 2 + i]];
      out[b * kBlock + 2 * i] = pair[0] * s;
      out[b * kBlock + 2 * i + 1] = pair[1] * s;
    }
  }
}

QT_VECTOR_CLONES void decode_bf16_row(const QuantMatrix& m, std::int64_t row, float* out) {
  const auto* values = reinterpret_cast<const std::uint16_t*>(m.values) + row * m.cols;
  for (std::int64_t c = 0; c < m.cols; ++c) out[c] = bf16_decode(values[c]);
}

void decode_fp8_ue8m0_row(const QuantMatrix& m, std::int64_t row, float* out) {
  const auto* values = reinterpret_cast<const std::uint8_t*>(m.values) + row * m.cols;
  const auto* scales =
      reinterpret_cast<const std::uint8_t*>(m.scales) + row / kFp8Block * m.scale_columns();
  for (std::int64_t c = 0; c < m.cols; ++c)
    out[c] = kTables.e4m3[values[c]] * kTables.ue8m0[scales[c / kFp8Block]];
}

}  // namespace

void decode_weight_row(const QuantMatrix& m, std::int64_t row, float* out) {
  const bool byte_scales = m.scale_dtype == DType::kF8E8M0 || m.scale_dtype == DType::kU8;
  if (m.format == WeightFormat::kNvfp4)
    decode_fp4_row<kNvfp4Block>(m, row, kTables.e4m3, out);
  else if (m.format == WeightFormat::kMxfp4)
    decode_fp4_row<kMxfp4Block>(m, row, kTables.ue8m0, out);
  else if (m.format == WeightFormat::kDense && m.dtype == DType::kBF16)
    decode_bf16_row(m, row, out);
  else if (m.format == WeightFormat::kFp8Block && byte_scales)
    decode_fp8_ue8m0_row(m, row, out);
  else
    decode_row(m, row, out);
}

QT_VECTOR_CLONES float dot(const float* a, const float* b, std::int64_t n) {
  constexpr std::int64_t kLanes = 16;
  float sums[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (std::int64_t l = 0; l < kLanes; ++l) sums[l] += a[i + l] * b[i + l];
  for (std::int64_t l = 0; i < n; ++i, ++l) sums[l] += a[i] * b[i];
  for (std::int64_t width = kLanes / 2; width > 0; width /= 2)
    for (std::int64_t l = 0; l < width; ++l) sums[l] += sums[l + width];
  return sums[0];
}

}  // namespace quatrain

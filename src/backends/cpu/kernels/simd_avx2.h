// SPDX-License-Identifier: Apache-2.0
// Vectors of 8 floats. Included by the AVX2 translation unit alone.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace quatrain {
namespace {

struct Simd {
  using F = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kChains = 1;     // four vectors of rows are chains enough
  static constexpr int kFloatTile = 2;  // 2 tokens · 4 vectors = 8 of 16 registers
  static constexpr int kInt8Tile = 4;
  static constexpr int kInt8TogetherTokens = 1;
  static constexpr bool kQuantisesGroups = false;

  static F zero() { return _mm256_setzero_ps(); }
  static F set(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  // The second operand comes back when one is NaN: min(limit, x) keeps a NaN of x.
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  /// x · 2^n for integral n in [−252, 252]: two factors, so that each is a normal number.
  static F scale_by_power(F x, F n) {
    const __m256i all = _mm256_cvtps_epi32(n);
    const __m256i half = _mm256_srai_epi32(all, 1);
    const auto power = [](__m256i e) {
      return _mm256_castsi256_ps(
          _mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23));
    };
    return mul(mul(x, power(half)), power(_mm256_sub_epi32(all, half)));
  }
  static float sum(F x) {
    const __m128 q = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
  }

  /// out[i] = sum(x[i])
  template <int kCount>
  static void store_sums(const F* x, float* out) {
    for (int i = 0; i < kCount; ++i) out[i] = sum(x[i]);
  }

  // ---- decoders of panel data: vectors of one column for 32 rows ----

  static void decode_f32(const std::byte* p, F* w) {
    for (int v = 0; v < 4; ++v) w[v] = load(reinterpret_cast<const float*>(p) + 8 * v);
  }
  static void decode_f16(const std::byte* p, F* w) {
    for (int v = 0; v < 4; ++v) w[v] = _mm256_cvtph_ps(load16(p + 16 * v));
  }
  static void decode_bf16(const std::byte* p, F* w) {
    for (int v = 0; v < 2; ++v) {
      const __m256i codes = load32(p + 32 * v);
      w[v] = _mm256_castsi256_ps(_mm256_slli_epi32(codes, 16));
      w[v + 2] = _mm256_castsi256_ps(_mm256_and_si256(codes, _mm256_set1_epi32(-65536)));
    }
  }
  /// Two columns. Values come out times 2^-8, as halves with E4M3's bits: F16 subnormals are exact.
  static void decode_fp8_pair(const std::byte* p, F* w0, F* w1) {
    decode_fp8(p, w0);
    decode_fp8(p + 32, w1);
  }

  // ---- 4-bit codes ----

  using Codes = __m256i;
  static Codes load_codes(const std::byte* p) { return load32(p); }
  template <int kNibble>
  static F decode_nibble(Codes codes) {
    const F table = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
    const F value = _mm256_permutevar8x32_ps(table, _mm256_srli_epi32(codes, 4 * kNibble));
    const __m256i sign = _mm256_slli_epi32(_mm256_srli_epi32(codes, 4 * kNibble + 3), 31);
    return _mm256_or_ps(value, _mm256_castsi256_ps(sign));
  }
  static F decode_e4m3_scales(const std::byte* p) {
    const __m128i wide = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    return _mm256_cvtph_ps(_mm_slli_epi16(wide, 7));
  }
  static F decode_ue8m0_scales(const std::byte* p) {
    const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    // Code 0 is 2^-127, an FP32 subnormal.
    return _mm256_castsi256_ps(
        _mm256_max_epu32(_mm256_slli_epi32(wide, 23), _mm256_set1_epi32(0x00400000)));
  }

  // ---- int8: weights 2w + 12 in 0..24, four columns of 8 rows per vector ----

  using Weights = __m256i;
  using Sum = __m256i;
  static void decode_int8(const std::byte* p, Weights& low, Weights& high) {
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i codes = load32(p);
    low = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, mask));
    high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask));
  }
  /// Σ over 16 columns of w[0..3] · x, plus `offset`, per row. A 16-bit lane sums 8 products of at
  /// most 24 · 127, which is below 2^15.
  static Sum dot_block(const Weights* w, const std::int8_t* x, Sum sum) {
    __m256i pairs = _mm256_maddubs_epi16(w[0], broadcast4(x));
    for (int i = 1; i < 4; ++i)
      pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w[i], broadcast4(x + 4 * i)));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static Sum set_sum(std::int32_t x) { return _mm256_set1_epi32(x); }
  static F to_float(Sum x) { return _mm256_cvtepi32_ps(x); }

 private:
  static __m128i load16(const std::byte* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  static __m256i load32(const std::byte* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static __m256i broadcast4(const std::int8_t* x) {
    std::int32_t four;
    __builtin_memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
  }
  static void decode_fp8(const std::byte* p, F* w) {
    const __m256i codes = load32(p);
    const __m256i zero = _mm256_setzero_si256();
    const __m256i mask = _mm256_set1_epi16(static_cast<short>(0xBF80));
    const auto halves = [&](__m256i shifted) {
      return _mm256_and_si256(_mm256_srai_epi16(shifted, 1), mask);
    };
    const __m256i lo = halves(_mm256_unpacklo_epi8(zero, codes));
    const __m256i hi = halves(_mm256_unpackhi_epi8(zero, codes));
    w[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(lo));
    w[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(lo, 1));
    w[2] = _mm256_cvtph_ps(_mm256_castsi256_si128(hi));
    w[3] = _mm256_cvtph_ps(_mm256_extracti128_si256(hi, 1));
  }
};

}  // namespace
}  // namespace quatrain

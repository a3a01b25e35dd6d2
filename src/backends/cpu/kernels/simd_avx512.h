// SPDX-License-Identifier: Apache-2.0
// Vectors of 16 floats. Included by the translation units of AVX-512 and of AVX-512 with VBMI,
// whose byte permutations decode codes in fewer instructions.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "backends/cpu/kernels/fp8_tables.h"
#include "backends/cpu/kernels/kernels.h"

namespace quatrain {
namespace {

struct Simd {
  using F = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kChains = 2;     // running sums per output: hides the latency of FMA
  static constexpr int kFloatTile = 6;  // 6 tokens · 2 vectors · 2 chains = 24 registers
  static constexpr int kInt8Tile = 8;
  static constexpr int kInt8TogetherTokens = 8;
  static constexpr bool kQuantisesGroups = true;

  static F zero() { return _mm512_setzero_ps(); }
  static F set(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  // The second operand comes back when one is NaN: min(limit, x) keeps a NaN of x.
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F round(F x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  /// x · 2^n for integral n.
  static F scale_by_power(F x, F n) { return _mm512_scalef_ps(x, n); }
  static float sum(F x) {
    const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
  }

  /// out[i] = sum(x[i])
  template <int kCount>
  static void store_sums(const F* x, float* out) {
    if constexpr (kCount == kLanes)
      store(out, sum_each(x));
    else
      for (int i = 0; i < kCount; ++i) out[i] = sum(x[i]);
  }
  /// Lane i is sum(x[i]), with its bits: 16 vectors are halved together.
  static F sum_each(const F* x) {
    F quarters[4];  // by 128-bit lane, the sums of x[m], x[4 + m], x[8 + m] and x[12 + m] by fours
    for (int m = 0; m < 4; ++m) {
      const F low = halves(x[m], x[4 + m]), high = halves(x[8 + m], x[12 + m]);
      quarters[m] = _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88),
                                  _mm512_shuffle_f32x4(low, high, 0xDD));
    }
    const F even = pairs(quarters[0], quarters[1]), odd = pairs(quarters[2], quarters[3]);
    return _mm512_add_ps(_mm512_shuffle_ps(even, odd, 0x88), _mm512_shuffle_ps(even, odd, 0xDD));
  }

  // ---- decoders of panel data: vectors of one column for 32 rows ----

  static void decode_f32(const std::byte* p, F* w) {
    w[0] = _mm512_loadu_ps(p);
    w[1] = _mm512_loadu_ps(p + 64);
  }
  static void decode_f16(const std::byte* p, F* w) {
    const __m512i codes = _mm512_loadu_si512(p);
    w[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(codes));
    w[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(codes, 1));
  }
  static void decode_bf16(const std::byte* p, F* w) {
    const __m512i codes = _mm512_loadu_si512(p);
    w[0] = _mm512_castsi512_ps(_mm512_slli_epi32(codes, 16));
    w[1] = _mm512_castsi512_ps(_mm512_and_si512(codes, _mm512_set1_epi32(-65536)));
  }
  /// Two columns. Values come out times 2^-8, as halves with E4M3's bits: F16 subnormals are exact.
  static void decode_fp8_pair(const std::byte* p, F* w0, F* w1) {
    const __m512i codes = _mm512_loadu_si512(p);
#if defined(__AVX512VBMI__)
    const __m512i pairs = _mm512_permutexvar_epi8(_mm512_load_si512(kFp8Pairs.order), codes);
    const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(kFp8Tables.low), pairs,
                                                 _mm512_load_si512(kFp8Tables.low + 64));
    const __m512i magnitude = _mm512_permutex2var_epi8(_mm512_load_si512(kFp8Tables.high), pairs,
                                                       _mm512_load_si512(kFp8Tables.high + 64));
    constexpr int kOrAnd = 0xF8;  // a | (b & c)
    const __m512i high =
        _mm512_ternarylogic_epi32(magnitude, pairs, _mm512_set1_epi8(-128), kOrAnd);
    const __m512i both[2] = {_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)};
    for (int v = 0; v < 2; ++v) {
      w0[v] = _mm512_castsi512_ps(_mm512_slli_epi32(both[v], 16));
      w1[v] = _mm512_castsi512_ps(_mm512_and_si512(both[v], _mm512_set1_epi32(-65536)));
    }
#else
    const __m512i zero = _mm512_setzero_si512();
    const __m512i mask = _mm512_set1_epi16(static_cast<short>(0xBF80));
    const auto halves = [&](__m512i shifted) {
      return _mm512_and_si512(_mm512_srai_epi16(shifted, 1), mask);
    };
    const __m512i lo = halves(_mm512_unpacklo_epi8(zero, codes));
    const __m512i hi = halves(_mm512_unpackhi_epi8(zero, codes));
    w0[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(lo));
    w0[1] = _mm512_cvtph_ps(_mm512_castsi512_si256(hi));
    w1[0] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(lo, 1));
    w1[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(hi, 1));
#endif
  }

  // ---- 4-bit codes ----

  /// The eight codes of each row, as loaded for rows [16 v, 16 v + 16).
  using Codes = __m512i;
  static Codes load_codes(const std::byte* p) { return _mm512_loadu_si512(p); }
  /// Values of nibble n of every row.
  template <int kNibble>
  static F decode_nibble(Codes codes) {
    const F table = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f,
                                   -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f);
    return _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4 * kNibble), table);
  }
  /// Scales of 16 rows; E4M3 comes out times 2^-8.
  static F decode_e4m3_scales(const std::byte* p) {
    const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm512_cvtph_ps(_mm256_slli_epi16(wide, 7));
  }
  static F decode_ue8m0_scales(const std::byte* p) {
    const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    // Code 0 is 2^-127, an FP32 subnormal.
    return _mm512_castsi512_ps(
        _mm512_max_epu32(_mm512_slli_epi32(wide, 23), _mm512_set1_epi32(0x00400000)));
  }

  // ---- int8: weights 2w + 12 in 0..24, four columns of 16 rows per vector ----

  using Weights = __m512i;
  using Sum = __m512i;
  static void decode_int8(const std::byte* p, Weights& low, Weights& high) {
    const __m512i table = _mm512_broadcast_i32x4(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    const __m512i codes = _mm512_loadu_si512(p);
#if defined(__AVX512VBMI__)
    // Indices have six bits and the table repeats every sixteen: two bits may be anything.
    low = _mm512_permutexvar_epi8(codes, table);
    high = _mm512_permutexvar_epi8(_mm512_srli_epi16(codes, 4), table);
#else
    const __m512i mask = _mm512_set1_epi8(15);
    low = _mm512_shuffle_epi8(table, _mm512_and_si512(codes, mask));
    high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask));
#endif
  }
  /// Σ over 16 columns of w[0..3] · x, plus `offset`, per row.
  static Sum dot_block(const Weights* w, const std::int8_t* x, Sum sum) {
    // Assembly, because compilers broadcast to a register first, of which there are not enough.
    for (int i = 0; i < 4; ++i)
      __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w[i]), "m"(four(x + 4 * i)));
    return sum;
  }
  /// 128 columns of a row: values, offsets and scales. `row` is the biased exponent of the row's
  /// largest magnitude, `least` the least of its scales.
  static void quantise_int8_group(const float* x, std::int32_t row, std::int32_t least,
                                  Int8Activations* out) {
    const __m128i exponents =
        _mm_max_epi32(_mm_srli_epi32(largest_of_chunks(x), 23), _mm_set1_epi32(least));
    const auto power = [](__m128i biased) { return _mm_castsi128_ps(_mm_slli_epi32(biased, 23)); };
    _mm_storeu_ps(out->scales, power(_mm_add_epi32(exponents, _mm_set1_epi32(127 - row))));
    float inverses[4];
    _mm_storeu_ps(inverses, power(_mm_sub_epi32(_mm_set1_epi32(2 * 127 + 6), exponents)));
    for (int half = 0; half < 2; ++half, x += 64) {
      const auto quarter = [&](int i) {
        const F scaled = mul(load(x + 16 * i), set(inverses[2 * half + i / 2]));
        const F limited = min(set(127.0f), max(set(-127.0f), scaled));
        return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(limited));  // to nearest, ties to even
      };
      const __m256i low =
          _mm256_inserti128_si256(_mm256_castsi128_si256(quarter(0)), quarter(1), 1);
      const __m256i high =
          _mm256_inserti128_si256(_mm256_castsi128_si256(quarter(2)), quarter(3), 1);
      const __m512i values = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
      _mm512_store_si512(out->values + 64 * half, values);
      // Sums of four, then of all 16 of a block in each dword of its 128 bits.
      __m512i sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(12), values);
      sums = _mm512_add_epi32(sums, _mm512_shuffle_epi32(sums, _MM_PERM_CDAB));
      sums = _mm512_add_epi32(sums, _mm512_shuffle_epi32(sums, _MM_PERM_BADC));
      const __m512i firsts = _mm512_permutexvar_epi32(
          _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12), sums);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out->offsets + 4 * half),
                       _mm_sub_epi32(_mm_setzero_si128(), _mm512_castsi512_si128(firsts)));
    }
  }
  static Sum set_sum(std::int32_t x) { return _mm512_set1_epi32(x); }
  static F to_float(Sum x) { return _mm512_cvtepi32_ps(x); }

 private:
  static F halves(F a, F b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
  }
  static F pairs(F a, F b) {
    const __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
  }
  // The bits of the largest magnitude of each 32 of 128 columns. As integers they compare alike.
  static __m128i largest_of_chunks(const float* x) {
    __m512i m[4];
    for (int i = 0; i < 4; ++i)
      m[i] = _mm512_max_epu32(magnitudes(x + 32 * i), magnitudes(x + 32 * i + 16));
    // Into one dword of each 128 bits per chunk, then over the 128 bits.
    const __m512i a =
        _mm512_max_epu32(_mm512_unpacklo_epi32(m[0], m[1]), _mm512_unpackhi_epi32(m[0], m[1]));
    const __m512i b =
        _mm512_max_epu32(_mm512_unpacklo_epi32(m[2], m[3]), _mm512_unpackhi_epi32(m[2], m[3]));
    const __m512i all = _mm512_max_epu32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    const __m256i half =
        _mm256_max_epu32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_max_epu32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  }
  static __m512i magnitudes(const float* x) {
    return _mm512_and_si512(_mm512_loadu_si512(x), _mm512_set1_epi32(0x7FFFFFFF));
  }
  using Four __attribute__((may_alias)) = std::int32_t;
  static const Four& four(const std::int8_t* x) { return *reinterpret_cast<const Four*>(x); }
};

}  // namespace
}  // namespace quatrain

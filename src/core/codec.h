// SPDX-License-Identifier: Apache-2.0
// Scalar codecs of the small number formats: E2M1, E4M3, UE8M0, BF16, F16.
//
// Every function is shared by host and device code and depends on nothing. Rounding is to nearest,
// ties to even, and saturating where the format has no infinity; this equals the PTX conversions
// cvt.rn.satfinite.{e2m1x2,e4m3x2}.f32. Formats: OCP Microscaling Formats 1.0 and OCP FP8 1.0.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define QT_HOST_DEVICE __host__ __device__
#else
#define QT_HOST_DEVICE
#include <bit>
#endif

namespace quatrain {

QT_HOST_DEVICE inline float float_from_bits(std::uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  return __builtin_bit_cast(float, bits);
#endif
}

QT_HOST_DEVICE inline std::uint32_t bits_from_float(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  return __builtin_bit_cast(std::uint32_t, value);
#endif
}

// ---- BF16: the upper half of an FP32 ----

QT_HOST_DEVICE inline float bf16_decode(std::uint16_t b) {
  return float_from_bits(static_cast<std::uint32_t>(b) << 16);
}

/// Nearest BF16, ties to even; NaN stays NaN (quiet).
QT_HOST_DEVICE inline std::uint16_t bf16_encode(float x) {
  const std::uint32_t u = bits_from_float(x);
  if ((u & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<std::uint16_t>((u >> 16) | 0x0040u);
  return static_cast<std::uint16_t>((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}

/// x rounded to BF16 and back.
QT_HOST_DEVICE inline float bf16_round(float x) { return bf16_decode(bf16_encode(x)); }

// ---- F16 (IEEE binary16) ----

QT_HOST_DEVICE inline float f16_decode(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
  const std::uint32_t exponent = (h >> 10) & 0x1Fu;
  const std::uint32_t mantissa = h & 0x3FFu;
  if (exponent == 31) return float_from_bits(sign | 0x7F800000u | (mantissa << 13));
  if (exponent == 0) {  // subnormal: mantissa * 2^-24, exact in FP32
    const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
    return float_from_bits(bits_from_float(magnitude) | sign);
  }
  return float_from_bits(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

/// Nearest F16, ties to even; overflow gives infinity, NaN stays NaN.
QT_HOST_DEVICE inline std::uint16_t f16_encode(float x) {
  const std::uint32_t u = bits_from_float(x);
  const std::uint16_t sign = static_cast<std::uint16_t>((u >> 16) & 0x8000u);
  const std::uint32_t a = u & 0x7FFFFFFFu;
  if (a > 0x7F800000u) return static_cast<std::uint16_t>(sign | 0x7E00u);
  if (a >= 0x477FF000u) return static_cast<std::uint16_t>(sign | 0x7C00u);  // ≥ 65520
  if (a < 0x38800000u) {  // below 2^-14: adding 0.5 aligns the result's ulp with 2^-24
    const float shifted = float_from_bits(a) + 0.5f;
    return static_cast<std::uint16_t>(sign | (bits_from_float(shifted) - 0x3F000000u));
  }
  const std::uint32_t rounded = a + 0xFFFu + ((a >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

// ---- E2M1 (FP4): codes 0..7 are 0, .5, 1, 1.5, 2, 3, 4, 6; bit 3 is the sign ----

inline constexpr float kE2M1Max = 6.0f;

QT_HOST_DEVICE inline float e2m1_decode(unsigned code) {
  const unsigned exponent = (code >> 1) & 3u;
  const unsigned mantissa = code & 1u;
  // Normal values are (2 + mantissa) * 2^(exponent-2); the one subnormal is 0.5.
  const float magnitude = exponent == 0 ? 0.5f * static_cast<float>(mantissa)
                                        : 0.25f * static_cast<float>((2u + mantissa) << exponent);
  return (code & 8u) ? -magnitude : magnitude;
}

/// Nearest E2M1 code, ties to the even code, saturating at 6. The sign is kept even for zero;
/// NaN gives +6 (code 7), as PTX does.
QT_HOST_DEVICE inline unsigned e2m1_encode(float x) {
  if (x != x) return 7u;
  const std::uint32_t u = bits_from_float(x);
  const unsigned sign = (u >> 28) & 8u;
  const float a = float_from_bits(u & 0x7FFFFFFFu);
  // A tie belongs to the neighbour with an even code: 0.25→0, 0.75→2, 1.25→2, 1.75→4, 2.5→4,
  // 3.5→6, 5→6.
  const unsigned code = static_cast<unsigned>(a > 0.25f) + static_cast<unsigned>(a >= 0.75f) +
                        static_cast<unsigned>(a > 1.25f) + static_cast<unsigned>(a >= 1.75f) +
                        static_cast<unsigned>(a > 2.5f) + static_cast<unsigned>(a >= 3.5f) +
                        static_cast<unsigned>(a > 5.0f);
  return sign | code;
}

// ---- E4M3 (FN): bias 7, largest 448, NaN 0x7F and 0xFF, no infinity ----

inline constexpr float kE4M3Max = 448.0f;

QT_HOST_DEVICE inline float e4m3_decode(std::uint8_t b) {
  const std::uint32_t sign = static_cast<std::uint32_t>(b & 0x80u) << 24;
  const std::uint32_t exponent = (b >> 3) & 15u;
  const std::uint32_t mantissa = b & 7u;
  if ((b & 0x7Fu) == 0x7Fu) return float_from_bits(sign | 0x7FC00000u);
  if (exponent == 0) {  // subnormal: mantissa * 2^-9
    const float magnitude = static_cast<float>(mantissa) * 0.001953125f;
    return float_from_bits(bits_from_float(magnitude) | sign);
  }
  return float_from_bits(sign | ((exponent + 120u) << 23) | (mantissa << 20));
}

/// Nearest E4M3, ties to even, saturating at ±448 (infinities too); NaN gives 0x7F.
QT_HOST_DEVICE inline std::uint8_t e4m3_encode(float x) {
  if (x != x) return 0x7Fu;
  const std::uint32_t u = bits_from_float(x);
  const std::uint8_t sign = static_cast<std::uint8_t>((u >> 24) & 0x80u);
  const std::uint32_t a = u & 0x7FFFFFFFu;
  if (a >= 0x43E00000u) return static_cast<std::uint8_t>(sign | 0x7Eu);  // ≥ 448
  if (a < 0x3C800000u) {  // below 2^-6: adding 2^14 aligns the FP32 ulp with 2^-9
    const float shifted = float_from_bits(a) + 16384.0f;
    return static_cast<std::uint8_t>(sign | (bits_from_float(shifted) - 0x46800000u));
  }
  const std::uint32_t rounded = a + 0x7FFFFu + ((a >> 20) & 1u);
  const std::uint32_t code = (rounded - 0x3C000000u) >> 20;
  return static_cast<std::uint8_t>(sign | (code > 0x7Eu ? 0x7Eu : code));
}

// ---- UE8M0: 2^(b-127) ----

/// b = 0 is 2^-127 (an FP32 subnormal), b = 255 is NaN.
QT_HOST_DEVICE inline float ue8m0_decode(std::uint8_t b) {
  if (b == 255) return float_from_bits(0x7FC00000u);
  if (b == 0) return float_from_bits(0x00400000u);
  return float_from_bits(static_cast<std::uint32_t>(b) << 23);
}

/// Smallest power of two ≥ x, for finite x > 0, as its UE8M0 byte; clamped to 2^-127 … 2^127.
/// The exponent is read off the bits, as the official kernels do: exponent + 1 if any mantissa bit.
QT_HOST_DEVICE inline std::uint8_t ue8m0_encode_up(float x) {
  const std::uint32_t u = bits_from_float(x) & 0x7FFFFFFFu;
  const std::uint32_t exponent = u >> 23;
  if (exponent == 0) return (u & 0x007FFFFFu) > 0x00400000u ? 1 : 0;
  const std::uint32_t up = exponent + ((u & 0x7FFFFFu) != 0u);
  return static_cast<std::uint8_t>(up > 254u ? 254u : up);
}

// ---- packing: byte j of a row holds element 2j in its low nibble and 2j+1 in its high nibble ----

QT_HOST_DEVICE inline std::uint8_t e2m1_pack(unsigned even, unsigned odd) {
  return static_cast<std::uint8_t>((even & 15u) | (odd << 4));
}

}  // namespace quatrain

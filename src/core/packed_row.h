// SPDX-License-Identifier: Apache-2.0
// Rows of packed caches: latents in FP8 with BF16 rotary columns, index keys in FP4.
//
// A latent of n columns: n − 64 E4M3 codes, the 64 trailing rotary columns in BF16, one UE8M0 scale
// per 64 codes, zeros up to a multiple of 8 bytes. 584 bytes for n = 512.
// An index key of n columns: n / 2 bytes of E2M1 codes, the even column in the low nibble, one
// UE8M0 scale per 32 columns, zeros up to a multiple of 4 bytes. 68 bytes for n = 128.
//
// Values that round_to_grid put on these grids are packed without loss: the scale that is found
// again is the same, or half of it where the largest value rounded down to a power of two times the
// scale, and then every value is representable with it too.
#pragma once

#include <cstdint>

#include "core/codec.h"

namespace quatrain {

/// Trailing columns of a packed latent that stay in BF16.
inline constexpr int kPackedRotary = 64;
/// Columns that share a scale.
inline constexpr int kLatentBlock = 64;
inline constexpr int kIndexBlock = 32;

/// Where the parts of a packed latent of n columns begin, in bytes; codes are at 0.
struct PackedLatent {
  int codes;  // E4M3 columns
  int scales_at;
  int bytes;

  QT_HOST_DEVICE constexpr explicit PackedLatent(int n)
      : codes(n - kPackedRotary),
        scales_at(codes + 2 * kPackedRotary),
        bytes((scales_at + (codes + kLatentBlock - 1) / kLatentBlock + 7) / 8 * 8) {}
};

/// Where the parts of a packed index key of n columns begin, in bytes; codes are at 0.
struct PackedIndexKey {
  int scales_at;
  int bytes;

  QT_HOST_DEVICE constexpr explicit PackedIndexKey(int n)
      : scales_at(n / 2), bytes((scales_at + (n + kIndexBlock - 1) / kIndexBlock + 3) / 4 * 4) {}
};

static_assert(PackedLatent(512).bytes == 584 && PackedLatent(512).scales_at == 576);
static_assert(PackedIndexKey(128).bytes == 68);

/// The UE8M0 byte of a block of latents whose largest magnitude is amax.
QT_HOST_DEVICE inline std::uint8_t latent_scale(float amax) {
  return ue8m0_encode_up((amax > 1e-4f ? amax : 1e-4f) / kE4M3Max);
}

/// The UE8M0 byte of a block of index-key columns whose largest magnitude is amax.
QT_HOST_DEVICE inline std::uint8_t index_scale(float amax) {
  constexpr float kSmallest = 6.0f * 1.1754943508222875e-38f;  // 6 · 2^-126
  return ue8m0_encode_up((amax > kSmallest ? amax : kSmallest) / kE2M1Max);
}

/// x[0, n) to PackedLatent(n).bytes bytes.
void pack_latent(const float* x, int n, std::uint8_t* row);
void unpack_latent(const std::uint8_t* row, int n, float* x);

/// x[0, n) to PackedIndexKey(n).bytes bytes; n is even.
void pack_index_key(const float* x, int n, std::uint8_t* row);
void unpack_index_key(const std::uint8_t* row, int n, float* x);

}  // namespace quatrain

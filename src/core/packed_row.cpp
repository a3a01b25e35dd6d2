// SPDX-License-Identifier: Apache-2.0
#include "core/packed_row.h"

#include <algorithm>
#include <cmath>

namespace quatrain {
namespace {

float largest_magnitude(const float* x, int n) {
  float amax = 0;
  for (int i = 0; i < n; ++i) amax = std::max(amax, std::abs(x[i]));
  return amax;
}

}  // namespace

void pack_latent(const float* x, int n, std::uint8_t* row) {
  const PackedLatent layout(n);
  std::fill_n(row, layout.bytes, std::uint8_t{0});
  for (int begin = 0; begin < layout.codes; begin += kLatentBlock) {
    const int count = std::min(kLatentBlock, layout.codes - begin);
    const std::uint8_t scale = latent_scale(largest_magnitude(x + begin, count));
    row[layout.scales_at + begin / kLatentBlock] = scale;
    for (int i = begin; i < begin + count; ++i) row[i] = e4m3_encode(x[i] / ue8m0_decode(scale));
  }
  for (int i = 0; i < kPackedRotary; ++i) {
    const std::uint16_t code = bf16_encode(x[layout.codes + i]);
    row[layout.codes + 2 * i] = static_cast<std::uint8_t>(code);
    row[layout.codes + 2 * i + 1] = static_cast<std::uint8_t>(code >> 8);
  }
}

void unpack_latent(const std::uint8_t* row, int n, float* x) {
  const PackedLatent layout(n);
  for (int i = 0; i < layout.codes; ++i)
    x[i] = e4m3_decode(row[i]) * ue8m0_decode(row[layout.scales_at + i / kLatentBlock]);
  for (int i = 0; i < kPackedRotary; ++i) {
    const std::uint8_t* code = row + layout.codes + 2 * i;
    x[layout.codes + i] = bf16_decode(static_cast<std::uint16_t>(code[0] | code[1] << 8));
  }
}

void pack_index_key(const float* x, int n, std::uint8_t* row) {
  const PackedIndexKey layout(n);
  std::fill_n(row, layout.bytes, std::uint8_t{0});
  for (int begin = 0; begin < n; begin += kIndexBlock) {
    const int count = std::min(kIndexBlock, n - begin);
    const std::uint8_t scale = index_scale(largest_magnitude(x + begin, count));
    row[layout.scales_at + begin / kIndexBlock] = scale;
    for (int i = begin; i < begin + count; i += 2)
      row[i / 2] = e2m1_pack(e2m1_encode(x[i] / ue8m0_decode(scale)),
                             e2m1_encode(x[i + 1] / ue8m0_decode(scale)));
  }
}

void unpack_index_key(const std::uint8_t* row, int n, float* x) {
  const PackedIndexKey layout(n);
  for (int i = 0; i < n; ++i) {
    const unsigned code = i % 2 == 0 ? row[i / 2] & 15u : row[i / 2] >> 4;
    x[i] = e2m1_decode(code) * ue8m0_decode(row[layout.scales_at + i / kIndexBlock]);
  }
}

}  // namespace quatrain

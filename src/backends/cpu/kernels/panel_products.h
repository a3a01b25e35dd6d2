// SPDX-License-Identifier: Apache-2.0
// Products of a panel with a few rows of activations. Compiled once per instruction set: the
// including translation unit defines Simd, and everything here has internal linkage.
//
// A row's sums have one order, whatever kTokens is: per block of columns, then over the blocks.
#pragma once

#include <utility>

#include "backends/cpu/kernels/kernels.h"

namespace quatrain {
namespace {

using F = Simd::F;
inline constexpr int kVectors = static_cast<int>(kPanelRows) / Simd::kLanes;
// How far ahead of the codes in use the next ones are fetched.
inline constexpr std::int64_t kPrefetchBytes = 2304;

template <int kLines>
void prefetch(const std::byte* p) {
  for (int i = 0; i < kLines; ++i) __builtin_prefetch(p + kPrefetchBytes + 64 * i, 0, 3);
}

// The running results of one panel product: 32 rows for each token.
template <int kTokens>
struct Results {
  F total[kTokens][kVectors];

  Results() {
    for (auto& token : total)
      for (F& v : token) v = Simd::zero();
  }
  void store(const Panel& panel, float factor, float* const* out) const {
    for (int v = 0; v < kVectors; ++v) {
      F scale = Simd::set(factor);
      if (panel.row_scales != nullptr)
        scale = Simd::mul(scale, Simd::load(panel.row_scales + v * Simd::kLanes));
      for (int t = 0; t < kTokens; ++t)
        Simd::store(out[t] + v * Simd::kLanes, Simd::mul(total[t][v], scale));
    }
  }
};

// ---- values of 8 to 32 bits: FP32 products, sums of 128 columns times a multiplier ----

struct F32Columns {
  static constexpr int kBytes = 128;
  static void decode(const std::byte* p, F* even, F* odd) {
    Simd::decode_f32(p, even);
    Simd::decode_f32(p + kBytes, odd);
  }
  static void decode_one(const std::byte* p, F* even) { Simd::decode_f32(p, even); }
};
struct F16Columns {
  static constexpr int kBytes = 64;
  static void decode(const std::byte* p, F* even, F* odd) {
    Simd::decode_f16(p, even);
    Simd::decode_f16(p + kBytes, odd);
  }
  static void decode_one(const std::byte* p, F* even) { Simd::decode_f16(p, even); }
};
struct Bf16Columns {
  static constexpr int kBytes = 64;
  static void decode(const std::byte* p, F* even, F* odd) {
    Simd::decode_bf16(p, even);
    Simd::decode_bf16(p + kBytes, odd);
  }
  static void decode_one(const std::byte* p, F* even) { Simd::decode_bf16(p, even); }
};
struct Fp8Columns {
  static constexpr int kBytes = 32;
  static void decode(const std::byte* p, F* even, F* odd) { Simd::decode_fp8_pair(p, even, odd); }
  static void decode_one(const std::byte* p, F* even) {
    F zeros[kVectors];
    Simd::decode_fp8_pair(p, even, zeros);
  }
};

template <class Columns, int kTokens>
void float_product(const Panel& panel, const float* const* x, float* const* out) {
  Results<kTokens> results;
  constexpr int kOdd = Simd::kChains - 1;  // the chain of odd columns
  const std::byte* p = panel.data;
  for (std::int64_t begin = 0, block = 0; begin < panel.cols; begin += kPanelBlock, ++block) {
    const std::int64_t end = begin + kPanelBlock < panel.cols ? begin + kPanelBlock : panel.cols;
    F sums[Simd::kChains][kTokens][kVectors];
    for (auto& chain : sums)
      for (auto& token : chain)
        for (F& v : token) v = Simd::zero();
    std::int64_t c = begin;
    for (; c + 1 < end; c += 2, p += 2 * Columns::kBytes) {
      prefetch<(2 * Columns::kBytes + 63) / 64>(p);
      F even[kVectors], odd[kVectors];
      Columns::decode(p, even, odd);
      for (int t = 0; t < kTokens; ++t) {
        const F x0 = Simd::set(x[t][c]), x1 = Simd::set(x[t][c + 1]);
        for (int v = 0; v < kVectors; ++v) sums[0][t][v] = Simd::fma(even[v], x0, sums[0][t][v]);
        for (int v = 0; v < kVectors; ++v)
          sums[kOdd][t][v] = Simd::fma(odd[v], x1, sums[kOdd][t][v]);
      }
    }
    if (c < end) {
      F even[kVectors];
      Columns::decode_one(p, even);
      for (int t = 0; t < kTokens; ++t)
        for (int v = 0; v < kVectors; ++v)
          sums[0][t][v] = Simd::fma(even[v], Simd::set(x[t][c]), sums[0][t][v]);
    }
    const F scale = Simd::set(panel.block_scales != nullptr ? panel.block_scales[block] : 1.0f);
    for (int t = 0; t < kTokens; ++t)
      for (int v = 0; v < kVectors; ++v) {
        F sum = sums[0][t][v];
        if constexpr (Simd::kChains == 2) sum = Simd::add(sum, sums[1][t][v]);
        results.total[t][v] = Simd::fma(sum, scale, results.total[t][v]);
      }
  }
  results.store(panel, 1.0f, out);
}

// ---- 4-bit codes ----

struct Nvfp4 {
  static constexpr int kBlock = 16;
  static F scales(const std::byte* p) { return Simd::decode_e4m3_scales(p); }
};
struct Mxfp4 {
  static constexpr int kBlock = 32;
  static F scales(const std::byte* p) { return Simd::decode_ue8m0_scales(p); }
};

// Where block b of a panel keeps its codes and scales.
template <class Format>
struct BlockData {
  static constexpr std::int64_t kCodeBytes = kPanelRows * Format::kBlock / 2;
  static constexpr std::int64_t kChunkBytes = 2 * (kCodeBytes + kPanelRows);
  const std::byte* codes;
  const std::byte* scales;
  BlockData(const std::byte* panel, std::int64_t b)
      : codes(panel + b / 2 * kChunkBytes + b % 2 * kCodeBytes),
        scales(panel + b / 2 * kChunkBytes + 2 * kCodeBytes + b % 2 * kPanelRows) {}
  /// Eight columns, from column 8 i of the block on, of the rows of vector v.
  const std::byte* eight(int v, int i) const {
    const int row = v * Simd::kLanes;
    return codes + row / 16 * (kCodeBytes / 2) + 64 * i + row % 16 * 4;
  }
};

// sums += the product of one vector of rows with nibble kNibble of `codes`.
template <int kNibble, int kTokens>
void add_nibble(Simd::Codes codes, const float* const* x, std::int64_t column, F* sums) {
  const F w = Simd::decode_nibble<kNibble>(codes);
  constexpr int kColumn = kNibble / 2 + 4 * (kNibble % 2);
  for (int t = 0; t < kTokens; ++t)
    sums[t] = Simd::fma(w, Simd::set(x[t][column + kColumn]), sums[t]);
}

template <class Format, int kTokens>
void nibble_product(const Panel& panel, const float* const* x, float* const* out) {
  Results<kTokens> results;
  const std::int64_t blocks = panel.cols / Format::kBlock;
  for (std::int64_t b = 0; b < blocks; ++b) {
    const BlockData<Format> data(panel.data, b);
    prefetch<static_cast<int>(BlockData<Format>::kCodeBytes / 64) + 1>(data.codes);
    for (int v = 0; v < kVectors; ++v) {
      F sums[kTokens];
      for (F& sum : sums) sum = Simd::zero();
      for (int i = 0; i < Format::kBlock / 8; ++i) {
        const Simd::Codes codes = Simd::load_codes(data.eight(v, i));
        const std::int64_t column = b * Format::kBlock + 8 * i;
        [&]<int... kNibble>(std::integer_sequence<int, kNibble...>) {
          (add_nibble<kNibble, kTokens>(codes, x, column, sums), ...);
        }
        (std::make_integer_sequence<int, 8>{});
      }
      const F scale = Format::scales(data.scales + v * Simd::kLanes);
      for (int t = 0; t < kTokens; ++t)
        results.total[t][v] = Simd::fma(sums[t], scale, results.total[t][v]);
    }
  }
  results.store(panel, 1.0f, out);
}

// One vector of rows of one block: int8 products, then one FP32 multiply-add per token.
template <class Format, int kTokens>
void add_int8_block(const BlockData<Format>& data, std::int64_t b, int v, const Int8Row* x,
                    Results<kTokens>& results) {
  constexpr int kParts = Format::kBlock / static_cast<int>(kInt8Block);
  Simd::Weights w[4 * kParts];
  for (int i = 0; i < 2 * kParts; ++i) Simd::decode_int8(data.eight(v, i), w[2 * i], w[2 * i + 1]);
  const F scale = Format::scales(data.scales + v * Simd::kLanes);
  for (int t = 0; t < kTokens; ++t) {
    const std::int64_t first = b * kParts;
    std::int32_t offset = x[t].offsets[first];
    for (int i = 1; i < kParts; ++i) offset += x[t].offsets[first + i];
    Simd::Sum sum = Simd::set_sum(offset);
    for (int i = 0; i < kParts; ++i)
      sum = Simd::dot_block(w + 4 * i, x[t].values + (first + i) * kInt8Block, sum);
    const F factor = Simd::mul(scale, Simd::set(x[t].scales[first]));
    results.total[t][v] = Simd::fma(Simd::to_float(sum), factor, results.total[t][v]);
  }
}

template <class Format, int kTokens>
void int8_product(const Panel& panel, const Int8Row* x, float* const* out) {
  static_assert(kInt8Group % Format::kBlock == 0);
  Results<kTokens> results;
  const std::int64_t blocks = panel.cols / Format::kBlock;
  for (std::int64_t b = 0; b < blocks; ++b) {
    const BlockData<Format> data(panel.data, b);
    prefetch<static_cast<int>(BlockData<Format>::kCodeBytes / 64) + 1>(data.codes);
    for (int v = 0; v < kVectors; ++v) add_int8_block<Format, kTokens>(data, b, v, x, results);
  }
  results.store(panel, 0.5f, out);  // weights were doubled
}

// ---- the table ----

template <int... kTokens>
void fill_products(CpuKernels& k, std::integer_sequence<int, kTokens...>) {
  constexpr auto at = [](PanelFormat format) { return static_cast<int>(format); };
  const auto fill = [&]<int kCount>() {
    if constexpr (kCount <= Simd::kFloatTile) {
      k.float_product[at(PanelFormat::kF32)][kCount] = float_product<F32Columns, kCount>;
      k.float_product[at(PanelFormat::kF16)][kCount] = float_product<F16Columns, kCount>;
      k.float_product[at(PanelFormat::kBf16)][kCount] = float_product<Bf16Columns, kCount>;
      k.float_product[at(PanelFormat::kFp8)][kCount] = float_product<Fp8Columns, kCount>;
      k.float_product[at(PanelFormat::kNvfp4)][kCount] = nibble_product<Nvfp4, kCount>;
      k.float_product[at(PanelFormat::kMxfp4)][kCount] = nibble_product<Mxfp4, kCount>;
    }
    if constexpr (kCount <= Simd::kInt8Tile) {
      k.nvfp4_int8[kCount] = int8_product<Nvfp4, kCount>;
      k.mxfp4_int8[kCount] = int8_product<Mxfp4, kCount>;
    }
  };
  (fill.template operator()<kTokens + 1>(), ...);
  k.float_tile = Simd::kFloatTile;
  k.int8_tile = Simd::kInt8Tile;
}

}  // namespace
}  // namespace quatrain

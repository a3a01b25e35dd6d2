// SPDX-License-Identifier: Apache-2.0
// Products of a panel with a few rows of activations. Compiled once per instruction set: the
// including translation unit defines Simd, and everything here has internal linkage.
//
// A row's sums have one order, whatever kTokens is: per block of columns, then over the blocks.
#pragma once

#include <utility>

#include "backends/cpu/kernels/kernels.h"
#include "backends/cpu/kernels/tables.h"

namespace quatrain {
namespace {

using F = Simd::F;
inline constexpr int kVectors = static_cast<int>(kPanelRows) / Simd::kLanes;
// A call inside the innermost loops would cost more than what they do.
#define QT_FLATTEN __attribute__((flatten))

// How far ahead of the codes in use the next ones are fetched into the L1 cache.
inline constexpr std::int64_t kPrefetchBytes = 2304;

// body(0), …, body(kCount − 1) with constant arguments: an array that is only indexed by constants
// lives in registers.
template <int kCount, class Body>
void unroll(Body&& body) {
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) {
    (body(std::integral_constant<int, kIndex>{}), ...);
  }
  (std::make_integer_sequence<int, kCount>{});
}

template <int kLines>
void prefetch(const std::byte* p) {
  const std::byte* far = p + kFarPrefetchBytes;
  __asm__("" : "+r"(far));  // one register, not one for each line's distance
  for (int i = 0; i < kLines; ++i) {
    __builtin_prefetch(p + kPrefetchBytes + 64 * i, 0, 3);
    __builtin_prefetch(far + 64 * i, 0, 2);  // into the L2 cache
  }
}

// The running results of one panel product: 32 rows for each token.
template <int kTokens>
struct Results {
  F total[kTokens][kVectors];

  Results() {
    unroll<kTokens>([&](auto t) { unroll<kVectors>([&](auto v) { total[t][v] = Simd::zero(); }); });
  }
  void scale(int t, float factor) {
    unroll<kVectors>([&](auto v) { total[t][v] = Simd::mul(total[t][v], Simd::set(factor)); });
  }
  void store(const Panel& panel, float factor, float* const* out) const {
    unroll<kVectors>([&](auto v) {
      F scale = Simd::set(factor);
      if (panel.row_scales != nullptr)
        scale = Simd::mul(scale, Simd::load(panel.row_scales + v * Simd::kLanes));
      unroll<kTokens>(
          [&](auto t) { Simd::store(out[t] + v * Simd::kLanes, Simd::mul(total[t][v], scale)); });
    });
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
QT_FLATTEN void float_product(const Panel& panel, const float* const* x, float* const* out) {
  Results<kTokens> results;
  constexpr int kOdd = Simd::kChains - 1;  // the chain of odd columns
  const std::byte* p = panel.data;
  for (std::int64_t begin = 0, block = 0; begin < panel.cols; begin += kPanelBlock, ++block) {
    const std::int64_t end = begin + kPanelBlock < panel.cols ? begin + kPanelBlock : panel.cols;
    F sums[Simd::kChains][kTokens][kVectors];
    const auto each = [](auto&& body) {
      unroll<kTokens>([&](auto t) { unroll<kVectors>([&](auto v) { body(t, v); }); });
    };
    each([&](auto t, auto v) {
      sums[0][t][v] = Simd::zero();
      sums[kOdd][t][v] = Simd::zero();
    });
    std::int64_t c = begin;
    for (; c + 1 < end; c += 2, p += 2 * Columns::kBytes) {
      prefetch<(2 * Columns::kBytes + 63) / 64>(p);
      F even[kVectors], odd[kVectors];
      Columns::decode(p, even, odd);
      each([&](auto t, auto v) {
        sums[0][t][v] = Simd::fma(even[v], Simd::set(x[t][c]), sums[0][t][v]);
        sums[kOdd][t][v] = Simd::fma(odd[v], Simd::set(x[t][c + 1]), sums[kOdd][t][v]);
      });
    }
    if (c < end) {
      F even[kVectors];
      Columns::decode_one(p, even);
      each([&](auto t, auto v) {
        sums[0][t][v] = Simd::fma(even[v], Simd::set(x[t][c]), sums[0][t][v]);
      });
    }
    const F scale = Simd::set(panel.block_scales != nullptr ? panel.block_scales[block] : 1.0f);
    each([&](auto t, auto v) {
      F sum = sums[0][t][v];
      if constexpr (Simd::kChains == 2) sum = Simd::add(sum, sums[1][t][v]);
      results.total[t][v] = Simd::fma(sum, scale, results.total[t][v]);
    });
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

// Activations are loaded again for the next rows, which costs nothing; kept in registers from one
// vector of rows to the next, they would crowd out the results. So the compiler must not know that
// these pointers stay what they are.
template <int kTokens, class X>
void reload_activations(const X** x) {
  if constexpr (kTokens > 2) unroll<kTokens>([&](auto t) { __asm__ volatile("" : "+r"(x[t])); });
}

// Codes and scales of one block of a chunk of two.
template <class Format>
struct BlockData {
  static constexpr std::int64_t kCodeBytes = kPanelRows * Format::kBlock / 2;
  static constexpr std::int64_t kChunkBytes = 2 * (kCodeBytes + kPanelRows);
  const std::byte* codes;
  const std::byte* scales;
  BlockData(const std::byte* chunk, int half)
      : codes(chunk + half * kCodeBytes), scales(chunk + 2 * kCodeBytes + half * kPanelRows) {}
  /// Eight columns, from column 8 i of the block on, of the rows of vector v.
  const std::byte* eight(int v, int i) const {
    const int row = v * Simd::kLanes;
    return codes + row / 16 * (kCodeBytes / 2) + 64 * i + row % 16 * 4;
  }
};

// sums += the product of one vector of rows with nibble kNibble of `codes`.
template <int kNibble, int kTokens>
void add_nibble(Simd::Codes codes, const float** x, std::int64_t column, F* sums) {
  const F w = Simd::decode_nibble<kNibble>(codes);
  constexpr int kColumn = kNibble / 2 + 4 * (kNibble % 2);
  unroll<kTokens>(
      [&](auto t) { sums[t] = Simd::fma(w, Simd::set(x[t][column + kColumn]), sums[t]); });
}

template <class Format, int kTokens>
void add_nibble_block(const BlockData<Format>& data, std::int64_t b, const float** x,
                      Results<kTokens>& results) {
  unroll<kVectors>([&](auto v) {
    F sums[kTokens];
    unroll<kTokens>([&](auto t) { sums[t] = Simd::zero(); });
    unroll<Format::kBlock / 8>([&](auto i) {
      const Simd::Codes codes = Simd::load_codes(data.eight(v, i));
      const std::int64_t column = b * Format::kBlock + 8 * i;
      unroll<8>([&](auto nibble) { add_nibble<nibble, kTokens>(codes, x, column, sums); });
    });
    const F scale = Format::scales(data.scales + v * Simd::kLanes);
    unroll<kTokens>(
        [&](auto t) { results.total[t][v] = Simd::fma(sums[t], scale, results.total[t][v]); });
    reload_activations<kTokens>(x);
  });
}

template <class Format, int kTokens>
QT_FLATTEN void nibble_product(const Panel& panel, const float* const* inputs, float* const* out) {
  Results<kTokens> results;
  const float* x[kTokens];
  unroll<kTokens>([&](auto t) { x[t] = inputs[t]; });
  using Data = BlockData<Format>;
  const std::int64_t blocks = panel.cols / Format::kBlock;
  const std::byte* chunk = panel.data;
  for (std::int64_t b = 0; b < blocks; b += 2, chunk += Data::kChunkBytes) {
    prefetch<static_cast<int>(Data::kChunkBytes / 64)>(chunk);
    add_nibble_block<Format, kTokens>(Data(chunk, 0), b, x, results);
    if (b + 1 < blocks) add_nibble_block<Format, kTokens>(Data(chunk, 1), b + 1, x, results);
  }
  results.store(panel, 1.0f, out);
}

// Vectors of one value per token. Returned as a whole: what is reached by pointers is stored again
// and again for fear that the assembly of dot_block() might read it.
template <int kTokens>
struct TokenVectors {
  F of[kTokens];
};

// 32 columns from block `first` of the chunk on, for one vector of rows: the blocks' integer sums
// times their scales, added to each other. They join the running sum after that, times the
// activations' scale, so that matrix units, which have FP32 sums over 32 columns, can give the same
// bits where those are exact (PanelMatrix::has_exact_chunks).
template <class Format, int kTokens>
TokenVectors<kTokens> int8_columns(const std::byte* chunk, int first, int v,
                                   const Int8Activations* const* x, std::int64_t column) {
  constexpr int kBlocks = static_cast<int>(kInt8Chunk) / Format::kBlock;
  constexpr int kParts = Format::kBlock / static_cast<int>(kInt8Block);
  TokenVectors<kTokens> products;
  unroll<kBlocks>([&](auto b) {
    const BlockData<Format> data(chunk, first + b);
    Simd::Weights w[4 * kParts];
    unroll<2 * kParts>(
        [&](auto i) { Simd::decode_int8(data.eight(v, i), w[2 * i], w[2 * i + 1]); });
    const F scale = Format::scales(data.scales + v * Simd::kLanes);
    unroll<kTokens>([&](auto t) {
      const std::int8_t* values = x[t]->values + column + b * Format::kBlock;
      const std::int32_t* offsets = x[t]->offsets + (column + b * Format::kBlock) / kInt8Block;
      std::int32_t offset = offsets[0];
      for (int i = 1; i < kParts; ++i) offset += offsets[i];
      Simd::Sum sum = Simd::set_sum(offset);
      unroll<kParts>(
          [&](auto i) { sum = Simd::dot_block(w + 4 * i, values + i * kInt8Block, sum); });
      const F value = Simd::to_float(sum);
      F& product = products.of[t];
      product = b == 0 ? Simd::mul(value, scale) : Simd::fma(value, scale, product);
    });
  });
  return products;
}

template <class Format, int kTokens>
QT_FLATTEN void int8_product(const Panel& panel, const Int8Activations* const* x,
                             float* const* out) {
  Results<kTokens> results;
  using Data = BlockData<Format>;
  constexpr std::int64_t kChunkColumns = 2 * Format::kBlock;
  const std::byte* chunk = panel.data;
  const Int8Activations* group[kTokens];
  unroll<kTokens>([&](auto t) { group[t] = x[t]; });
  for (std::int64_t begin = 0; begin < panel.cols; begin += kInt8Group) {
    const std::int64_t rest = panel.cols - begin;
    const std::int64_t end = rest < kInt8Group ? rest : kInt8Group;
    // Chunk by chunk, as the data lies, where the totals of all vectors of rows fit the registers;
    // otherwise one vector at a time.
    constexpr int kTogether = kTokens <= Simd::kInt8TogetherTokens ? kVectors : 1;
    const std::byte* next = chunk;
    unroll<kVectors / kTogether>([&](auto part) {
      TokenVectors<kTokens> totals[kTogether];
      unroll<kTogether>([&](auto j) {
        unroll<kTokens>([&](auto t) { totals[j].of[t] = results.total[t][part * kTogether + j]; });
      });
      next = chunk;
      for (std::int64_t c = 0; c < end; c += kChunkColumns, next += Data::kChunkBytes) {
        if constexpr (part == 0) prefetch<static_cast<int>(Data::kChunkBytes / 64)>(next);
        unroll<kChunkColumns / kInt8Chunk>([&](auto i) {
          constexpr int kFirst = i * static_cast<int>(kInt8Chunk) / Format::kBlock;
          unroll<kTogether>([&](auto j) {
            const std::int64_t column = c + i * kInt8Chunk;
            const TokenVectors<kTokens> products =
                int8_columns<Format, kTokens>(next, kFirst, part * kTogether + j, group, column);
            unroll<kTokens>([&](auto t) {
              const F scale = Simd::set(group[t]->scales[column / kInt8Chunk]);
              totals[j].of[t] = Simd::fma(products.of[t], scale, totals[j].of[t]);
            });
            reload_activations<kTokens>(group);
          });
        });
      }
      unroll<kTogether>([&](auto j) {
        unroll<kTokens>([&](auto t) { results.total[t][part * kTogether + j] = totals[j].of[t]; });
      });
    });
    chunk = next;
    unroll<kTokens>([&](auto t) { ++group[t]; });
  }
  unroll<kTokens>([&](auto t) { results.scale(t, x[t]->row_scale); });
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

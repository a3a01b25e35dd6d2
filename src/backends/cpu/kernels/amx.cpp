// SPDX-License-Identifier: Apache-2.0
// The AMX kernels: products on matrix tiles of BF16. Compiled with that instruction set enabled, so
// it must not be entered before best_isa() has been asked. Everything but the products comes from
// the AVX-512 kernels.
//
// A task has up to 256 output rows and 512 rows of activations. For 512 columns at a time, 32
// output rows are decoded into tiles (32 KB, which stay in the L1 cache) and multiplied with all
// activations, 32 rows at a time, of which 512 columns (512 KB) and the sums (512 KB) stay in the
// L2 cache. The next columns of the activations are fetched there meanwhile: tiles loaded from the
// L3 cache would leave the multiplier idle half of the time.
//
// Bits of int8 products: a weight times its block's scale is exact in BF16 and so are int8 values
// times their scale, a power of two. The instruction adds the even and the odd columns of a tile's
// 32 in FP32, then both to the sum. For panels with exact chunks nothing is rounded before that
// last addition, which is the one that the int8 products of panel_products.h do, too.
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "backends/cpu/kernels/fp8_tables.h"
#include "backends/cpu/kernels/tables.h"

namespace quatrain {
namespace {

constexpr std::int64_t kTileColumns = TileInputs::kColumns;
constexpr std::int64_t kGroup = kInt8Group;
constexpr std::int64_t kGroupTiles = kGroup / kTileColumns;
constexpr std::int64_t kStep = 4 * kGroup;  // columns that are decoded together
constexpr std::int64_t kStepTiles = kStep / kTileColumns;
constexpr std::int64_t kBlock = TileInputs::kBlock;
constexpr std::int64_t kTileValues = kBlock * kTileColumns;
constexpr std::int64_t kTokenBlock = 2 * kBlock;
// Int8 activations times this, NVFP4 weights times 2^-112: together the 2^-7 of the int8 products.
constexpr float kActivationFactor = 0x1p105f;

using Tile = std::uint16_t[kTileValues];  // 16 rows of 32: column pairs of 16 output rows
using TilePair = Tile[2];                 // rows 0–15 and 16–31 of a panel
using PanelTiles = TilePair[kStepTiles];  // by columns

static_assert(kPanelBlock == kGroup && kTokenBlock == TileTask::kBlockRows);

// ---- decoders: columns [32 k, 32 k + 32) of the `columns` of a panel into tiles ----

__m512i load(const std::byte* p) { return _mm512_loadu_si512(p); }
void store(std::uint16_t* tile, std::int64_t row, __m512i x) {
  _mm512_store_si512(tile + row * kTileColumns, x);
}

// A line of 4-bit codes has eight columns of 16 rows (panel_matrix.h). Shifted right by 0, 4, 8 and
// 12 bits, the low nibbles of its 16-bit words are columns 0 and 2, 4 and 6, 1 and 3, 5 and 7: four
// rows of a tile. expand_int8() orders activations alike.
template <class Convert>
void decode_codes(const std::byte* line, std::uint16_t* tile, std::int64_t row, Convert&& convert) {
  const __m512i codes = load(line);
  store(tile, row, convert(codes));
  store(tile, row + 1, convert(_mm512_srli_epi16(codes, 4)));
  store(tile, row + 2, convert(_mm512_srli_epi16(codes, 8)));
  store(tile, row + 3, convert(_mm512_srli_epi16(codes, 12)));
}

// The low nibble of each word, as index: indices have five bits and the table repeats.
__m512i look_up(__m512i codes, __m256i table) {
  return _mm512_permutexvar_epi16(codes, _mm512_broadcast_i64x4(table));
}

struct Nvfp4Tiles {
  static constexpr std::int64_t kChunkBytes = 576;  // 32 columns
  static constexpr std::int64_t kTileBytes = kChunkBytes;

  // Weight times scale in FP16 is exact. Its bits, with the exponent moved into BF16's wider field,
  // are those of the product times 2^-112.
  static void decode(const Panel& panel, std::int64_t k, TilePair& tiles) {
    const __m256i table = _mm256_setr_epi16(  // 0, ½, 1, 1½, 2, 3, 4, 6 and their negatives
        0, 0x3800, 0x3C00, 0x3E00, 0x4000, 0x4200, 0x4400, 0x4600,  //
        -0x8000, -0x4800, -0x4400, -0x4200, -0x4000, -0x3E00, -0x3C00, -0x3A00);
    const std::byte* p = panel.data + k * kChunkBytes;
    for (std::int64_t block = 0; block < 2; ++block)
      for (std::int64_t half = 0; half < 2; ++half) {
        const __m512h scale = scales(p + 512 + block * kPanelRows + half * 16);
        for (std::int64_t line = 0; line < 2; ++line)
          decode_codes(p + block * 256 + half * 128 + line * 64, tiles[half], block * 8 + line * 4,
                       [&](__m512i codes) {
                         const __m512i bits = _mm512_castph_si512(
                             _mm512_mul_ph(_mm512_castsi512_ph(look_up(codes, table)), scale));
                         return _mm512_and_si512(_mm512_srai_epi16(bits, 3),
                                                 _mm512_set1_epi16(-0x7001));
                       });
      }
  }

 private:
  // E4M3 scales of 16 rows, each in both halves of its dword. Shifted, E4M3 is FP16 times 2^-8.
  static __m512h scales(const std::byte* p) {
    const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m512i both = _mm512_or_si512(_mm512_slli_epi32(wide, 7), _mm512_slli_epi32(wide, 23));
    return _mm512_mul_ph(_mm512_castsi512_ph(both), _mm512_set1_ph(static_cast<_Float16>(256)));
  }
};

struct Mxfp4Tiles {
  static constexpr std::int64_t kChunkBytes = 1088;  // 64 columns
  static constexpr std::int64_t kTileBytes = kChunkBytes / 2;

  // Doubled weights; a power-of-two scale is added to the exponent of those that are not zero.
  static void decode(const Panel& panel, std::int64_t k, TilePair& tiles) {
    const __m256i table = _mm256_setr_epi16(  // 0, 1, 2, 3, 4, 6, 8, 12 and their negatives
        0, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40C0, 0x4100, 0x4140,  //
        0, -0x4080, -0x4000, -0x3FC0, -0x3F80, -0x3F40, -0x3F00, -0x3EC0);
    const std::byte* p = panel.data + k / 2 * kChunkBytes;
    for (std::int64_t half = 0; half < 2; ++half) {
      const __m512i exponents = scale_exponents(p + 1024 + k % 2 * kPanelRows + half * 16);
      for (std::int64_t line = 0; line < 4; ++line)
        decode_codes(
            p + k % 2 * 512 + half * 256 + line * 64, tiles[half], line * 4, [&](__m512i codes) {
              const __m512i value = look_up(codes, table);
              return _mm512_maskz_add_epi16(_mm512_test_epi16_mask(value, value), value, exponents);
            });
    }
  }

 private:
  static __m512i scale_exponents(const std::byte* p) {
    const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m512i both = _mm512_or_si512(wide, _mm512_slli_epi32(wide, 16));
    return _mm512_slli_epi16(_mm512_sub_epi16(both, _mm512_set1_epi16(127)), 7);
  }
};

// Missing columns of the last tile become zeros: what lies there may be NaN. Activations are zero
// there, too.
void clear_from(TilePair& tiles, std::int64_t columns) {
  for (std::int64_t c = (columns + 1) / 2 * 2; c < kTileColumns; c += 2)
    for (std::int64_t half = 0; half < 2; ++half) store(tiles[half], c / 2, _mm512_setzero_si512());
}

struct Bf16Tiles {
  static constexpr std::int64_t kTileBytes = kTileColumns * 64;

  // A column's dwords have rows n and n + 16; a tile's have two columns of a row.
  static void decode(const Panel& panel, std::int64_t k, TilePair& tiles) {
    constexpr __mmask32 kOdd = 0xAAAAAAAA;
    const std::int64_t count = std::min(panel.cols - k * kTileColumns, kTileColumns);
    const std::byte* p = panel.data + k * kTileBytes;
    for (std::int64_t c = 0; c < count; c += 2, p += 128) {
      const __m512i even = load(p);
      const __m512i odd = c + 1 < count ? load(p + 64) : _mm512_setzero_si512();
      store(tiles[0], c / 2, _mm512_mask_blend_epi16(kOdd, even, _mm512_slli_epi32(odd, 16)));
      store(tiles[1], c / 2, _mm512_mask_blend_epi16(kOdd, _mm512_srli_epi32(even, 16), odd));
    }
    clear_from(tiles, count);
  }
};

struct Fp8Tiles {
  static constexpr std::int64_t kTileBytes = kTileColumns * kPanelRows;

  static void decode(const Panel& panel, std::int64_t k, TilePair& tiles) {
    const __m512i low0 = _mm512_load_si512(kFp8Tables.low);
    const __m512i low1 = _mm512_load_si512(kFp8Tables.low + 64);
    const __m512i high0 = _mm512_load_si512(kFp8Tables.high);
    const __m512i high1 = _mm512_load_si512(kFp8Tables.high + 64);
    const __m512i pairs = _mm512_load_si512(kFp8Pairs.order);
    const __m512i exponent = scale_exponent(panel, k);
    const std::int64_t count = std::min(panel.cols - k * kTileColumns, kTileColumns);
    const std::byte* p = panel.data + k * kTileBytes;
    for (std::int64_t c = 0; c < count; c += 2, p += 64) {
      // An odd last column is followed by zeros (panel_matrix.h).
      const __m512i codes = _mm512_permutexvar_epi8(pairs, load(p));
      const __m512i low = _mm512_permutex2var_epi8(low0, codes, low1);
      const __m512i high = _mm512_ternarylogic_epi32(_mm512_permutex2var_epi8(high0, codes, high1),
                                                     codes, _mm512_set1_epi8(-128), 0xF8);
      store(tiles[0], c / 2, scaled(_mm512_unpacklo_epi8(low, high), exponent));
      store(tiles[1], c / 2, scaled(_mm512_unpackhi_epi8(low, high), exponent));
    }
    clear_from(tiles, count);
  }

 private:
  // What the block's scale, a power of two, adds to the exponents of weights that are not zero.
  static __m512i scale_exponent(const Panel& panel, std::int64_t k) {
    if (panel.block_scales == nullptr) return _mm512_setzero_si512();
    std::uint32_t bits;
    std::memcpy(&bits, panel.block_scales + k / kGroupTiles, 4);
    return _mm512_set1_epi16(static_cast<short>((static_cast<int>(bits >> 23) - 127) * 128));
  }
  static __m512i scaled(__m512i value, __m512i exponent) {
    return _mm512_maskz_add_epi16(_mm512_test_epi16_mask(value, value), value, exponent);
  }
};

// ---- products ----

// Tiles 0–3 are sums, 4 and 5 activations, 6 and 7 weights; each has 64 bytes a row. With fewer
// than 16 activations, tiles 0, 1 and 4 have as many rows, and take less time.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};

  explicit TileConfig(std::int64_t tokens) {
    if (tokens < kBlock) rows[0] = rows[1] = rows[4] = static_cast<std::uint8_t>(tokens);
  }
};

// The compiler does not know what tile instructions read: it must have written all of it before.
void publish(const void* p) { __asm__ volatile("" : : "r"(p) : "memory"); }

// Where the next activations are that will be multiplied, to be fetched into the L2 cache: so many
// lines for every tile of columns, and where those of the next group are.
struct Ahead {
  const std::byte* data = nullptr;
  std::int64_t stride = 0;
  std::int64_t lines = 0;
};

// Tiles 0–3 += one or two blocks of activations · one tile of columns of both halves of a panel.
// Activations have kParts tiles for each of the weights'.
template <int kParts, bool kTwo>
void multiply_tile(const std::uint16_t* x, const TilePair& weights) {
  constexpr std::int64_t kNextBlock = kGroupTiles * kParts * kTileValues;
  for (int part = 0; part < kParts; ++part, x += kTileValues) {
    // Without a place in the L1 cache, which is for the weights: they are used again.
    _tile_stream_loadd(4, x, 64);
    if constexpr (kTwo) _tile_stream_loadd(5, x + kNextBlock, 64);
    if (part == 0) {
      _tile_loadd(6, weights[0], 64);
      _tile_loadd(7, weights[1], 64);
    }
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kTwo) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
}

// sums += activations · `count` tiles of columns of a panel; or = for the first columns.
template <int kParts, bool kTwo>
void multiply(const TileInputs& inputs, std::int64_t row, std::int64_t group,
              const PanelTiles& tiles, std::int64_t count, Ahead ahead, float* sums) {
  constexpr std::int64_t kSums = kBlock * 16;
  if (group == 0) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, sums + kSums, 64);
    if constexpr (kTwo) {
      _tile_loadd(2, sums + 2 * kSums, 64);
      _tile_loadd(3, sums + 3 * kSums, 64);
    }
  }
  const auto fetch = [&](std::int64_t k) {
    const std::byte* lines = ahead.data + k * ahead.lines * 64;
    for (std::int64_t i = 0; i < ahead.lines; ++i)
      _mm_prefetch(reinterpret_cast<const char*>(lines) + 64 * i, _MM_HINT_T1);
  };
  const std::uint16_t* x = inputs.tile_row(row, group);
  const TilePair* weights = tiles;
  for (; count >= kGroupTiles; count -= kGroupTiles) {
#pragma GCC unroll 4
    for (std::int64_t k = 0; k < kGroupTiles; ++k) {
      multiply_tile<kParts, kTwo>(x + k * kParts * kTileValues, weights[k]);
      fetch(k);
    }
    x += inputs.group_values();
    weights += kGroupTiles;
    ahead.data += ahead.stride;
  }
  for (std::int64_t k = 0; k < count; ++k)
    multiply_tile<kParts, kTwo>(x + k * kParts * kTileValues, weights[k]);
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + kSums, 64);
  if constexpr (kTwo) {
    _tile_stored(2, sums + 2 * kSums, 64);
    _tile_stored(3, sums + 3 * kSums, 64);
  }
}

// Decodes tile k of a panel and fetches what will be decoded a little later.
template <class Weights>
void decode(const Panel& panel, std::int64_t k, TilePair& tiles) {
  constexpr std::int64_t kAhead = 4096;
  const std::byte* p = panel.data + k * Weights::kTileBytes;
  for (std::int64_t i = 0; i < Weights::kTileBytes; i += 64)
    _mm_prefetch(reinterpret_cast<const char*>(p) + kAhead + i, _MM_HINT_T0);
  Weights::decode(panel, k, tiles);
}

// The share of one panel in fetching the next columns of a block of activations.
template <int kParts>
Ahead next_columns(const TileTask& task, std::int64_t row, std::int64_t group, int panel) {
  constexpr std::int64_t kTileLines = 2 * kTileValues * kParts * 2 / 64;  // of two blocks
  if ((group + kStep / kGroup) * kGroup >= task.panels[0].cols) return {};
  const std::int64_t lines = (kTileLines + task.panel_count - 1) / task.panel_count;
  const std::uint16_t* x = task.x.tile_row(task.first_row + row, group + kStep / kGroup);
  return {.data = reinterpret_cast<const std::byte*>(x) + panel * lines * kGroupTiles * 64,
          .stride = task.x.group_values() * 2,
          .lines = lines};
}

template <class Weights, int kParts>
void tile_product(const TileTask& task) {
  const TileConfig config(task.tokens);
  publish(&config);
  _tile_loadconfig(&config);
  alignas(64) PanelTiles tiles;
  const std::int64_t all = (task.panels[0].cols + kTileColumns - 1) / kTileColumns;
  for (std::int64_t first = 0; first < all; first += kStepTiles) {
    const std::int64_t count = std::min(all - first, kStepTiles), group = first / kGroupTiles;
    for (int p = 0; p < task.panel_count; ++p) {
      for (std::int64_t k = 0; k < count; ++k) decode<Weights>(task.panels[p], first + k, tiles[k]);
      publish(tiles);
      for (std::int64_t t = 0; t < task.tokens; t += kTokenBlock) {
        const Ahead ahead = next_columns<kParts>(task, t, group, p);
        const auto product =
            task.tokens - t > kBlock ? multiply<kParts, true> : multiply<kParts, false>;
        product(task.x, task.first_row + t, group, tiles, count, ahead, task.block_sums(t, p));
      }
    }
  }
  _tile_release();
  publish(task.sums);
}

// `factor` undoes the doubling of weights.
template <int kParts>
void tile_row(const TileTask& task, std::int64_t t, float* out) {
  constexpr float kFactor = kParts == 1 ? 0.5f : 1.0f;
  const __m512 row_factor = _mm512_set1_ps(kParts == 1 ? *task.x.scale(task.first_row + t) : 1.0f);
  for (int p = 0; p < task.panel_count; ++p) {
    const float* sums =
        task.block_sums(t, p) + t % kTokenBlock / kBlock * 2 * kBlock * 16 + t % kBlock * 16;
    for (int half = 0; half < 2; ++half, sums += kBlock * 16, out += 16) {
      __m512 scale = _mm512_set1_ps(kFactor);
      const float* row_scales = task.panels[p].row_scales;
      if (row_scales != nullptr)
        scale = _mm512_mul_ps(scale, _mm512_loadu_ps(row_scales + 16 * half));
      _mm512_storeu_ps(out, _mm512_mul_ps(_mm512_mul_ps(_mm512_load_ps(sums), row_factor), scale));
    }
  }
}

// ---- activations ----

void expand_int8(PanelFormat format, const Int8Activations* x, std::int64_t groups,
                 const TileInputs& inputs, std::int64_t row) {
  const float factor = format == PanelFormat::kNvfp4 ? kActivationFactor : 1.0f;
  const __m256i order = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
  *inputs.scale(row) = x[0].row_scale;
  for (std::int64_t g = 0; g < groups; ++g) {
    std::uint16_t* out = inputs.tile_row(row, g);
    for (std::int64_t c = 0; c < kInt8Group; c += kTileColumns, out += kTileValues) {
      const __m512 scale = _mm512_set1_ps(x[g].scales[c / kInt8Chunk] * factor);
      const __m256i bytes = _mm256_shuffle_epi8(
          _mm256_load_si256(reinterpret_cast<const __m256i*>(x[g].values + c)), order);
      const auto floats = [&](__m128i part) {
        return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(part)), scale);
      };
      const __m512bh both = _mm512_cvtne2ps_pbh(floats(_mm256_extracti128_si256(bytes, 1)),
                                                floats(_mm256_castsi256_si128(bytes)));
      _mm512_store_si512(out, reinterpret_cast<const __m512i&>(both));
    }
  }
}

// x as two BF16 values, 16 at a time. What is left of an infinity would be NaN.
void split_floats(const float* x, std::int64_t n, const TileInputs& inputs, std::int64_t row) {
  const std::int64_t padded = (n + kGroup - 1) / kGroup * kGroup;
  for (std::int64_t c = 0; c < padded; c += 16) {
    const std::int64_t rest = n - c;
    const auto mask = static_cast<__mmask16>(rest >= 16 ? 0xFFFF : rest > 0 ? (1 << rest) - 1 : 0);
    const __m512 all = _mm512_maskz_loadu_ps(mask, x + c);
    const auto widen = [](__m256bh part) {
      return _mm512_castsi512_ps(
          _mm512_slli_epi32(_mm512_cvtepu16_epi32(reinterpret_cast<const __m256i&>(part)), 16));
    };
    const __m256bh first = _mm512_cvtneps_pbh(all);
    const __m512 value = widen(first);
    constexpr int kInfinities = 0x18;
    const __mmask16 finite = static_cast<__mmask16>(~_mm512_fpclass_ps_mask(value, kInfinities));
    const __m256bh second = _mm512_cvtneps_pbh(_mm512_maskz_sub_ps(finite, all, value));
    std::uint16_t* out = inputs.tile_row(row, c / kGroup) +
                         c % kGroup / kTileColumns * 2 * kTileValues + c % kTileColumns;
    _mm256_store_si256(reinterpret_cast<__m256i*>(out), reinterpret_cast<const __m256i&>(first));
    _mm256_store_si256(reinterpret_cast<__m256i*>(out + kTileValues),
                       reinterpret_cast<const __m256i&>(second));
  }
}

}  // namespace

void fill_amx_kernels(CpuKernels& k) {
  constexpr auto at = [](PanelFormat format) { return static_cast<int>(format); };
  k.isa = CpuIsa::kAmx;
  k.int8_tiles[at(PanelFormat::kNvfp4)] = tile_product<Nvfp4Tiles, 1>;
  k.int8_tiles[at(PanelFormat::kMxfp4)] = tile_product<Mxfp4Tiles, 1>;
  k.int8_tile_tokens = 16;
  k.int8_tile_row = tile_row<1>;
  k.expand_int8 = expand_int8;
}

void fill_amx_linear_kernels(CpuKernels& k) {
  constexpr auto at = [](PanelFormat format) { return static_cast<int>(format); };
  k.isa = CpuIsa::kAmxLinears;
  k.float_tiles[at(PanelFormat::kBf16)] = tile_product<Bf16Tiles, 2>;
  k.float_tiles[at(PanelFormat::kFp8)] = tile_product<Fp8Tiles, 2>;
  k.float_tile_row = tile_row<2>;
  k.split_floats = split_floats;
}

}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/probe.h"

#include <immintrin.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>

#include "backends/cpu/weight_memory.h"
#include "core/random.h"

namespace quatrain {
namespace {

constexpr int kRepetitions = 5;
constexpr std::int64_t kSteps = 200'000;     // of the arithmetic loops
constexpr std::int64_t kTileSteps = 25'000;  // of that on tiles
constexpr int kChains = 12;  // independent accumulators: latency 4 or 5, two a cycle

double best_seconds(const std::function<void()>& body) {
  double best = 1e30;
  for (int r = 0; r < kRepetitions; ++r) {
    const auto start = std::chrono::steady_clock::now();
    body();
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

// Eight sums, so that no addition waits for the one before; lines are asked for as far ahead as the
// kernels do.
std::uint64_t sum_words(const std::uint64_t* words, std::int64_t count) {
  constexpr std::int64_t kAhead = 2304 / 8;
  std::uint64_t sums[8] = {};
  for (std::int64_t i = 0; i + 8 <= count; i += 8) {
    __builtin_prefetch(words + i + kAhead);
    for (int lane = 0; lane < 8; ++lane) sums[lane] += words[i + lane];
  }
  std::uint64_t sum = 0;
  for (const std::uint64_t s : sums) sum += s;
  return sum;
}

// Each loop does kSteps * kChains vector instructions and returns something that depends on all.
// `seed` keeps the operands unknown to the compiler.

float fma_plain(float seed) {
  float sums[kChains];
  std::fill(sums, sums + kChains, seed);
  for (std::int64_t i = 0; i < kSteps; ++i)
    for (float& sum : sums) sum = sum * 0.999f + seed;
  float all = 0;
  for (const float sum : sums) all += sum;
  return all;
}

__attribute__((target("avx2,fma"))) float fma_avx2(float seed) {
  __m256 sums[kChains];
  for (__m256& sum : sums) sum = _mm256_set1_ps(seed);
  const __m256 factor = _mm256_set1_ps(0.999f), term = _mm256_set1_ps(seed);
  for (std::int64_t i = 0; i < kSteps; ++i)
    for (__m256& sum : sums) sum = _mm256_fmadd_ps(sum, factor, term);
  for (int c = 1; c < kChains; ++c) sums[0] = _mm256_add_ps(sums[0], sums[c]);
  float lanes[8];
  _mm256_storeu_ps(lanes, sums[0]);
  return lanes[0];
}

__attribute__((target("avx512f"))) float fma_avx512(float seed) {
  __m512 sums[kChains];
  for (__m512& sum : sums) sum = _mm512_set1_ps(seed);
  const __m512 factor = _mm512_set1_ps(0.999f), term = _mm512_set1_ps(seed);
  for (std::int64_t i = 0; i < kSteps; ++i)
    for (__m512& sum : sums) sum = _mm512_fmadd_ps(sum, factor, term);
  for (int c = 1; c < kChains; ++c) sums[0] = _mm512_add_ps(sums[0], sums[c]);
  float lanes[16];
  _mm512_storeu_ps(lanes, sums[0]);
  return lanes[0];
}

__attribute__((target("avx512f,avx512vnni"))) float dot_vnni(float seed) {
  __m512i sums[kChains];
  for (__m512i& sum : sums) sum = _mm512_setzero_si512();
  const __m512i a = _mm512_set1_epi32(static_cast<int>(seed * 1000)), b = _mm512_set1_epi8(3);
  for (std::int64_t i = 0; i < kSteps; ++i)
    for (__m512i& sum : sums) sum = _mm512_dpbusd_epi32(sum, a, b);
  for (int c = 1; c < kChains; ++c) sums[0] = _mm512_xor_si512(sums[0], sums[c]);
  int lanes[16];
  _mm512_storeu_si512(lanes, sums[0]);
  return static_cast<float>(lanes[0]);
}

// kTileSteps times four TDPBF16PS: 16 rows of 16 FP32 sums over 32 columns each.
__attribute__((target("amx-tile,amx-bf16"))) float dot_tiles(float seed) {
  struct alignas(64) {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } const config;
  alignas(64) std::uint16_t values[512];  // BF16 between 0.5 and 2
  const auto shift = static_cast<std::size_t>(seed * 16);
  for (std::size_t i = 0; i < 512; ++i)
    values[i] = static_cast<std::uint16_t>(0x3F00 + (i + shift) % 251);
  __asm__ volatile("" : : "r"(&config), "r"(values) : "memory");
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, values, 64);
  _tile_loadd(5, values, 64);
  _tile_loadd(6, values, 64);
  _tile_loadd(7, values, 64);
  for (std::int64_t i = 0; i < kTileSteps; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  alignas(64) float sums[256];
  _tile_stored(0, sums, 64);
  _tile_release();
  __asm__ volatile("" : : "r"(sums) : "memory");
  return sums[0];
}

// Operations per second of `loop` on all threads; one call does `operations`.
double rate(ThreadPool& pool, float (*loop)(float), double operations) {
  std::atomic<float> sink{0};
  const double seconds = best_seconds([&] {
    pool.parallel_for(pool.threads(), 1, [&](std::int64_t begin, std::int64_t, int) {
      sink = loop(0.5f + static_cast<float>(begin));
    });
  });
  return operations * pool.threads() / seconds;
}

double read_rate(ThreadPool& pool) {
  // On the pages that weights lie on.
  const std::int64_t count = uncached_bytes() / 8;
  const auto memory = map_memory(count * 8);
  auto* words = reinterpret_cast<std::uint64_t*>(memory.get());
  constexpr std::int64_t kGrain = std::int64_t{1} << 17;
  pool.parallel_for(count, kGrain, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) words[i] = random_word(1, i);
  });
  std::atomic<std::uint64_t> sink{0};
  const double seconds = best_seconds([&] {
    pool.parallel_for(count, kGrain, [&](std::int64_t begin, std::int64_t end, int) {
      sink += sum_words(words + begin, end - begin);
    });
  });
  return static_cast<double>(count) * 8 / seconds;
}

}  // namespace

std::int64_t uncached_bytes() {
  std::int64_t cache = 0;
#if defined(_SC_LEVEL3_CACHE_SIZE)
  cache = ::sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
  return std::clamp<std::int64_t>(4 * cache, std::int64_t{512} << 20, std::int64_t{2} << 30);
}

DeviceLimits measure_cpu_limits(ThreadPool& pool, CpuIsa isa) {
  constexpr double kInstructions = static_cast<double>(kSteps) * kChains;
  DeviceLimits limits{.read_bytes = read_rate(pool)};
  if (__builtin_cpu_supports("avx512f"))
    limits.flops = rate(pool, fma_avx512, kInstructions * 32);
  else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    limits.flops = rate(pool, fma_avx2, kInstructions * 16);
  else
    limits.flops = rate(pool, fma_plain, kInstructions * 2);
  if (__builtin_cpu_supports("avx512vnni"))
    limits.int8_flops = rate(pool, dot_vnni, kInstructions * 128);
  // best_isa() has asked the system for the use of tiles.
  if (best_isa() == CpuIsa::kAmx)
    limits.tile_flops = rate(pool, dot_tiles, static_cast<double>(kTileSteps) * 4 * 2 * 8192);
  if (isa == CpuIsa::kAmxLinears) limits.flops = limits.tile_flops / 2;
  return limits;
}

}  // namespace quatrain

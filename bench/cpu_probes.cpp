// SPDX-License-Identifier: Apache-2.0
#include "cpu_probes.h"

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <ctime>

namespace quatrain::bench {
namespace {

// What the loops compute must reach something that the compiler cannot leave out.
std::atomic<std::int64_t> sink{0};

__attribute__((target("avx2"))) std::int64_t read_part(const std::byte* data, std::int64_t bytes) {
  __m256i sums[8] = {};
  const auto* p = reinterpret_cast<const __m256i*>(data);
  for (std::int64_t i = 0; i + 8 <= bytes / 32; i += 8) {
    for (int j = 0; j < 4; ++j)
      __builtin_prefetch(reinterpret_cast<const char*>(p + i) + 2304 + 64 * j);
    for (int j = 0; j < 8; ++j) sums[j] = _mm256_xor_si256(sums[j], _mm256_loadu_si256(p + i + j));
  }
  for (int j = 1; j < 8; ++j) sums[0] = _mm256_xor_si256(sums[0], sums[j]);
  return _mm256_extract_epi64(sums[0], 0) ^ _mm256_extract_epi64(sums[0], 3);
}

constexpr std::int64_t kRounds = 2'000'000;
constexpr std::int64_t kTileRounds = 300'000;
constexpr int kChains = 12;

// kRounds times: `step` once on each of 12 registers. The empty assembly keeps the compiler from
// computing equal registers once, or not at all.
#define QT_CHAINS(Type, step)                                                            \
  Type r0{}, r1{}, r2{}, r3{}, r4{}, r5{}, r6{}, r7{}, r8{}, r9{}, r10{}, r11{};         \
  for (std::int64_t i = 0; i < kRounds; ++i) {                                           \
    r0 = step(r0), r1 = step(r1), r2 = step(r2), r3 = step(r3), r4 = step(r4);           \
    r5 = step(r5), r6 = step(r6), r7 = step(r7), r8 = step(r8), r9 = step(r9);           \
    r10 = step(r10), r11 = step(r11);                                                    \
    __asm__ volatile("" : "+v"(r0), "+v"(r1), "+v"(r2), "+v"(r3), "+v"(r4), "+v"(r5));   \
    __asm__ volatile("" : "+v"(r6), "+v"(r7), "+v"(r8), "+v"(r9), "+v"(r10), "+v"(r11)); \
  }

__attribute__((target("avx512f,avx512vnni"))) void dot_avx512() {
  const __m512i a = _mm512_set1_epi32(0x01020304), b = _mm512_set1_epi32(0x04030201);
#define QT_STEP(r) _mm512_dpbusd_epi32(r, a, b)
  QT_CHAINS(__m512i, QT_STEP)
#undef QT_STEP
}

__attribute__((target("avx2"))) void dot_avx2() {
  const __m256i a = _mm256_set1_epi32(0x01020304), b = _mm256_set1_epi32(0x04030201);
#define QT_STEP(r) _mm256_add_epi16(r, _mm256_maddubs_epi16(_mm256_xor_si256(a, r), b))
  QT_CHAINS(__m256i, QT_STEP)
#undef QT_STEP
}

__attribute__((target("avx512f"))) void fma_avx512() {
  const __m512 a = _mm512_set1_ps(1e-3f), b = _mm512_set1_ps(1.5f);
#define QT_STEP(r) _mm512_fmadd_ps(a, b, r)
  QT_CHAINS(__m512, QT_STEP)
#undef QT_STEP
}

__attribute__((target("avx2,fma"))) void fma_avx2() {
  const __m256 a = _mm256_set1_ps(1e-3f), b = _mm256_set1_ps(1.5f);
#define QT_STEP(r) _mm256_fmadd_ps(a, b, r)
  QT_CHAINS(__m256, QT_STEP)
#undef QT_STEP
}

// 16 rows of 16 FP32 sums, 32 columns: 8,192 multiply-adds an instruction.
__attribute__((target("amx-tile,amx-bf16"))) void dot_tiles() {
  struct alignas(64) {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } const config;
  alignas(64) std::uint16_t values[512];  // BF16 between 0.5 and 2
  for (std::size_t i = 0; i < 512; ++i) values[i] = static_cast<std::uint16_t>(0x3F00 + i % 251);
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
  for (std::int64_t i = 0; i < kTileRounds; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
}

// The rate of `amount` for each of the threads.
Rate rate_of(ThreadPool& pool, const Stopwatch& watch, double amount) {
  return {.wall = amount / watch.wall_seconds(),
          .cpu = amount * pool.threads() / watch.cpu_seconds()};
}

Rate rate(ThreadPool& pool, void (*loop)(), std::int64_t macs) {
  const Stopwatch watch;
  pool.parallel_for(pool.threads(), 1, [&](std::int64_t, std::int64_t, int) { loop(); });
  return rate_of(pool, watch, static_cast<double>(macs * pool.threads()));
}

double now(clockid_t clock) {
  timespec t{};
  clock_gettime(clock, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

}  // namespace

Stopwatch::Stopwatch() : wall_(now(CLOCK_MONOTONIC)), cpu_(now(CLOCK_PROCESS_CPUTIME_ID)) {}
double Stopwatch::wall_seconds() const { return now(CLOCK_MONOTONIC) - wall_; }
double Stopwatch::cpu_seconds() const { return now(CLOCK_PROCESS_CPUTIME_ID) - cpu_; }

Rate read_bytes_per_second(ThreadPool& pool, const std::byte* data, std::int64_t bytes) {
  constexpr std::int64_t kPart = 4 << 20;
  const Stopwatch watch;
  pool.parallel_for(bytes / kPart, 1, [&](std::int64_t begin, std::int64_t end, int) {
    sink += read_part(data + begin * kPart, (end - begin) * kPart);
  });
  return rate_of(pool, watch, static_cast<double>(bytes / kPart * kPart));
}

Rate int8_macs_per_second(ThreadPool& pool, CpuIsa isa) {
  return isa == CpuIsa::kAvx2 ? rate(pool, dot_avx2, kRounds * kChains * 32)
                              : rate(pool, dot_avx512, kRounds * kChains * 64);
}

Rate fma_macs_per_second(ThreadPool& pool, CpuIsa isa) {
  return isa == CpuIsa::kAvx2 ? rate(pool, fma_avx2, kRounds * kChains * 8)
                              : rate(pool, fma_avx512, kRounds * kChains * 16);
}

Rate tile_macs_per_second(ThreadPool& pool) {
  return rate(pool, dot_tiles, kTileRounds * 4 * 8192);
}

}  // namespace quatrain::bench

// SPDX-License-Identifier: Apache-2.0
// The keys of one row at the width of DeepSeek-V4's latents: which they are, where they lie, and
// their way into shared memory as F16, in tiles of 64 that wgmma_f16.cuh multiplies.
#pragma once

#include "backends/cuda/device/cache_rows.cuh"
#include "backends/cuda/device/f16_pairs.cuh"
#include "backends/cuda/device/sequence_view.cuh"
#include "backends/cuda/device/wgmma_f16.cuh"
#include "backends/cuda/launch/attention.h"

namespace quatrain::cuda::latent {

inline constexpr int kWidth = kLatentWidth;
inline constexpr int kTileKeys = 64;
inline constexpr int kFewRows = 4;  // of a sequence in a step: a decode step
inline constexpr int kWarps = 8;    // of a block
inline constexpr int kKeysPerWarp = kTileKeys / kWarps;
inline constexpr int kSourceTiles = kWarp / kKeysPerWarp;  // whose keys a warp looks up at once
inline constexpr int kChunks = kWidth / 8;                 // of 16 bytes in a row
inline constexpr int kPanelBytes = kTileKeys * kPanelRowBytes;
inline constexpr int kTileBytes = kWidth / kPanelColumns * kPanelBytes;

// ---- which keys a row has, and where they are ----

// Does the row's sequence bring at most kFewRows rows to this step? For rows that are no padding.
__device__ inline bool is_few(const BatchView& batch, int r) {
  const int first = batch.first_rows[r];
  const int after = first + kFewRows;
  return after >= batch.rows || batch.slots[after] != batch.slots[r] ||
         batch.first_rows[after] != first;
}

struct RowKeys {
  int window_begin;  // first position
  int window_count;
  int count;
  const int* selected;  // entries by rank; null: entry = rank
};

__device__ inline RowKeys find_keys(const AttendArgs& args, int r) {
  const int position = args.batch.positions[r];
  RowKeys keys = {.window_begin = max(0, position + 1 - args.window), .selected = nullptr};
  keys.window_count = keys.count = position + 1 - keys.window_begin;
  if (args.entries.rows.data == nullptr) return keys;
  const int visible = (position + 1) / args.entries.ratio;
  keys.count += args.selected == nullptr ? visible : min(args.topk, visible);
  if (args.selected != nullptr) keys.selected = args.selected + std::int64_t{r} * args.topk;
  return keys;
}

// A row in memory: of a cache, or of this step's latents, in FP32 (kStepTag is added) or as the
// conversion kernel left them (kF16Tag is added). 0: none.
using Source = unsigned long long;
inline constexpr Source kStepTag = 1;
inline constexpr Source kF16Tag = 2;
inline constexpr Source kTags = kStepTag | kF16Tag;

class RowSources {
 public:
  __device__ RowSources(const AttendArgs& args, const RowKeys& keys, int r)
      : args_(args),
        keys_(keys),
        recent_(args.batch, r, args.window),
        paged_(args.batch, args.entries, args.batch.slots[r]) {}

  __device__ Source of(int k) const {
    if (k >= keys_.count) return 0;
    if (k >= keys_.window_count) {
      const int rank = k - keys_.window_count;
      const int entry = keys_.selected != nullptr ? keys_.selected[rank] : rank;
      return reinterpret_cast<Source>(row_address(args_.entries.rows, paged_.row(entry)));
    }
    const int position = keys_.window_begin + k;
    if (recent_.in_step(position)) {
      const std::int64_t at = recent_.step_row(position) * kWidth;
      if (args_.step_rows != nullptr)
        return reinterpret_cast<Source>(static_cast<const __half*>(args_.step_rows) + at) + kF16Tag;
      return reinterpret_cast<Source>(args_.latents + at) + kStepTag;
    }
    return reinterpret_cast<Source>(row_address(args_.ring, recent_.ring_row(position)));
  }

 private:
  const AttendArgs& args_;
  const RowKeys& keys_;
  RecentRows recent_;
  PagedRows paged_;
};

// ---- rows into shared memory, as F16 ----

__device__ inline uint4 f16_chunk(const float (&x)[8]) {
  return {f16_pair(x[0], x[1]), f16_pair(x[2], x[3]), f16_pair(x[4], x[5]), f16_pair(x[6], x[7])};
}

// Bytes of a chunk of eight columns on their way through registers.
struct RawChunk {
  uint4 low, high;
};

template <CacheFormat kFormat>
__device__ RawChunk fetch(Source source, int chunk) {
  RawChunk raw = {};
  if (source == 0) return raw;
  if ((source & kStepTag) != 0) {
    const auto* from = reinterpret_cast<const uint4*>(source - kStepTag) + 2 * chunk;
    raw.low = from[0];
    raw.high = from[1];
  } else if (kFormat != CacheFormat::kPackedLatent || (source & kF16Tag) != 0) {
    raw.low = reinterpret_cast<const uint4*>(source & ~kTags)[chunk];
  } else if constexpr (kFormat == CacheFormat::kPackedLatent) {
    constexpr PackedLatent kLayout(kWidth);
    const auto* row = reinterpret_cast<const unsigned char*>(source);
    const bool is_code = chunk < kLayout.codes / 8;
    const int at = is_code ? 8 * chunk : kLayout.codes + 16 * (chunk - kLayout.codes / 8);
    const uint2 first = *reinterpret_cast<const uint2*>(row + at);
    raw.low.x = first.x;
    raw.low.y = first.y;
    if (is_code) {
      raw.high.x = row[kLayout.scales_at + chunk / (kLatentBlock / 8)];
    } else {
      const uint2 second = *reinterpret_cast<const uint2*>(row + at + 8);
      raw.low.z = second.x;
      raw.low.w = second.y;
    }
  }
  return raw;
}

// Eight E4M3 codes times a power of two: exact but for results that are F16 subnormals.
__device__ inline uint4 e4m3_to_f16(std::uint32_t low, std::uint32_t high, std::uint8_t scale) {
  const __half2 factor = __float2half2_rn(ue8m0_decode(scale));
  const std::uint32_t words[2] = {low, high};
  std::uint32_t out[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    std::uint32_t pair;
    const auto codes = static_cast<std::uint16_t>(words[j / 2] >> (16 * (j % 2)));
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"(codes));
    const __half2 product = __hmul2(*reinterpret_cast<const __half2*>(&pair), factor);
    out[j] = *reinterpret_cast<const std::uint32_t*>(&product);
  }
  return {out[0], out[1], out[2], out[3]};
}

// What the cache would give back, up to a rounding to F16.
template <CacheFormat kFormat>
__device__ float as_cached(int column, float value) {
  const bool is_bf16 = kFormat == CacheFormat::kBf16 || (kFormat == CacheFormat::kPackedLatent &&
                                                         column >= PackedLatent(kWidth).codes);
  return is_bf16 ? bf16_round(value) : value;
}

template <CacheFormat kFormat>
__device__ uint4 decode(const RawChunk& raw, Source source, int chunk) {
  if (source == 0) return {0, 0, 0, 0};
  if ((source & kStepTag) != 0) {
    const uint4 parts[2] = {raw.low, raw.high};
    const auto* values = reinterpret_cast<const float*>(parts);
    float x[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] = as_cached<kFormat>(8 * chunk + j, values[j]);
    return f16_chunk(x);
  }
  if (kFormat == CacheFormat::kF16 || (source & kF16Tag) != 0) return raw.low;
  if constexpr (kFormat == CacheFormat::kPackedLatent)
    if (chunk < PackedLatent(kWidth).codes / 8)
      return e4m3_to_f16(raw.low.x, raw.low.y, static_cast<std::uint8_t>(raw.high.x));
  return bf16_to_f16(raw.low);
}

// Where a lane's first chunk of a key of this warp goes in a stage; its second, of the upper half
// of the columns, goes kUpperHalf behind.
__device__ inline unsigned char* place_of_key(unsigned char* stage, int key) {
  static_assert(kKeysPerWarp == 8, "the swizzle is that of the key's number in its warp");
  return stage + lane_id() / 8 * kPanelBytes + warp_id() * kKeysPerWarp * kPanelRowBytes +
         panel_offset(key, lane_id() % 8);
}
inline constexpr int kUpperHalf = kWarp / 8 * kPanelBytes;

// `kCount` keys by way of registers; lane first + j knows the source of key j of the warp.
template <CacheFormat kFormat, int kCount>
__device__ void convert_keys(Source own, int first, int key, unsigned char* stage) {
  const int chunk = lane_id();
  Source sources[kCount];
  RawChunk raw[kCount][2];
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    sources[j] = __shfl_sync(kAllLanes, own, first + key + j);
    raw[j][0] = fetch<kFormat>(sources[j], chunk);
    raw[j][1] = fetch<kFormat>(sources[j], chunk + kWarp);
  }
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    unsigned char* to = place_of_key(stage, key + j);
    *reinterpret_cast<uint4*>(to) = decode<kFormat>(raw[j][0], sources[j], chunk);
    *reinterpret_cast<uint4*>(to + kUpperHalf) =
        decode<kFormat>(raw[j][1], sources[j], chunk + kWarp);
  }
}

// The keys of this warp into a stage; lane first + j knows the source of key j. A lane copies the
// chunks `lane` and `lane + 32` of every key.
template <CacheFormat kFormat>
__device__ void load_keys(Source own, int first, unsigned char* stage) {
  constexpr int kAtOnce = 4;  // rows on their way through registers
  const bool is_direct =
      own == 0 || (own & kF16Tag) != 0 || (kFormat == CacheFormat::kF16 && (own & kStepTag) == 0);
  unsigned converted = __ballot_sync(kAllLanes, !is_direct) >> first & ((1u << kKeysPerWarp) - 1);
  if (kFormat != CacheFormat::kF16 && converted != 0) {
#pragma unroll
    for (int key = 0; key < kKeysPerWarp; key += kAtOnce)
      convert_keys<kFormat, kAtOnce>(own, first, key, stage);
  } else {
#pragma unroll
    for (int key = 0; key < kKeysPerWarp; ++key) {
      const Source source = __shfl_sync(kAllLanes, own, first + key);
      if ((converted >> key & 1) != 0) continue;
      const std::uint32_t at = shared_address(place_of_key(stage, key));
      const auto* from = reinterpret_cast<const uint4*>(source & ~kTags) + lane_id();
      copy16_or_zeros(at, from, source != 0);
      copy16_or_zeros(at + kUpperHalf, from + kWarp, source != 0);
    }
    for (; converted != 0; converted &= converted - 1)
      convert_keys<kFormat, 1>(own, first, __ffs(static_cast<int>(converted)) - 1, stage);
  }
  commit_copies();
}

}  // namespace quatrain::cuda::latent

// SPDX-License-Identifier: Apache-2.0
// Reads and writes of rows that outlive a step, in any of their formats. Which is uniform over a
// launch.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/launch/batch.h"
#include "core/packed_row.h"

namespace quatrain::cuda {

/// First byte of a row.
__device__ inline unsigned char* row_address(const CacheRows& rows, std::int64_t row) {
  return static_cast<unsigned char*>(rows.data) + row * rows.row_bytes;
}

/// A latent's columns column … column + 7 from its packed row.
__device__ inline void load8_latent(const unsigned char* row, int width, int column,
                                    float (&out)[8]) {
  const PackedLatent layout(width);
  if (column >= layout.codes) {
    const auto* codes = reinterpret_cast<const std::uint16_t*>(row + layout.codes);
#pragma unroll
    for (int j = 0; j < 8; ++j) out[j] = bf16_decode(codes[column - layout.codes + j]);
    return;
  }
  const float scale = ue8m0_decode(row[layout.scales_at + column / kLatentBlock]);
#pragma unroll
  for (int j = 0; j < 8; ++j) out[j] = e4m3_decode(row[column + j]) * scale;
}

/// An index key's columns column … column + 7 from its packed row.
__device__ inline void load8_index_key(const unsigned char* row, int width, int column,
                                       float (&out)[8]) {
  const std::uint32_t codes = *reinterpret_cast<const std::uint32_t*>(row + column / 2);
  const float scale = ue8m0_decode(row[PackedIndexKey(width).scales_at + column / kIndexBlock]);
#pragma unroll
  for (int j = 0; j < 8; ++j) out[j] = e2m1_decode(codes >> (4 * j)) * scale;
}

/// Columns column … column + 7 of a row to FP32; `column` is a multiple of 8.
__device__ inline void load8(const CacheRows& rows, std::int64_t row, int column, float (&out)[8]) {
  const unsigned char* from = row_address(rows, row);
  switch (rows.format) {
    case CacheFormat::kF32: {
      const float* values = reinterpret_cast<const float*>(from) + column;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float4 four = reinterpret_cast<const float4*>(values)[j];
        out[4 * j] = four.x;
        out[4 * j + 1] = four.y;
        out[4 * j + 2] = four.z;
        out[4 * j + 3] = four.w;
      }
      return;
    }
    case CacheFormat::kPackedLatent:
      return load8_latent(from, rows.width, column, out);
    case CacheFormat::kPackedIndexKey:
      return load8_index_key(from, rows.width, column, out);
    default:
      break;
  }
  const uint4 packed = *reinterpret_cast<const uint4*>(from + 2 * column);
  const std::uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (rows.format == CacheFormat::kBf16) {
      out[2 * j] = __uint_as_float(words[j] << 16);
      out[2 * j + 1] = __uint_as_float(words[j] & 0xFFFF0000u);
    } else {
      const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&words[j]));
      out[2 * j] = pair.x;
      out[2 * j + 1] = pair.y;
    }
  }
}

/// The value of a column that store_row() and load8() would give back; packed formats keep what is
/// on their grid, as everything that is stored in them must be.
__device__ inline float as_stored(const CacheRows& rows, int column, float value) {
  switch (rows.format) {
    case CacheFormat::kBf16:
      return bf16_round(value);
    case CacheFormat::kF16:
      return __half2float(__float2half_rn(value));
    case CacheFormat::kPackedLatent:
      return column < rows.width - kPackedRotary ? value : bf16_round(value);
    default:
      return value;
  }
}

/// Packs from[0, width) on its grid, a warp per block of columns.
__device__ inline void store_latent(unsigned char* row, int width, const float* from) {
  const PackedLatent layout(width);
  for (int begin = warp_id() * kLatentBlock; begin < layout.codes;
       begin += warps_in_block() * kLatentBlock) {
    const int first = begin + lane_id();
    const int second = first + kWarp;
    const float a = first < layout.codes ? from[first] : 0.0f;
    const float b = second < layout.codes ? from[second] : 0.0f;
    const std::uint8_t code = latent_scale(warp_max(fmaxf(fabsf(a), fabsf(b))));
    const float scale = ue8m0_decode(code);
    if (first < layout.codes) row[first] = e4m3_encode(__fdiv_rn(a, scale));
    if (second < layout.codes) row[second] = e4m3_encode(__fdiv_rn(b, scale));
    if (lane_id() == 0) row[layout.scales_at + begin / kLatentBlock] = code;
  }
  const int i = static_cast<int>(threadIdx.x);
  for (int c = i; c < kPackedRotary; c += blockDim.x)
    reinterpret_cast<std::uint16_t*>(row + layout.codes)[c] = bf16_encode(from[layout.codes + c]);
  const int used = layout.scales_at + (layout.codes + kLatentBlock - 1) / kLatentBlock;
  if (i < layout.bytes - used) row[used + i] = 0;
}

__device__ inline void store_index_key(unsigned char* row, int width, const float* from) {
  const PackedIndexKey layout(width);
  for (int begin = warp_id() * kIndexBlock; begin < width;
       begin += warps_in_block() * kIndexBlock) {
    const int c = begin + lane_id();
    const float value = c < width ? from[c] : 0.0f;
    const std::uint8_t code = index_scale(warp_max(fabsf(value)));
    const unsigned even = e2m1_encode(__fdiv_rn(value, ue8m0_decode(code)));
    const unsigned odd = __shfl_down_sync(kAllLanes, even, 1);
    if (c < width && c % 2 == 0) row[c / 2] = e2m1_pack(even, odd);
    if (lane_id() == 0) row[layout.scales_at + begin / kIndexBlock] = code;
  }
  const int i = static_cast<int>(threadIdx.x);
  const int used = layout.scales_at + (width + kIndexBlock - 1) / kIndexBlock;
  if (i < layout.bytes - used) row[used + i] = 0;
}

/// row = from[0, width), in shared or global memory, by all threads of a block of whole warps.
__device__ inline void store_row(const CacheRows& rows, std::int64_t row, const float* from) {
  unsigned char* to = row_address(rows, row);
  if (rows.format == CacheFormat::kPackedLatent) return store_latent(to, rows.width, from);
  if (rows.format == CacheFormat::kPackedIndexKey) return store_index_key(to, rows.width, from);
  for (int c = static_cast<int>(threadIdx.x); c < rows.width; c += blockDim.x) {
    if (rows.format == CacheFormat::kF32)
      reinterpret_cast<float*>(to)[c] = from[c];
    else if (rows.format == CacheFormat::kBf16)
      reinterpret_cast<std::uint16_t*>(to)[c] = bf16_encode(from[c]);
    else
      reinterpret_cast<__half*>(to)[c] = __float2half_rn(from[c]);
  }
}

}  // namespace quatrain::cuda

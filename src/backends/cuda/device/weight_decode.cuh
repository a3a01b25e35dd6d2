// SPDX-License-Identifier: Apache-2.0
// Decodes 16 consecutive weights of a checkpoint-layout matrix to BF16 values, and the scales that
// are left for FP32.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "backends/cuda/launch/matrix.h"
#include "core/codec.h"

namespace quatrain::cuda {

__device__ inline float load_scale(const Matrix& m, std::int64_t i) {
  switch (m.scale_dtype) {
    case DType::kF32:
      return static_cast<const float*>(m.scales)[i];
    case DType::kBF16:
      return bf16_decode(static_cast<const std::uint16_t*>(m.scales)[i]);
    case DType::kF16:
      return f16_decode(static_cast<const std::uint16_t*>(m.scales)[i]);
    case DType::kF8E4M3:
      return e4m3_decode(static_cast<const std::uint8_t*>(m.scales)[i]);
    default:
      return ue8m0_decode(static_cast<const std::uint8_t*>(m.scales)[i]);
  }
}

/// The bits of a BF16 for an FP32 value that needs no rounding (or is rounded to nearest).
__device__ inline std::uint16_t to_bf16(float x) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

/// out[i] = the part of W[row][col + i] that BF16 holds exactly: for the 4-bit formats value ·
/// block scale, for FP8 the value alone, for dense weights the value (F32 and F16 rounded). Columns
/// from m.cols on are zero. col is a multiple of 16.
__device__ inline void decode16(const Matrix& m, std::int64_t row, int col,
                                std::uint16_t (&out)[16]) {
  const std::int64_t at = row * m.cols + col;
  if (m.format == WeightFormat::kNvfp4 || m.format == WeightFormat::kMxfp4) {
    const int block = m.format == WeightFormat::kNvfp4 ? 16 : 32;
    if (col >= m.cols) {
      for (int i = 0; i < 16; ++i) out[i] = 0;
      return;
    }
    const float scale = load_scale(m, row * (m.cols / block) + col / block);
    const uint2 packed =
        *reinterpret_cast<const uint2*>(static_cast<const std::uint8_t*>(m.values) + at / 2);
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const std::uint32_t word = i < 8 ? packed.x : packed.y;
      out[i] = to_bf16(e2m1_decode((word >> (4 * (i % 8))) & 15u) * scale);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    float value = 0;
    if (col + i < m.cols) {
      switch (m.dtype) {
        case DType::kBF16:
          value = bf16_decode(static_cast<const std::uint16_t*>(m.values)[at + i]);
          break;
        case DType::kF16:
          value = f16_decode(static_cast<const std::uint16_t*>(m.values)[at + i]);
          break;
        case DType::kF32:
          value = static_cast<const float*>(m.values)[at + i];
          break;
        default:
          value = e4m3_decode(static_cast<const std::uint8_t*>(m.values)[at + i]);
          break;
      }
    }
    out[i] = to_bf16(value);
  }
}

/// The FP32 factor of columns [kblock · 128, …) of a row of an FP8 block matrix.
__device__ inline float block_scale(const Matrix& m, std::int64_t row, int kblock) {
  return load_scale(m, row / kFp8Block * ((m.cols + kFp8Block - 1) / kFp8Block) + kblock);
}

/// The FP32 factor of a whole row; the global scale of NVFP4 is not in it.
__device__ inline float row_scale(const Matrix& m, std::int64_t row) {
  if (m.format == WeightFormat::kFp8Row) return load_scale(m, row);
  if (m.format == WeightFormat::kFp8Tensor) return load_scale(m, 0);
  return 1.0f;
}

/// The matrix `e` places after `m` in an array of equal matrices.
__device__ inline Matrix nth_matrix(const Matrix& m, std::int64_t e) {
  Matrix moved = m;
  const std::int64_t count = std::int64_t{m.rows} * m.cols;
  std::int64_t value_bytes = count, scales = 0;
  int scale_bytes = 1;
  switch (m.dtype) {
    case DType::kF32:
      value_bytes = 4 * count;
      break;
    case DType::kBF16:
    case DType::kF16:
      value_bytes = 2 * count;
      break;
    default:
      break;
  }
  switch (m.format) {
    case WeightFormat::kNvfp4:
      value_bytes = count / 2, scales = count / kNvfp4Block;
      break;
    case WeightFormat::kMxfp4:
      value_bytes = count / 2, scales = count / kMxfp4Block;
      break;
    case WeightFormat::kFp8Block:
      scales = (m.rows + kFp8Block - 1) / kFp8Block * ((m.cols + kFp8Block - 1) / kFp8Block);
      break;
    case WeightFormat::kFp8Row:
      scales = m.rows;
      break;
    case WeightFormat::kFp8Tensor:
      scales = 1;
      break;
    case WeightFormat::kDense:
      break;
  }
  if (m.scale_dtype == DType::kF32) scale_bytes = 4;
  if (m.scale_dtype == DType::kBF16 || m.scale_dtype == DType::kF16) scale_bytes = 2;
  moved.values = static_cast<const char*>(m.values) + e * value_bytes;
  moved.scales = static_cast<const char*>(m.scales) + e * scales * scale_bytes;
  return moved;
}

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// Packing of NVFP4 experts on the device, straight into their final buffer.
//
// Scales are placed first, as they are in the checkpoint, so that one array at a time passes
// through staging; the kernel that places the codes of a block also turns the block's scale into
// its packed byte, because a scale's sign and zero belong into the codes.
#include "backends/cuda/cuda_check.h"
#include "backends/cuda/launch/experts.h"

namespace quatrain::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) pack_scales_kernel(PackArgs args) {
  const int blocks = args.cols / 16;
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= std::int64_t{args.rows} * blocks) return;
  const int row = packed_row(args.kind, static_cast<int>(i / blocks));
  args.out[scale_place(args.shape, row, static_cast<int>(i % blocks))] = args.scales[i];
}

// The 16 codes of a block, low nibble first, with their scale's sign; converts the scale in place.
__device__ uint2 take_block(const PackArgs& args, int row, int block) {
  std::uint8_t& scale = args.out[scale_place(args.shape, packed_row(args.kind, row), block)];
  const uint2 codes =
      *reinterpret_cast<const uint2*>(args.codes + std::int64_t{row} * args.cols / 2 + block * 8);
  const std::uint8_t raw = scale;
  scale = packed_scale(raw);
  return {signed_codes(codes.x, raw), signed_codes(codes.y, raw)};
}

// One thread packs one block of a row, or of rows r and r + 8, which share their words.
__global__ void __launch_bounds__(kThreads) pack_codes_kernel(PackArgs args) {
  const int blocks = args.cols / 16;
  const bool plain = args.kind == PackedRows::kPlain;
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int pair = static_cast<int>(i / blocks);
  const int block = static_cast<int>(i % blocks);
  const int row = plain ? pair / 8 * 16 + pair % 8 : pair;
  if (row >= args.rows) return;

  uint2 rows[2] = {};
  rows[args.kind == PackedRows::kUp ? 1 : 0] = take_block(args, row, block);
  if (plain && row + 8 < args.rows) rows[1] = take_block(args, row + 8, block);

  const int first_row = packed_row(plain ? PackedRows::kPlain : PackedRows::kGate, row);
  for (int t = 0; t < 4; ++t) {
    std::uint32_t word = 0;
    for (int half = 0; half < 2; ++half) {
      const int shift = 8 * t + 4 * half;
      for (int r = 0; r < 2; ++r) {
        word |= quad_bits(r, rows[r].x >> shift & 15u) << (16 * half);
        word |= quad_bits(r + 2, rows[r].y >> shift & 15u) << (16 * half);
      }
    }
    auto* at = reinterpret_cast<std::uint32_t*>(
        args.out + code_place(args.shape, first_row, block * 16 + 2 * t).word);
    *at = args.kind == PackedRows::kUp ? *at | word : word;
  }
}

}  // namespace

void pack_scales(const PackArgs& args, cudaStream_t stream) {
  const std::int64_t count = std::int64_t{args.rows} * (args.cols / 16);
  pack_scales_kernel<<<static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads, 0,
                       stream>>>(args);
  QT_CUDA(cudaGetLastError());
}

void pack_codes(const PackArgs& args, cudaStream_t stream) {
  const int pairs = args.kind == PackedRows::kPlain ? padded_to(args.rows, 16) / 2 : args.rows;
  const std::int64_t count = std::int64_t{pairs} * (args.cols / 16);
  pack_codes_kernel<<<static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads, 0,
                      stream>>>(args);
  QT_CUDA(cudaGetLastError());
}

}  // namespace quatrain::cuda

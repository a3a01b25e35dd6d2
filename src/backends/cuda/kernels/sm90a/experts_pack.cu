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

// Pairs of blocks in a row, the last of which may be one.
__host__ __device__ int block_pairs(const PackArgs& args) { return (args.cols / 16 + 1) / 2; }

__global__ void __launch_bounds__(kThreads) pack_scales_kernel(PackArgs args) {
  const int blocks = args.cols / 16;
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= std::int64_t{args.rows} * blocks) return;
  const int row = packed_row(args.kind, static_cast<int>(i / blocks));
  args.out[scale_place(args.shape, row, static_cast<int>(i % blocks))] = args.scales[i];
}

// The 16 codes of a block, low nibble first, with their scale's sign; converts the scale in place.
// Zeros for a block or a row that the matrix lacks.
__device__ uint2 take_block(const PackArgs& args, int row, int block) {
  if (row >= args.rows || block >= args.cols / 16) return {};
  std::uint8_t& scale = args.out[scale_place(args.shape, packed_row(args.kind, row), block)];
  const uint2 codes =
      *reinterpret_cast<const uint2*>(args.codes + std::int64_t{row} * args.cols / 2 + block * 8);
  const std::uint8_t raw = scale;
  scale = packed_scale(raw);
  return {signed_codes(codes.x, raw), signed_codes(codes.y, raw)};
}

// One thread packs two blocks, the atoms of a pair, of a row, or of rows r and r + 8, which share
// their words.
__global__ void __launch_bounds__(kThreads) pack_codes_kernel(PackArgs args) {
  const int pairs = block_pairs(args);
  const bool plain = args.kind == PackedRows::kPlain;
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int rows = static_cast<int>(i / pairs);
  const int pair = static_cast<int>(i % pairs);
  const int row = plain ? rows / 8 * 16 + rows % 8 : rows;
  if (row >= args.rows) return;

  uint2 codes[2][2] = {};  // by atom and row
  for (int atom = 0; atom < 2; ++atom) {
    codes[atom][args.kind == PackedRows::kUp ? 1 : 0] = take_block(args, row, pair * 2 + atom);
    if (plain) codes[atom][1] = take_block(args, row + 8, pair * 2 + atom);
  }

  const int first_row = packed_row(plain ? PackedRows::kPlain : PackedRows::kGate, row);
  for (int t = 0; t < 4; ++t) {
    QuadBits words;
    for (int n = 0; n < 16; ++n) {
      const int atom = n / 8, half = n / 4 % 2, member = n % 4;
      const uint2& block = codes[atom][member % 2];
      const std::uint32_t code = (member < 2 ? block.x : block.y) >> (8 * t + 4 * half) & 15u;
      const QuadBits bits = quad_bits(atom, member, code);
      words.even |= bits.even << (16 * half);
      words.odd |= bits.odd << (16 * half);
    }
    auto* at = reinterpret_cast<uint2*>(args.out +
                                        code_place(args.shape, first_row, pair * 32 + 2 * t).words);
    if (args.kind == PackedRows::kUp) words = {at->x | words.even, at->y | words.odd};
    *at = {words.even, words.odd};
  }
}

// A row's codes of 32 columns, and the scale that they share.
struct Fp8Block {
  uint2 halves[2];
  int exponent;
};

__device__ bool is_live(const uint2& codes) { return ((codes.x | codes.y) & 0x77777777u) != 0; }

// Converts the scales in place: fp8_row_tops() has seen that those of the halves which are not zero
// are the same power of two.
__device__ Fp8Block take_fp8_block(const PackArgs& args, int row, int pair) {
  Fp8Block out = {{}, args.tops[row]};
  std::uint8_t& first = args.out[scale_place(args.shape, packed_row(args.kind, row), 2 * pair)];
  std::uint8_t& second =
      args.out[scale_place(args.shape, packed_row(args.kind, row), 2 * pair + 1)];
  const std::uint8_t raw[2] = {first, second};
  for (int half = 0; half < 2; ++half) {
    const int col = pair * 32 + half * 16;
    if (col >= args.cols || raw[half] == 0) continue;
    const uint2 codes =
        *reinterpret_cast<const uint2*>(args.codes + (std::int64_t{row} * args.cols + col) / 2);
    if (!is_live(codes)) continue;
    out.halves[half] = codes;
    out.exponent = packed_scale(raw[half]) / 8 - 15;
  }
  first = packed_power(out.exponent);
  second = fp8_table_place(out.exponent, args.tops[row]);
  return out;
}

// As pack_codes_kernel, of 32 columns.
__global__ void __launch_bounds__(kThreads) pack_fp8_kernel(PackArgs args) {
  const int pairs = block_pairs(args);
  const bool plain = args.kind == PackedRows::kPlain;
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int number = static_cast<int>(i / pairs);
  const int pair = static_cast<int>(i % pairs);
  const int row = plain ? number / 8 * 16 + number % 8 : number;
  if (row >= args.rows) return;

  Fp8Block rows[2] = {};
  rows[args.kind == PackedRows::kUp ? 1 : 0] = take_fp8_block(args, row, pair);
  if (plain && row + 8 < args.rows) rows[1] = take_fp8_block(args, row + 8, pair);

  const int first_row = packed_row(plain ? PackedRows::kPlain : PackedRows::kGate, row);
  for (int atom = 0; atom < 2; ++atom)
    for (int t = 0; t < 4; ++t) {
      std::uint32_t word = 0;
      for (int half = 0; half < 2; ++half) {
        const int shift = 8 * t + 4 * half;
        for (int r = 0; r < 2; ++r) {
          word |= fp8_bits(half, r, rows[r].halves[atom].x >> shift & 15u);
          word |= fp8_bits(half, r + 2, rows[r].halves[atom].y >> shift & 15u);
        }
      }
      auto* at = reinterpret_cast<std::uint32_t*>(
          args.out + code_place(args.shape, first_row, pair * 32 + 2 * t).words + 4 * atom);
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
  const int rows = args.kind == PackedRows::kPlain ? padded_to(args.rows, 16) / 2 : args.rows;
  const std::int64_t count = std::int64_t{rows} * block_pairs(args);
  const auto blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  const auto kernel = args.tops != nullptr ? pack_fp8_kernel : pack_codes_kernel;
  kernel<<<blocks, kThreads, 0, stream>>>(args);
  QT_CUDA(cudaGetLastError());
}

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// Products with weights in the layout of the checkpoint: linear, and the routed experts.
//
// One tile is 64 weight rows by 32 tokens: four warps of 16 rows, weights as the left operand, so
// that a few tokens still fill the tensor core. Weights are decoded into shared memory once per
// tile. A simple body, without a pipeline: the reference on the device for faster ones.
#include <algorithm>

#include "backends/cuda/cuda_check.h"
#include "backends/cuda/device/mma.cuh"
#include "backends/cuda/device/scalar.cuh"
#include "backends/cuda/device/weight_decode.cuh"
#include "backends/cuda/launch/matmul.h"

namespace quatrain::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 64;            // weight rows of a tile
constexpr int kTokens = 32;          // tokens of a tile
constexpr int kDepth = 64;           // columns per step
constexpr int kStride = kDepth + 8;  // padded row, so that ldmatrix meets every bank once

// kWeights matrices share the inputs; kParts BF16 parts represent an input.
template <int kWeights, int kParts>
struct Tile {
  __nv_bfloat16 w[kWeights][kRows][kStride];
  __nv_bfloat16 x[kParts][kTokens][kStride];
};

template <int kWeights>
struct Accumulators {
  float at[kWeights][kTokens / 8][4];
};

// Writes columns [k0, k0 + 64) of 64 rows into shared memory, decoded.
__device__ void load_weights(const Matrix& m, int row0, int row_end, int k0,
                             __nv_bfloat16 (&tile)[kRows][kStride]) {
  for (int piece = threadIdx.x; piece < kRows * (kDepth / 16); piece += kThreads) {
    const int r = piece / (kDepth / 16);
    const int c = piece % (kDepth / 16) * 16;
    alignas(16) std::uint16_t values[16] = {};
    if (row0 + r < row_end) decode16(m, row0 + r, k0 + c, values);
    auto* to = reinterpret_cast<uint4*>(&tile[r][c]);
    to[0] = reinterpret_cast<const uint4*>(values)[0];
    to[1] = reinterpret_cast<const uint4*>(values)[1];
  }
}

// Writes columns [k0, k0 + 64) of 32 input rows as BF16; `row` gives a token's row or null.
template <int kParts, class RowOf>
__device__ void load_inputs(RowOf row, int cols, int k0,
                            __nv_bfloat16 (&tile)[kParts][kTokens][kStride]) {
  for (int i = threadIdx.x; i < kTokens * kDepth; i += kThreads) {
    const int t = i / kDepth;
    const int c = i % kDepth;
    const float* x = row(t);
    const float value = x != nullptr && k0 + c < cols ? x[k0 + c] : 0.0f;
    const __nv_bfloat16 high = __float2bfloat16_rn(value);
    tile[0][t][c] = high;
    if constexpr (kParts == 2) tile[1][t][c] = __float2bfloat16_rn(value - __bfloat162float(high));
  }
}

// acc += W[row0 …, :] · x over all columns. FP8 block scales multiply the sum of each 128 columns.
template <int kWeights, int kParts, class RowOf>
__device__ void accumulate(const Matrix (&w)[kWeights], int row0, int row_end, RowOf row,
                           Tile<kWeights, kParts>& tile, Accumulators<kWeights>& acc) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int cols = w[0].cols;
  Accumulators<kWeights> part = {};
  acc = {};
  for (int k0 = 0; k0 < cols; k0 += kDepth) {
    for (int m = 0; m < kWeights; ++m) load_weights(w[m], row0, row_end, k0, tile.w[m]);
    load_inputs<kParts>(row, cols, k0, tile.x);
    __syncthreads();  // the tile is written by all and read by all
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      std::uint32_t a[kWeights][4];
#pragma unroll
      for (int m = 0; m < kWeights; ++m)
        ldmatrix_x4(a[m], &tile.w[m][warp * 16 + lane % 16][k + lane / 16 * 8]);
#pragma unroll
      for (int p = 0; p < kParts; ++p)
#pragma unroll
        for (int pair = 0; pair < kTokens / 16; ++pair) {
          std::uint32_t b[4];  // two groups of 8 tokens
          ldmatrix_x4(b, &tile.x[p][pair * 16 + lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 8]);
#pragma unroll
          for (int m = 0; m < kWeights; ++m) {
            mma_bf16(part.at[m][2 * pair], a[m], b[0], b[1]);
            mma_bf16(part.at[m][2 * pair + 1], a[m], b[2], b[3]);
          }
        }
    }
    __syncthreads();  // all have read the tile before the next one overwrites it

    const bool ends_block = (k0 + kDepth) % kFp8Block == 0 || k0 + kDepth >= cols;
    for (int m = 0; m < kWeights; ++m) {
      const bool blocked = w[m].format == WeightFormat::kFp8Block;
      if (!ends_block || (!blocked && k0 + kDepth < cols)) continue;
      float scale[2] = {1.0f, 1.0f};
      for (int half = 0; half < 2 && blocked; ++half) {
        const int r = min(row0 + warp * 16 + lane / 4 + 8 * half, w[m].rows - 1);
        scale[half] = block_scale(w[m], r, k0 / kFp8Block);
      }
#pragma unroll
      for (int n = 0; n < kTokens / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          acc.at[m][n][i] += part.at[m][n][i] * scale[i / 2];
          part.at[m][n][i] = 0;
        }
    }
  }
}

// Calls store(row, token, index of the accumulator) for every element this lane holds.
template <class Store>
__device__ void for_each_element(Store store) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < kTokens / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      store(warp * 16 + lane / 4 + i / 2 * 8, n * 8 + lane % 4 * 2 + i % 2, n, i);
}

__global__ void __launch_bounds__(kThreads) linear_kernel(Matrix w, LinearArgs args) {
  __shared__ Tile<1, 2> tile;
  const int group_rows = w.rows / args.groups;
  const int group = blockIdx.z;
  const int row0 = group * group_rows + blockIdx.x * kRows;
  const int row_end = (group + 1) * group_rows;
  const int token0 = blockIdx.y * kTokens;
  const auto row = [&](int t) -> const float* {
    const int token = token0 + t;
    if (token >= args.tokens) return nullptr;
    return args.x + (std::int64_t{token} * args.groups + group) * w.cols;
  };
  Accumulators<1> acc;
  const Matrix matrices[1] = {w};
  accumulate<1, 2>(matrices, row0, row_end, row, tile, acc);
  for_each_element([&](int r, int t, int n, int i) {
    if (row0 + r < row_end && token0 + t < args.tokens)
      args.out[std::int64_t{token0 + t} * w.rows + row0 + r] =
          acc.at[0][n][i] * row_scale(w, row0 + r) * w.global_scale;
  });
}

// The slots of one expert, 32 at a time, shared out over blockIdx.z.
template <class Body>
__device__ void for_each_token_tile(const ExpertsArgs& work, int e, Body body) {
  const int begin = work.offsets[e];
  const int end = work.offsets[e + 1];
  for (int first = begin + blockIdx.z * kTokens; first < end; first += gridDim.z * kTokens)
    body(first, min(kTokens, end - first));
}

template <int kParts>
__global__ void __launch_bounds__(kThreads)
    experts_l1_kernel(ExpertMatrix w1, ExpertMatrix w3, ExpertsArgs work, ExpertsL1Args args) {
  __shared__ Tile<2, kParts> tile;
  const int e = blockIdx.y;
  const int row0 = blockIdx.x * kRows;
  const Matrix w[2] = {nth_matrix(w1.matrix, e), nth_matrix(w3.matrix, e)};
  for_each_token_tile(work, e, [&](int first, int count) {
    const auto row_of = [&](int slot) { return args.by_slot ? slot : slot / work.k; };
    const auto row = [&](int t) -> const float* {
      if (t >= count) return nullptr;
      return args.x + std::int64_t{row_of(work.sorted[first + t])} * w[0].cols;
    };
    Accumulators<2> acc;
    accumulate<2, kParts>(w, row0, w[0].rows, row, tile, acc);
    for_each_element([&](int r, int t, int n, int i) {
      if (row0 + r >= w[0].rows || t >= count) return;
      const int slot = work.sorted[first + t];
      // All scales are in before the clamp, each global scale in its own half.
      const float input = args.row_scales != nullptr ? args.row_scales[row_of(slot)] : 1.0f;
      const float gate =
          acc.at[0][n][i] * row_scale(w[0], row0 + r) * (w1.global_scales[e] * input);
      const float up = acc.at[1][n][i] * row_scale(w[1], row0 + r) * (w3.global_scales[e] * input);
      float h = swiglu_value(gate, up, args.limit);
      if (args.weights != nullptr) h *= args.weights[slot];
      args.hidden[std::int64_t{slot} * w[0].rows + row0 + r] = h;
    });
  });
}

template <int kParts>
__global__ void __launch_bounds__(kThreads)
    experts_l2_kernel(ExpertMatrix w2, ExpertsArgs work, ExpertsL2Args args) {
  __shared__ Tile<1, kParts> tile;
  const int e = blockIdx.y;
  const int row0 = blockIdx.x * kRows;
  const Matrix w[1] = {nth_matrix(w2.matrix, e)};
  for_each_token_tile(work, e, [&](int first, int count) {
    const auto row = [&](int t) -> const float* {
      return t < count ? args.hidden + std::int64_t{work.sorted[first + t]} * w[0].cols : nullptr;
    };
    Accumulators<1> acc;
    accumulate<1, kParts>(w, row0, w[0].rows, row, tile, acc);
    for_each_element([&](int r, int t, int n, int i) {
      if (row0 + r >= w[0].rows || t >= count) return;
      const int slot = work.sorted[first + t];
      const float input = args.row_scales != nullptr ? args.row_scales[slot] : 1.0f;
      args.out[std::int64_t{slot} * w[0].rows + row0 + r] =
          acc.at[0][n][i] * row_scale(w[0], row0 + r) * (w2.global_scales[e] * input);
    });
  });
}

// Blocks along the tokens of one expert: enough when a few experts take all of a long prompt.
int token_blocks(const ExpertsArgs& work) {
  return std::min(16, std::max(1, work.slots / work.k / 256));
}

}  // namespace

void linear(const Matrix& w, const LinearArgs& args, cudaStream_t stream) {
  if (args.tokens == 0) return;
  const dim3 grid(ceil_div(w.rows / args.groups, kRows), ceil_div(args.tokens, kTokens),
                  args.groups);
  linear_kernel<<<grid, kThreads, 0, stream>>>(w, args);
  QT_CUDA(cudaGetLastError());
}

void experts_l1(const ExpertMatrix& w1, const ExpertMatrix& w3, const ExpertsArgs& work,
                const ExpertsL1Args& args, cudaStream_t stream) {
  const dim3 grid(ceil_div(w1.matrix.rows, kRows), work.num_experts, token_blocks(work));
  if (args.split)
    experts_l1_kernel<2><<<grid, kThreads, 0, stream>>>(w1, w3, work, args);
  else
    experts_l1_kernel<1><<<grid, kThreads, 0, stream>>>(w1, w3, work, args);
  QT_CUDA(cudaGetLastError());
}

void experts_l2(const ExpertMatrix& w2, const ExpertsArgs& work, const ExpertsL2Args& args,
                cudaStream_t stream) {
  const dim3 grid(ceil_div(w2.matrix.rows, kRows), work.num_experts, token_blocks(work));
  if (args.split)
    experts_l2_kernel<2><<<grid, kThreads, 0, stream>>>(w2, work, args);
  else
    experts_l2_kernel<1><<<grid, kThreads, 0, stream>>>(w2, work, args);
  QT_CUDA(cudaGetLastError());
}

}  // namespace quatrain::cuda

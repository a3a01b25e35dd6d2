// SPDX-License-Identifier: Apache-2.0
// attend: one softmax over window and entries, online, with the sink as its first term.
//
// A block serves eight heads of one row, a warp each: all heads share the keys (which are also the
// values), staged in tiles of FP32 in shared memory. Keys are not split over blocks, so a long
// context with few rows leaves most of the device idle.
#include <cmath>

#include "backends/cuda/cuda_check.h"
#include "backends/cuda/device/cache_rows.cuh"
#include "backends/cuda/device/reduce.cuh"
#include "backends/cuda/device/row_math.cuh"
#include "backends/cuda/device/sequence_view.cuh"
#include "backends/cuda/launch/attention.h"
#include "core/codec.h"

namespace quatrain::cuda {
namespace {

constexpr int kHeads = 8;  // of a block, one per warp
constexpr int kThreads = kHeads * kWarp;
constexpr int kTileKeys = 16;
constexpr int kGroupKeys = 4;  // keys that update the softmax together
constexpr int kQuadColumns = 4 * kWarp;

// The keys of one row: the window's positions first, then the entries.
struct RowKeys {
  int window_begin;  // first position
  int window_count;
  int count;
  const int* selected;  // entries by rank; null: entry = rank
};

// Counts the keys; every thread of the block gets the result. Ends with no barrier pending.
__device__ RowKeys find_keys(const AttendArgs& args, int r) {
  const int position = args.batch.positions[r];
  RowKeys keys;
  keys.window_begin = max(0, position + 1 - args.window);
  keys.window_count = position + 1 - keys.window_begin;
  keys.count = keys.window_count;
  keys.selected = nullptr;
  if (args.entries.rows.data == nullptr) return keys;
  if (args.selected == nullptr) {
    keys.count += (position + 1) / args.entries.ratio;
    return keys;
  }
  keys.selected = args.selected + std::int64_t{r} * args.topk;
  // The chosen entries come before the −1s, so that counting them is enough.
  for (int begin = 0; begin < args.topk; begin += kThreads) {
    const int i = begin + static_cast<int>(threadIdx.x);
    keys.count += __syncthreads_count(i < args.topk && keys.selected[i] >= 0);
  }
  return keys;
}

// Columns [column, column + 8) of key k, which exists.
__device__ void load_key(const AttendArgs& args, const RowKeys& keys, const RecentRows& recent,
                         const PagedRows& paged, int k, int column, float (&out)[8]) {
  if (k >= keys.window_count) {
    const int rank = k - keys.window_count;
    const int entry = keys.selected != nullptr ? keys.selected[rank] : rank;
    load8(args.entries.rows, paged.row(entry), column, out);
    return;
  }
  const int position = keys.window_begin + k;
  if (!recent.in_step(position)) {
    load8(args.ring, recent.ring_row(position), column, out);
    return;
  }
  const float* latent = args.latents + recent.step_row(position) * args.width + column;
#pragma unroll
  for (int j = 0; j < 8; ++j) out[j] = as_stored(args.ring, column + j, latent[j]);
}

// Keys first … first + 15 to shared memory, rows of `columns`; zeros where there is no key, so that
// a weight of zero makes nothing of them.
__device__ void load_tile(const AttendArgs& args, const RowKeys& keys, const RecentRows& recent,
                          const PagedRows& paged, int first, float* tile, int columns) {
  const int chunks = args.width / 8;
  for (int i = static_cast<int>(threadIdx.x); i < kTileKeys * chunks; i += kThreads) {
    const int key = i / chunks;
    const int column = i % chunks * 8;
    float values[8] = {};
    if (first + key < keys.count) load_key(args, keys, recent, paged, first + key, column, values);
    auto* to = reinterpret_cast<float4*>(tile + key * columns + column);
    to[0] = {values[0], values[1], values[2], values[3]};
    to[1] = {values[4], values[5], values[6], values[7]};
  }
}

// The running softmax of one head, in one warp: lane l holds the columns 4l + 128j + {0, 1, 2, 3}.
template <int kQuads>
struct Head {
  float4 q[kQuads];
  float4 sum[kQuads];
  float largest;
  float total;

  // The sink has a weight but no value.
  __device__ Head(const float* query, int width, float sink) : largest(sink), total(1) {
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      const int column = 4 * lane_id() + j * kQuadColumns;
      sum[j] = {0, 0, 0, 0};
      q[j] = {0, 0, 0, 0};
      if (column < width) q[j] = *reinterpret_cast<const float4*>(query + column);
    }
  }

  __device__ float dot(const float* key, int width) const {
    float4 parts = {0, 0, 0, 0};
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      const int column = 4 * lane_id() + j * kQuadColumns;
      if (column >= width) continue;
      const float4 k = *reinterpret_cast<const float4*>(key + column);
      parts.x = fmaf(q[j].x, k.x, parts.x);
      parts.y = fmaf(q[j].y, k.y, parts.y);
      parts.z = fmaf(q[j].z, k.z, parts.z);
      parts.w = fmaf(q[j].w, k.w, parts.w);
    }
    return warp_sum((parts.x + parts.y) + (parts.z + parts.w));
  }

  __device__ void rescale(float factor) {
    total *= factor;
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      sum[j].x *= factor;
      sum[j].y *= factor;
      sum[j].z *= factor;
      sum[j].w *= factor;
    }
  }

  __device__ void add_value(float weight, const float* key, int width) {
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      const int column = 4 * lane_id() + j * kQuadColumns;
      if (column >= width) continue;
      const float4 k = *reinterpret_cast<const float4*>(key + column);
      sum[j].x = fmaf(weight, k.x, sum[j].x);
      sum[j].y = fmaf(weight, k.y, sum[j].y);
      sum[j].z = fmaf(weight, k.z, sum[j].z);
      sum[j].w = fmaf(weight, k.w, sum[j].w);
    }
  }

  // Adds the first `present` of kGroupKeys keys, rows of `columns`.
  __device__ void add(const float* keys, int columns, int width, int present, float scale) {
    float scores[kGroupKeys];
    float best = largest;
#pragma unroll
    for (int i = 0; i < kGroupKeys; ++i) {
      const float score = dot(keys + i * columns, width) * scale;
      scores[i] = i < present ? score : -INFINITY;
      best = fmaxf(best, scores[i]);
    }
    if (best > largest) {  // the same in all lanes
      rescale(expf(largest - best));
      largest = best;
    }
#pragma unroll
    for (int i = 0; i < kGroupKeys; ++i) {
      const float weight = expf(scores[i] - largest);
      total += weight;
      add_value(weight, keys + i * columns, width);
    }
  }

  __device__ void store(const AttendArgs& args, int position, float* out) const {
    const int rotated = args.width - 2 * args.pairs;  // first rotated column
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      const int column = 4 * lane_id() + j * kQuadColumns;
      if (column >= args.width) continue;
      float x[4] = {sum[j].x / total, sum[j].y / total, sum[j].z / total, sum[j].w / total};
#pragma unroll
      for (int i = 0; i < 4; i += 2)
        if (column + i >= rotated)
          rotate_pair(x + i, rotation(position, args.inv_freq[(column + i - rotated) / 2], true));
      *reinterpret_cast<float4*>(out + column) = {x[0], x[1], x[2], x[3]};
    }
  }
};

// kQuads covers the width: ⌈width / 128⌉ float4 per lane.
template <int kQuads>
__global__ void __launch_bounds__(kThreads) attend_kernel(AttendArgs args, float scale) {
  constexpr int kColumns = kQuads * kQuadColumns;
  __shared__ alignas(16) float tile[kTileKeys * kColumns];
  const int blocks_per_row = (args.heads + kHeads - 1) / kHeads;
  const int r = static_cast<int>(blockIdx.x) / blocks_per_row;
  const int h = static_cast<int>(blockIdx.x) % blocks_per_row * kHeads + warp_id();
  const bool is_head = h < args.heads;  // surplus warps only help to load
  const std::int64_t at = (std::int64_t{r} * args.heads + h) * args.width;
  const int slot = args.batch.slots[r];
  if (slot < 0) {
    for (int d = lane_id(); is_head && d < args.width; d += kWarp) args.out[at + d] = 0;
    return;
  }
  const RowKeys keys = find_keys(args, r);
  const RecentRows recent(args.batch, r, args.window);
  const PagedRows paged(args.batch, args.entries, slot);
  Head<kQuads> head(args.q + (is_head ? at : 0), args.width, is_head ? args.sinks[h] : 0.0f);
  for (int first = 0; first < keys.count; first += kTileKeys) {
    __syncthreads();  // the previous tile has been used
    load_tile(args, keys, recent, paged, first, tile, kColumns);
    __syncthreads();
    const int present = is_head ? min(kTileKeys, keys.count - first) : 0;
    for (int k = 0; k < present; k += kGroupKeys)
      head.add(tile + k * kColumns, kColumns, args.width, present - k, scale);
  }
  if (is_head) head.store(args, args.batch.positions[r], args.out + at);
}

}  // namespace

void attend(const AttendArgs& args, cudaStream_t stream) {
  if (args.batch.rows == 0) return;
  const auto blocks = static_cast<unsigned>(args.batch.rows) *
                      static_cast<unsigned>((args.heads + kHeads - 1) / kHeads);
  const float scale = 1.0f / std::sqrt(static_cast<float>(args.width));
  switch ((args.width + kQuadColumns - 1) / kQuadColumns) {
    case 1:
      attend_kernel<1><<<blocks, kThreads, 0, stream>>>(args, scale);
      break;
    case 2:
      attend_kernel<2><<<blocks, kThreads, 0, stream>>>(args, scale);
      break;
    case 3:
      attend_kernel<3><<<blocks, kThreads, 0, stream>>>(args, scale);
      break;
    default:
      attend_kernel<4><<<blocks, kThreads, 0, stream>>>(args, scale);
      break;
  }
  QT_CUDA(cudaGetLastError());
}

}  // namespace quatrain::cuda

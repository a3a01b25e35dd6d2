// SPDX-License-Identifier: Apache-2.0
// Launches that write what outlives a step: window rings, compressed entries, compressor states.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backends/cuda/launch/batch.h"
#include "backends/cuda/launch/elementwise.h"

namespace quatrain::cuda {

/// ring[slot, t mod capacity] = step[t], in the ring's format, for the last `capacity` rows of each
/// sequence.
struct StoreRecentArgs {
  BatchView batch;
  const float* step = nullptr;  // [rows, width]
  CacheRows ring;               // [slots, capacity, width]
  int capacity = 0;
};
void store_recent(const StoreRecentArgs& args, cudaStream_t stream);

struct CompressArgs {
  BatchView batch;
  const float* values = nullptr;       // [rows, channels]
  const float* scores = nullptr;       // [rows, channels], without the bias
  const float* bias = nullptr;         // [ratio, channels]
  const float* norm_weight = nullptr;  // [width]
  const float* inv_freq = nullptr;     // [pairs]
  int channels = 0;                    // width, or 2 · width for overlapping windows
  int width = 0;
  int pairs = 0;
  float eps = 0;
  Grid grid = Grid::kNone;
  int capacity = 0;               // rows of the state per slot
  float* state_values = nullptr;  // [slots, capacity, channels]
  float* state_scores = nullptr;  // [slots, capacity, channels]
  PoolView entries;               // [.., width]
};
/// Pools the windows that close in this step into entries and keeps the rows of open ones.
void compress(const CompressArgs& args, cudaStream_t stream);
/// The part of compress() that follows the pooling: rows of longer chunks are kept.
void keep_chunks(const CompressArgs& args, cudaStream_t stream);

}  // namespace quatrain::cuda

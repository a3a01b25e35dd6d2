// SPDX-License-Identifier: Apache-2.0
// Several products of one input by few tokens: what linears() hands to the kernel that streams
// weights. Products of one kind are a part; parts of all kinds are one launch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "backends/cuda/launch/linear.h"

namespace quatrain::cuda {

inline constexpr int kLinearKinds = 4;

struct StreamProduct {
  Matrix w;
  float* out = nullptr;
  int first_strip = 0;  // in its part; strips of one group
  int group_rows = 0;
};

struct StreamPart {
  LinearKind kind = LinearKind::kBf16;
  int first_product = 0;
  int count = 0;
  int strips = 0;         // of a group, all products together
  int first_cluster = 0;  // set by stream_linears(), and
  int clusters = 0;       // how many share a group's strips
};

struct LinearStream {
  const float* x = nullptr;
  const float* up = nullptr;
  float limit = 0;
  int tokens = 0;
  int groups = 1;
  int cols = 0;
  int slices = 0;            // of the columns
  int slices_per_block = 1;  // set by stream_linears(), and
  int rows_per_block = 0;    // of a round, whose sums a block collects
  int parts = 0;
  StreamPart part[kLinearKinds] = {};
  StreamProduct products[kMaxProducts] = {};
};

/// Whether stream_linears() takes rows of this many columns.
bool stream_takes(int cols);
/// Reads the weights once per 16 tokens.
void stream_linears(const LinearStream& args, cudaStream_t stream);

}  // namespace quatrain::cuda

// SPDX-License-Identifier: Apache-2.0
// Several products of one input by few tokens: what linears() hands to the kernel that streams
// weights. Products of one kind are a part; parts of all kinds are one launch.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "backends/cuda/launch/divisor.h"
#include "backends/cuda/launch/linear.h"

namespace quatrain::cuda {

inline constexpr int kLinearKinds = 5;

/// A weight whose rows a launch shares out in strips or units of strips.
struct MappedProduct {
  CUtensorMap values{};  // of w, in boxes of a strip by 128 bytes; set for the launch
  Matrix w;
  float* out = nullptr;
  int first = 0;  // strip or unit, in its part; of one group
  int group_rows = 0;
};

struct StreamPart {
  LinearKind kind = LinearKind::kBf16;
  int first_product = 0;
  int count = 0;
  int strips = 0;         // of a group, all products together
  int first_cluster = 0;  // set by share_out(), and
  Divisor clusters{};     // how many share a group's strips
};

struct LinearStream : LinearInputs {
  bool is_large = false;     // much to read, of one kind and many slices
  bool is_small = false;     // little to read
  int slices_per_block = 1;  // set by stream_linears(), and
  Divisor held_slices{};     // whose inputs a block holds at once
  int round_strips = 1;      // that a cluster multiplies before their sums meet
  Divisor cluster_blocks{};  // and the blocks whose sums meet
  int parts = 0;
  StreamPart part[kLinearKinds] = {};
  MappedProduct products[kMaxProducts] = {};
};

/// Shares `clusters` out over the parts by their bytes, at least one for each group.
void share_out(LinearStream& args, int clusters);

/// Whether stream_linears() takes rows of this many columns.
bool stream_takes(int cols);
/// Reads the weights once per 8 tokens, or 16 of FP8 with rounded inputs where there is much to
/// read.
void stream_linears(const LinearStream& args, cudaStream_t stream);

}  // namespace quatrain::cuda

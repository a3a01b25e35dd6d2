// SPDX-License-Identifier: Apache-2.0
// embed, swiglu, gather_rows, add_to_streams: one thread per element, nothing shared.
#include <algorithm>

#include "backends/cuda/device/dependent.cuh"
#include "backends/cuda/device/scalar.cuh"
#include "backends/cuda/launch/elementwise.h"
#include "backends/cuda/launch/launch.h"
#include "core/codec.h"

namespace quatrain::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMaxBlocks = 4096;  // beyond that, threads take several elements

unsigned blocks_for(std::int64_t elements) {
  return static_cast<unsigned>(std::min(kMaxBlocks, (elements + kThreads - 1) / kThreads));
}

__device__ std::int64_t first_element() {
  return std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
}
__device__ std::int64_t element_step() { return std::int64_t{gridDim.x} * kThreads; }

__global__ void embed_kernel(EmbedArgs args) {
  let_next_start();
  wait_for_previous();
  const std::int64_t count = std::int64_t{args.rows} * args.width;
  for (std::int64_t i = first_element(); i < count; i += element_step()) {
    const std::int64_t t = i / args.width;
    const std::int64_t d = i % args.width;
    const std::int64_t from = std::int64_t{args.ids[t]} * args.width + d;
    const float value = args.table_is_bf16
                            ? bf16_decode(static_cast<const std::uint16_t*>(args.table)[from])
                            : static_cast<const float*>(args.table)[from];
    for (int s = 0; s < args.copies; ++s)
      args.streams[(t * args.copies + s) * args.width + d] = value;
  }
}

__global__ void swiglu_kernel(SwiGluArgs args) {
  let_next_start();
  wait_for_previous();
  for (std::int64_t i = first_element(); i < args.count; i += element_step())
    args.out[i] = swiglu_value(args.gate[i], args.up[i], args.limit);
}

__global__ void gather_rows_kernel(GatherRowsArgs args) {
  let_next_start();
  wait_for_previous();
  const std::int64_t count = args.count * args.words;
  for (std::int64_t i = first_element(); i < count; i += element_step())
    args.out[i] = args.x[args.rows[i / args.words] * args.words + i % args.words];
}

__global__ void add_to_streams_kernel(AddToStreamsArgs args) {
  let_next_start();
  wait_for_previous();
  const std::int64_t count = std::int64_t{args.rows} * args.width;
  for (std::int64_t i = first_element(); i < count; i += element_step()) {
    const std::int64_t t = i / args.width;
    const std::int64_t d = i % args.width;
    for (int s = 0; s < args.copies; ++s)
      args.streams[(t * args.copies + s) * args.width + d] += args.e[i];
  }
}

}  // namespace

void embed(const EmbedArgs& args, cudaStream_t stream) {
  const std::int64_t count = std::int64_t{args.rows} * args.width;
  if (count == 0) return;
  launch(embed_kernel, {.grid = blocks_for(count), .block = kThreads}, stream, args);
}

void swiglu(const SwiGluArgs& args, cudaStream_t stream) {
  if (args.count == 0) return;
  launch(swiglu_kernel, {.grid = blocks_for(args.count), .block = kThreads}, stream, args);
}

void gather_rows(const GatherRowsArgs& args, cudaStream_t stream) {
  const std::int64_t count = args.count * args.words;
  if (count == 0) return;
  launch(gather_rows_kernel, {.grid = blocks_for(count), .block = kThreads}, stream, args);
}

void add_to_streams(const AddToStreamsArgs& args, cudaStream_t stream) {
  const std::int64_t count = std::int64_t{args.rows} * args.width;
  if (count == 0) return;
  launch(add_to_streams_kernel, {.grid = blocks_for(count), .block = kThreads}, stream, args);
}

}  // namespace quatrain::cuda

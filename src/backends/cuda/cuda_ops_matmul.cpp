// SPDX-License-Identifier: Apache-2.0
// linear, grouped_linear, experts: from tensors to launches.
#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/launch/matmul.h"
#include "backends/cuda/launch/quantise.h"

namespace quatrain {
namespace {

cuda::ExpertMatrix expert_matrix(const CudaExperts::Projection& p) {
  return {.matrix = p.matrix, .global_scales = static_cast<const float*>(p.global_scales.data())};
}

template <class T>
T* as(const Buffer& buffer) {
  return static_cast<T*>(buffer.data());
}

}  // namespace

void CudaOps::linear(const op::Linear& args) {
  QT_CHECK(args.x.contiguous() && args.out.contiguous(), "linear: x and out must be contiguous");
  cuda::linear(
      static_cast<const CudaLinear*>(args.w)->matrix,
      {.x = args.x.f32(), .out = args.out.f32(), .tokens = static_cast<int>(args.x.dim(0))},
      stream_);
}

void CudaOps::grouped_linear(const op::GroupedLinear& args) {
  QT_CHECK(args.x.contiguous() && args.out.contiguous(),
           "grouped_linear: x and out must be contiguous");
  cuda::linear(static_cast<const CudaLinear*>(args.w)->matrix,
               {.x = args.x.f32(),
                .out = args.out.f32(),
                .tokens = static_cast<int>(args.x.dim(0)),
                .groups = static_cast<int>(args.x.dim(1))},
               stream_);
}

void CudaOps::experts(const op::Experts& args) {
  const auto& all = static_cast<const CudaExperts&>(*args.w);
  const auto tokens = static_cast<int>(args.x.dim(0));
  const auto k = static_cast<int>(args.ids.dim(1));
  const auto hidden = static_cast<int>(all.hidden);
  const auto inner = static_cast<int>(all.intermediate);
  const int slots = tokens * k;
  if (tokens == 0) return;
  const bool per_row = args.activations == ExpertActivations::kNvfp4;
  const bool weight_first = args.activations == ExpertActivations::kStatic;
  const bool split = args.activations == ExpertActivations::kFull;

  const cuda::SortArgs sort{.ids = args.ids.i32(),
                            .batch_slots = args.batch.slots.i32(),
                            .tokens = tokens,
                            .k = k,
                            .num_experts = static_cast<int>(all.count),
                            .offsets = as<int>(experts_.offsets),
                            .sorted = as<int>(experts_.sorted)};
  cuda::sort_by_expert(sort, stream_);

  // Inputs: as they are, rounded once per token, or once per slot with the expert's own scale.
  // Rounded ones stay in units of their global scale, which is exact in BF16; products multiply it
  // back in.
  const float* inputs = args.x.f32();
  float* scales = nullptr;
  if (per_row || weight_first) {
    cuda::RoundRowsArgs round{.x = inputs,
                              .batch_slots = sort.batch_slots,
                              .rows_per_token = per_row ? 1 : k,
                              .rows = per_row ? tokens : slots,
                              .cols = hidden,
                              .out = as<float>(experts_.inputs),
                              .units = true};
    scales = as<float>(experts_.row_scales);
    if (weight_first) {
      cuda::map_slots(sort, as<float>(all.w1.input_scales), as<int>(experts_.row_map), scales,
                      stream_);
      round.row_map = as<int>(experts_.row_map);
      round.global_scales = scales;
    } else {
      round.row_scales = scales;
    }
    cuda::nvfp4_round_rows(round, stream_);
    inputs = round.out;
  }

  const cuda::ExpertsArgs work{.offsets = sort.offsets,
                               .sorted = sort.sorted,
                               .num_experts = sort.num_experts,
                               .k = k,
                               .slots = slots};
  float* h = as<float>(experts_.hidden);
  cuda::experts_l1(expert_matrix(all.w1), expert_matrix(all.w3), work,
                   {.x = inputs,
                    .by_slot = weight_first,
                    .split = split,
                    .row_scales = scales,
                    .weights = weight_first ? args.weights.f32() : nullptr,
                    .limit = args.limit,
                    .hidden = h},
                   stream_);
  if (scales != nullptr) {
    cuda::RoundRowsArgs round{.x = h,
                              .batch_slots = sort.batch_slots,
                              .rows_per_token = k,
                              .rows = slots,
                              .cols = inner,
                              .out = h,
                              .units = true};
    if (weight_first) {
      cuda::map_slots(sort, as<float>(all.w2.input_scales), as<int>(experts_.row_map), scales,
                      stream_);
      round.global_scales = scales;
    } else {
      round.row_scales = scales;
    }
    cuda::nvfp4_round_rows(round, stream_);
  }
  cuda::experts_l2(
      expert_matrix(all.w2), work,
      {.hidden = h, .split = split, .row_scales = scales, .out = as<float>(experts_.outputs)},
      stream_);
  cuda::combine_experts({.outputs = as<float>(experts_.outputs),
                         .weights = weight_first ? nullptr : args.weights.f32(),
                         .batch_slots = args.batch.slots.i32(),
                         .tokens = tokens,
                         .k = k,
                         .hidden = hidden,
                         .out = args.out.f32()},
                        stream_);
}

}  // namespace quatrain

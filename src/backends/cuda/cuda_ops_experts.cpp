// SPDX-License-Identifier: Apache-2.0
// experts: packing of the routed experts of a layer, and from tensors to launches. NVFP4 experts
// continue in cuda_ops_nvfp4_experts.cpp.
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

std::unique_ptr<PackedExperts> CudaOps::make_experts(std::string name, std::int64_t count,
                                                     std::int64_t hidden,
                                                     std::int64_t intermediate) {
  auto experts = std::make_unique<CudaExperts>();
  experts->name = std::move(name);
  experts->count = count;
  experts->hidden = hidden;
  experts->intermediate = intermediate;
  return experts;
}

void CudaOps::pack_projection(CudaExperts& experts, CudaExperts::Projection& p, std::int64_t e,
                              const QuantMatrix& w) {
  const bool packed = w.format == WeightFormat::kNvfp4;
  const std::int64_t value_bytes = w.rows * w.row_bytes();
  const std::int64_t scale_bytes = w.scale_count() * bytes_of(w.scale_dtype);
  if (!p.is_set) {
    p.is_set = true;
    p.global_scales = allocate(experts.count * 4);
    p.input_scales = allocate(experts.count * 4);
    if (!packed) {
      p.values = allocate(experts.count * value_bytes);
      p.scales = allocate(experts.count * scale_bytes);
    }
    p.matrix = {.format = w.format,
                .dtype = w.dtype,
                .scale_dtype = w.scale_dtype,
                .values = p.values.data(),
                .scales = p.scales.data(),
                .rows = static_cast<int>(w.rows),
                .cols = static_cast<int>(w.cols)};
  }
  if (p.matrix.format != w.format || p.matrix.dtype != w.dtype ||
      p.matrix.scale_dtype != w.scale_dtype)
    fail("{}: the experts of a layer must share one format; expert 0 is {}, this one {}", w.name,
         name_of(p.matrix.format), name_of(w.format));
  if (!packed) {
    upload_bytes(static_cast<char*>(p.values.data()) + e * value_bytes, w.values, value_bytes);
    upload_bytes(static_cast<char*>(p.scales.data()) + e * scale_bytes, w.scales, scale_bytes);
  }
  upload_bytes(static_cast<float*>(p.global_scales.data()) + e, &w.global_scale, 4);
  upload_bytes(static_cast<float*>(p.input_scales.data()) + e, &w.input_scale, 4);
  experts.bytes += w.bytes();
  experts.has_input_scales = experts.has_input_scales && w.input_scale > 0;
}

void CudaOps::pack_expert(PackedExperts& experts, std::int64_t e, const QuantMatrix& w1,
                          const QuantMatrix& w3, const QuantMatrix& w2) {
  auto& all = static_cast<CudaExperts&>(experts);
  pack_projection(all, all.w1, e, w1);
  pack_projection(all, all.w3, e, w3);
  pack_projection(all, all.w2, e, w2);
  const auto is_nvfp4 = [](const QuantMatrix& w) { return w.format == WeightFormat::kNvfp4; };
  if (all.fp8_inputs && !is_nvfp4(w1))
    fail(
        "{}: the GPU takes FP8 expert inputs for NVFP4 weights only, found {}; convert the "
        "checkpoint (quatrain quantize), which is exact",
        w1.name, name_of(w1.format));
  if (!is_nvfp4(w1) && !is_nvfp4(w3) && !is_nvfp4(w2)) return;
  for (const QuantMatrix* w : {&w3, &w2})
    if (w->format != w1.format)
      fail("{}: the projections of an expert must share one format; w1 is {}, this one {}", w->name,
           name_of(w1.format), name_of(w->format));
  pack_nvfp4(all, e, w1, cuda::PackedRows::kGate);
  pack_nvfp4(all, e, w3, cuda::PackedRows::kUp);
  pack_nvfp4(all, e, w2, cuda::PackedRows::kPlain);
}

void CudaOps::experts(const op::Experts& args) {
  if (args.activations == ExpertActivations::kInt8)
    fail("{}: int8 expert activations are for the CPU backend; use bf16", args.w->name);
  if (args.activations == ExpertActivations::kFp8 && !args.w->fp8_inputs)
    fail("{}: FP8 inputs for experts that were packed for others", args.w->name);
  if (args.x.dim(0) == 0) return;
  const auto& all = static_cast<const CudaExperts&>(*args.w);
  if (all.packed())
    packed_experts(args, all);
  else
    plain_experts(args, all);
}

void CudaOps::plain_experts(const op::Experts& args, const CudaExperts& all) {
  const auto tokens = static_cast<int>(args.x.dim(0));
  const auto k = static_cast<int>(args.ids.dim(1));
  const auto hidden = static_cast<int>(all.hidden);
  const auto inner = static_cast<int>(all.intermediate);
  const int slots = tokens * k;
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
                              .out = as<float>(experts_.outputs),
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

// SPDX-License-Identifier: Apache-2.0
// Routed experts in NVFP4: the packed layout's memory, and from tensors to launches.
#include <algorithm>

#include "backends/cuda/cuda_check.h"
#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/launch/matmul.h"
#include "backends/cuda/launch/quantise.h"
#include "backends/cuda/tensor_args.h"
#include "core/fp8_window.h"

namespace quatrain {
namespace {

template <class T>
T* as(const Buffer& buffer) {
  return static_cast<T*>(buffer.data());
}

cuda::ChipLimits limits_of(const cudaDeviceProp& properties) {
  return {.multiprocessors = properties.multiProcessorCount,
          .shared_bytes = static_cast<int>(properties.sharedMemPerBlockOptin)};
}

bool rounds_inputs(ExpertActivations mode) {
  return mode == ExpertActivations::kNvfp4 || mode == ExpertActivations::kStatic ||
         mode == ExpertActivations::kFp8;
}

int parts_of(ExpertActivations mode) { return mode == ExpertActivations::kFull ? 2 : 1; }

cuda::RoutedTokens routed_tokens(const op::Experts& args) {
  return {.ids = i32(args.ids),
          .batch_slots = i32(args.batch.slots),
          .weights = f32(args.weights),
          .tokens = extent(args.x, 0),
          .k = extent(args.ids, 1),
          .parts = parts_of(args.activations),
          .weight_first = args.activations == ExpertActivations::kStatic,
          .limit = args.limit};
}

}  // namespace

cuda::PackedExpertsView CudaExperts::view() const {
  return {.experts = as_int(count),
          .hidden = as_int(hidden),
          .inner = as_int(intermediate),
          .first = as<std::uint8_t>(first),
          .second = as<std::uint8_t>(second),
          .gate_scales = as<float>(w1.global_scales),
          .up_scales = as<float>(w3.global_scales),
          .down_scales = as<float>(w2.global_scales),
          .fp8 = fp8_inputs};
}

void CudaOps::pack_nvfp4(CudaExperts& experts, std::int64_t e, const QuantMatrix& w,
                         cuda::PackedRows rows) {
  const bool is_down = rows == cuda::PackedRows::kPlain;
  const int hidden = as_int(experts.hidden), inner = as_int(experts.intermediate);
  const int expected_rows = is_down ? hidden : inner, expected_cols = is_down ? inner : hidden;
  if (w.rows != expected_rows || w.cols != expected_cols)
    fail("{}: expected {} x {}, found {} x {}", w.name, expected_rows, expected_cols, w.rows,
         w.cols);
  const cuda::PackedShape shape =
      is_down ? cuda::second_projection(hidden, inner) : cuda::first_projection(hidden, inner);
  Buffer& buffer = is_down ? experts.second : experts.first;
  if (buffer.data() == nullptr) buffer = allocate_zeros(experts.count * shape.bytes());
  cuda::PackArgs args{.rows = expected_rows,
                      .cols = expected_cols,
                      .kind = rows,
                      .shape = shape,
                      .out = as<std::uint8_t>(buffer) + e * shape.bytes()};
  if (experts.fp8_inputs) args.tops = upload_tops(w);
  args.scales = static_cast<const std::uint8_t*>(stage(w.scales, w.scale_count()));
  cuda::pack_scales(args, stream_);
  args.codes = static_cast<const std::uint8_t*>(stage(w.values, w.rows * w.row_bytes()));
  cuda::pack_codes(args, stream_);
}

// A device copy of fp8_row_tops(), valid for work issued before the next call.
const std::int8_t* CudaOps::upload_tops(const QuantMatrix& w) {
  const std::vector<int> tops = fp8_row_tops(w);
  const std::vector<std::int8_t> bytes(tops.begin(), tops.end());
  const auto size = static_cast<std::int64_t>(bytes.size());
  if (load_tops_.bytes() < size) {
    synchronize();
    load_tops_ = Buffer();
    load_tops_ = allocate(size);
  }
  upload_bytes(load_tops_.data(), bytes.data(), size);
  return as<std::int8_t>(load_tops_);
}

void CudaOps::reserve_experts() {
  const std::int64_t slots = limits_.rows * limits_.experts_per_token;
  experts_ = {};
  experts_.offsets = allocate((limits_.num_experts + 1) * 4);
  experts_.sorted = allocate(slots * 4);
  experts_.row_map = allocate(slots * 4);
  experts_.row_scales = allocate(slots * 4);
  // Those of padding are read with the others, though not used: no read is of memory never written.
  experts_.hidden = allocate_zeros(slots * limits_.intermediate_size * 4);
  experts_.outputs = allocate_zeros(slots * limits_.hidden_size * 4);

  const auto padded = [](std::int64_t n) { return cuda::padded_to(as_int(n), cuda::kChunkCols); };
  experts_.inputs16 = allocate(std::max(2 * limits_.rows, slots) * padded(limits_.hidden_size) * 2);
  experts_.hidden16 = allocate(slots * 2 * padded(limits_.intermediate_size) * 2);
  const std::int64_t most = cuda::decode_max_tokens(as_int(limits_.experts_per_token));
  experts_.sync = allocate_zeros(
      std::int64_t{cuda::decode_sync_words(as_int(most * limits_.experts_per_token))} * 4);
  experts_.tiles = allocate(cuda::most_pass_tiles(as_int(slots), as_int(limits_.num_experts)) *
                            static_cast<std::int64_t>(sizeof(cuda::PassTile)));
  experts_.tile_count = allocate(4);
}

// Rows on the FP8 grid, or left in units of their global scale: both are exact in BF16, and
// products multiply the global scale back in. Row r belongs to slot r, or to token r where there is
// a row per token.
void CudaOps::round_expert_rows(const op::Experts& args, const CudaExperts::Projection& projection,
                                const float* x, int rows, int cols, float* out) {
  if (args.activations == ExpertActivations::kFp8) {
    cuda::fp8_quantise_rows({.x = x, .rows = rows, .cols = cols, .out = out}, stream_);
    return;
  }
  const int tokens = extent(args.x, 0), k = extent(args.ids, 1);
  cuda::RoundRowsArgs round{.x = x,
                            .batch_slots = i32(args.batch.slots),
                            .rows_per_token = rows / tokens,
                            .rows = rows,
                            .cols = cols,
                            .out = out,
                            .units = true};
  auto* scales = as<float>(experts_.row_scales);
  if (args.activations == ExpertActivations::kStatic) {
    const cuda::SortArgs slots{
        .ids = i32(args.ids), .batch_slots = round.batch_slots, .tokens = tokens, .k = k};
    cuda::map_slots(slots, as<float>(projection.input_scales), as<int>(experts_.row_map), scales,
                    stream_);
    if (x != out) round.row_map = as<int>(experts_.row_map);
    round.global_scales = scales;
  } else {
    round.row_scales = scales;
  }
  cuda::nvfp4_round_rows(round, stream_);
}

void CudaOps::packed_experts(const op::Experts& args, const CudaExperts& all) {
  if (all.fp8_inputs && args.activations != ExpertActivations::kFp8)
    fail("{}: experts that were packed for FP8 inputs were given others", all.name);
  if (extent(args.x, 0) <= cuda::decode_max_tokens(extent(args.ids, 1)))
    decode_experts(args, all);
  else if (all.fp8_inputs)
    prefill_fp8_experts(args, all);
  else
    prefill_experts(args, all);
}

void CudaOps::decode_experts(const op::Experts& args, const CudaExperts& all) {
  const int tokens = extent(args.x, 0), k = extent(args.ids, 1);
  const cuda::DecodeConfig config = cuda::decode_config({.tokens = tokens,
                                                         .k = k,
                                                         .experts = as_int(all.count),
                                                         .hidden = as_int(all.hidden),
                                                         .inner = as_int(all.intermediate),
                                                         .parts = parts_of(args.activations)},
                                                        limits_of(properties_));
  cuda::DecodeArgs launch{
      .w = all.view(),
      .routed = routed_tokens(args),
      .source = f32(args.x),
      .source_rows = tokens,
      .inputs = {.values = as<std::uint16_t>(experts_.inputs16), .slots_per_row = cuda::Divisor(k)},
      .middle = {.values = as<std::uint16_t>(experts_.hidden16)},
      .hidden = as<float>(experts_.hidden),
      .outputs = as<float>(experts_.outputs),
      .out = f32(args.out),
      .sync = as<std::uint32_t>(experts_.sync)};
  if (!rounds_inputs(args.activations)) {
    cuda::experts_decode(launch, config, stream_);
    return;
  }
  // What lies between the projections needs whole rows: a launch each.
  const auto hidden = static_cast<int>(all.hidden), inner = static_cast<int>(all.intermediate);
  const int slots = tokens * k;
  if (launch.routed.weight_first) launch.source_rows = slots, launch.inputs.slots_per_row = {};
  round_expert_rows(args, all.w1, launch.source, launch.source_rows, hidden, launch.outputs);
  launch.source = launch.outputs;
  launch.second = false;
  // FP8 values are exact in BF16 with their scales in.
  if (!all.fp8_inputs)
    launch.inputs.row_scales = launch.middle.row_scales = as<float>(experts_.row_scales);
  cuda::experts_decode(launch, config, stream_);
  round_expert_rows(args, all.w2, launch.hidden, slots, inner, launch.hidden);
  launch.source = launch.hidden;
  launch.source_rows = slots;
  launch.first = false;
  launch.second = true;
  cuda::experts_decode(launch, config, stream_);
}

cuda::PrefillArgs CudaOps::prefill_args(const op::Experts& args, const CudaExperts& all) const {
  return {.w = all.view(),
          .routed = routed_tokens(args),
          .sorted = as<int>(experts_.sorted),
          .tiles = as<cuda::PassTile>(experts_.tiles),
          .tile_count = as<int>(experts_.tile_count),
          .blocks = properties_.multiProcessorCount};
}

void CudaOps::list_expert_passes(const cuda::PrefillArgs& launch, int widest) {
  const cuda::SortArgs sort{.ids = launch.routed.ids,
                            .batch_slots = launch.routed.batch_slots,
                            .tokens = launch.routed.tokens,
                            .k = launch.routed.k,
                            .num_experts = launch.w.experts,
                            .offsets = as<int>(experts_.offsets),
                            .sorted = as<int>(experts_.sorted)};
  cuda::sort_by_expert(sort, stream_);
  cuda::list_pass_tiles(sort.offsets, sort.num_experts, widest, as<cuda::PassTile>(experts_.tiles),
                        as<int>(experts_.tile_count), stream_);
}

// out += the weighted sum of each token's outputs.
void CudaOps::combine_passes(const op::Experts& args, const cuda::PrefillArgs& launch) {
  cuda::combine_experts({.outputs = launch.outputs,
                         .outputs16 = launch.outputs16,
                         .weights = launch.routed.weight_first ? nullptr : launch.routed.weights,
                         .batch_slots = launch.routed.batch_slots,
                         .tokens = launch.routed.tokens,
                         .k = launch.routed.k,
                         .hidden = launch.w.hidden,
                         .out = f32(args.out)},
                        stream_);
}

void CudaOps::prefill_experts(const op::Experts& args, const CudaExperts& all) {
  const bool rounds = rounds_inputs(args.activations);
  cuda::PrefillArgs launch = prefill_args(args, all);
  launch.inputs.values = as<std::uint16_t>(experts_.inputs16);
  launch.outputs = as<float>(experts_.outputs);
  const cuda::RoutedTokens& routed = launch.routed;
  const int slots = routed.tokens * routed.k;
  list_expert_passes(launch, cuda::kWidestPass);

  const int rows = routed.weight_first ? slots : routed.tokens;
  const float* x = f32(args.x);
  if (rounds) {
    round_expert_rows(args, all.w1, x, rows, launch.w.hidden, launch.outputs);
    x = launch.outputs;
    launch.inputs.row_scales = as<float>(experts_.row_scales);
    launch.hidden = as<float>(experts_.hidden);
  } else {
    launch.hidden16 = as<std::uint16_t>(experts_.hidden16);
  }
  cuda::convert_rows(x, rows, launch.w.hidden, routed.parts, launch.inputs.values, stream_);
  launch.inputs.slots_per_row = cuda::Divisor(slots / rows);
  cuda::experts_prefill(launch, stream_);

  launch.first = false;
  launch.inputs.values = as<std::uint16_t>(experts_.hidden16);
  launch.inputs.slots_per_row = {};
  if (rounds) {
    round_expert_rows(args, all.w2, launch.hidden, slots, launch.w.inner, launch.hidden);
    cuda::convert_rows(launch.hidden, slots, launch.w.inner, routed.parts, launch.inputs.values,
                       stream_);
  }
  // Inputs of one part that are as they are: outputs are rounded like them.
  if (!rounds && routed.parts == 1) launch.outputs16 = as<std::uint16_t>(experts_.outputs);
  cuda::experts_prefill(launch, stream_);
  combine_passes(args, launch);
}

void CudaOps::prefill_fp8_experts(const op::Experts& args, const CudaExperts& all) {
  cuda::Fp8PrefillArgs launch{.common = prefill_args(args, all)};
  const cuda::RoutedTokens& routed = launch.common.routed;
  const bool wide = routed.tokens >= cuda::first_wide_tokens(routed.k, launch.common.w.experts);
  const auto multiply = wide ? cuda::experts_prefill_fp8_wide : cuda::experts_prefill_fp8;
  list_expert_passes(launch.common, wide ? cuda::kWidestWidePass : cuda::kWidestFp8Pass);
  const auto rows_in = [](const Buffer& buffer, int rows, int cols) {
    auto* codes = as<std::uint8_t>(buffer);
    const std::int64_t bytes = std::int64_t{rows} * cuda::padded_to(cols, cuda::kChunkCols);
    return cuda::Fp8Rows{codes, reinterpret_cast<float*>(codes + bytes)};
  };
  launch.inputs = rows_in(experts_.inputs16, routed.tokens, launch.common.w.hidden);
  launch.hidden = rows_in(experts_.hidden16, routed.tokens * routed.k, launch.common.w.inner);
  cuda::quantise_expert_rows(f32(args.x), routed.tokens, launch.common.w.hidden, launch.inputs,
                             stream_);
  launch.common.inputs.slots_per_row = cuda::Divisor(routed.k);
  multiply(launch, stream_);

  launch.common.first = false;
  launch.common.inputs.slots_per_row = {};
  launch.common.outputs16 = as<std::uint16_t>(experts_.outputs);
  launch.inputs = launch.hidden;
  multiply(launch, stream_);
  combine_passes(args, launch.common);
}

}  // namespace quatrain

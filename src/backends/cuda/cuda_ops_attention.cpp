// SPDX-License-Identifier: Apache-2.0
// Operations that know sequences and their caches, and the router, from tensors to launches.
#include "backends/cuda/cuda_ops.h"
#include "backends/cuda/launch/attention.h"
#include "backends/cuda/launch/attention_inputs.h"
#include "backends/cuda/launch/cache.h"
#include "backends/cuda/launch/routing.h"
#include "backends/cuda/tensor_args.h"

namespace quatrain {

void CudaOps::kv_store(const op::KvStore& args) {
  const int width = extent(args.latents, 1);
  cuda::store_recent({.batch = view_of(args.batch),
                      .step = f32(args.latents),
                      .ring = cache_rows(args.ring, CacheContent::kLatents, width),
                      .capacity = extent(args.ring, 1)},
                     stream_);
}

cuda::CompressArgs CudaOps::kernel_args(const op::Compress& args) {
  const int width = extent(args.norm_weight, 0);
  // Packed rows do not tell what they hold; the grid that their values are on does.
  const CacheContent content =
      args.grid == CacheGrid::kIndex ? CacheContent::kIndexKeys : CacheContent::kLatents;
  QT_CHECK(args.entries.rows.dtype() != DType::kU8 || args.grid != CacheGrid::kNone,
           "packed entries hold values on a grid only");
  return {.batch = view_of(args.batch),
          .values = f32(args.values),
          .scores = f32(args.scores),
          .bias = f32(args.bias),
          .norm_weight = f32(args.norm_weight),
          .inv_freq = f32(args.inv_freq),
          .channels = extent(args.values, 1),
          .width = width,
          .pairs = extent(args.inv_freq, 0),
          .eps = args.eps,
          .grid = kernel_grid(args.grid),
          .capacity = extent(args.state.values, 1),
          .state_values = f32(args.state.values),
          .state_scores = f32(args.state.scores),
          .entries = view_of(args.entries, content, width)};
}

void CudaOps::compress(const op::Compress& args) { cuda::compress(kernel_args(args), stream_); }

void CudaOps::attention_inputs(const op::AttentionInputs& args) {
  const std::int64_t rows = args.rows.positions.dim(0);
  if (rows > cuda::kMaxAttentionInputRows || !has_norm_rope(args.rows))
    return Ops::attention_inputs(args);
  cuda::AttentionInputsArgs all{
      .norm_rope = kernel_args(args.rows), .compressors = {}, .count = args.count};
  for (int i = 0; i < args.count; ++i)
    all.compressors[i] = kernel_args(args.compressors[static_cast<std::size_t>(i)]);
  cuda::attention_inputs(all, stream_);
  round_to_grids(args.rows);
}

void CudaOps::index_select(const op::IndexSelect& args) {
  const int width = extent(args.q, 2);
  QT_CHECK(width % 8 == 0 && width <= cuda::kMaxIndexWidth,
           "index keys of width {}; expected a multiple of 8 up to {}", width,
           cuda::kMaxIndexWidth);
  QT_CHECK_EQ(args.keys.ratio, 4, "tokens per index key");
  cuda::IndexSelectArgs launch{.batch = view_of(args.batch),
                               .q = f32(args.q),
                               .weights = f32(args.weights),
                               .keys = view_of(args.keys, CacheContent::kIndexKeys, width),
                               .heads = extent(args.q, 1),
                               .width = width,
                               .topk = extent(args.selected, 1),
                               .scores = static_cast<float*>(index_scores_.data()),
                               .score_rows = as_int(index_score_rows_),
                               .score_columns = as_int(limits_.context / 4 + 1),
                               .selected = i32(args.selected)};
  if (args.inv_freq && cuda::has_index_scores_f16(launch)) {
    launch.inv_freq = f32(args.inv_freq);
    launch.pairs = extent(args.inv_freq, 0);
  } else if (args.inv_freq) {
    rope({.x = args.q, .positions = args.batch.positions, .inv_freq = args.inv_freq});
  }
  cuda::index_select(launch, stream_);
}

cuda::AttendArgs CudaOps::kernel_args(const op::Attend& args) {
  const int width = extent(args.q, 2);
  QT_CHECK(width % 32 == 0 && width <= cuda::kMaxHeadDim,
           "heads of width {}; expected a multiple of 32 up to {}", width, cuda::kMaxHeadDim);
  return {.batch = view_of(args.batch),
          .q = f32(args.q),
          .latents = f32(args.latents),
          .ring = cache_rows(args.ring, CacheContent::kLatents, width),
          .entries = view_of(args.entries, CacheContent::kLatents, width),
          .selected = args.selected ? i32(args.selected) : nullptr,
          .sinks = f32(args.sinks),
          .inv_freq = args.inv_freq ? f32(args.inv_freq) : nullptr,
          .pairs = args.inv_freq ? extent(args.inv_freq, 0) : 0,
          .heads = extent(args.q, 1),
          .width = width,
          .window = extent(args.ring, 1),
          .topk = args.selected ? extent(args.selected, 1) : 0,
          .out = f32(args.out),
          .step_rows = step_latents_.data(),
          .parked = static_cast<float*>(parked_sums_.data())};
}

void CudaOps::attend(const op::Attend& args) {
  const cuda::AttendArgs launch = kernel_args(args);
  if (!cuda::has_attend_latent(launch)) return cuda::attend(launch, stream_);
  QT_CHECK(args.batch.rows() <= limits_.rows, "a step of {} rows, where {} were reserved",
           args.batch.rows(), limits_.rows);
  cuda::attend_latent(launch, stream_);
}

void CudaOps::attend_store(const op::AttendStore& args) {
  cuda::AttendArgs launch = kernel_args(args.attend);
  if (!cuda::has_attend_latent(launch)) return Ops::attend_store(args);
  QT_CHECK(args.attend.batch.rows() <= limits_.rows, "a step of {} rows, where {} were reserved",
           args.attend.batch.rows(), limits_.rows);
  if (args.queries.count > 0) {
    // The kernel turns queries by the angles that it turns the output back by.
    const op::NormRope::Rows& q = args.queries.rows[0];
    launch.norms_queries = q.norm && !q.weight && q.grid == CacheGrid::kNone && q.inv_freq &&
                           q.inv_freq.data() == args.attend.inv_freq.data();
    launch.query_eps = args.queries.eps;
    if (!launch.norms_queries) norm_rope(args.queries);
  }
  // A row alone in its sequence does not read the place in the ring that it is stored at.
  launch.stores = args.attend.batch.is_decode;
  cuda::attend_latent(launch, stream_);
  if (!launch.stores) kv_store(args.store());
}

void CudaOps::route(const op::Route& args) {
  const int experts = extent(args.logits, 1);
  const int k = extent(args.ids, 1);
  QT_CHECK(experts <= cuda::kMaxExperts && k <= cuda::kMaxExpertsPerToken,
           "routing to {} of {} experts; at most {} of {} are provided for", k, experts,
           cuda::kMaxExpertsPerToken, cuda::kMaxExperts);
  QT_CHECK(args.hash_table || args.bias, "routing needs a bias or a hash table");
  cuda::route({.logits = f32(args.logits),
               .bias = args.bias ? f32(args.bias) : nullptr,
               .hash_table = args.hash_table ? i32(args.hash_table) : nullptr,
               .token_ids = i32(args.token_ids),
               .rows = extent(args.logits, 0),
               .experts = experts,
               .k = k,
               .scale = args.scale,
               .ids = i32(args.ids),
               .weights = f32(args.weights)},
              stream_);
}

}  // namespace quatrain

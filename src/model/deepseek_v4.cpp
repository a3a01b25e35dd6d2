// SPDX-License-Identifier: Apache-2.0
#include "model/deepseek_v4.h"

namespace quatrain {

struct DeepseekV4::Step {
  Ops& ops;
  Arena& arena;
  const Batch& batch;

  std::int64_t rows() const { return batch.rows(); }
  Tensor make(std::initializer_list<std::int64_t> shape) const {
    return arena.make(ops.activation_dtype(), shape);
  }
  Tensor make_f32(std::initializer_list<std::int64_t> shape) const {
    return arena.make(DType::kF32, shape);
  }
};

// The residual streams, and the output of the last sub-layer, which the next one's site mixes into
// them.
struct DeepseekV4::Residual {
  Tensor streams;  // [T, hc, D]
  Tensor f;        // [T, D]
  Tensor post;     // F32 [T, hc]
  Tensor comb;     // F32 [T, hc, hc]
  bool has_output = false;

  op::HcPost update() const { return {.f = f, .post = post, .comb = comb, .streams = streams}; }
};

namespace {

// FP8 activations are for weights in FP8 blocks; the rest of such a model has none.
void need_fp8_linears(const ModelWeights& weights) {
  const auto need = [](const LinearPtr& w) {
    if (w->format != WeightFormat::kFp8Block)
      fail("{}: FP8 linear activations need weights in FP8 blocks, found {}", w->name,
           name_of(w->format));
  };
  const auto need_layer = [&](const LayerWeights& layer) {
    const AttentionWeights& a = layer.attn;
    for (const LinearPtr* w : {&a.wq_a, &a.wq_b, &a.wkv, &a.wo_a, &a.wo_b}) need(*w);
    if (layer.ratio == 4) need(a.indexer.wq_b);
    for (const LinearPtr* w : {&layer.ffn.shared_w1, &layer.ffn.shared_w3, &layer.ffn.shared_w2})
      need(*w);
  };
  for (const LayerWeights& layer : weights.layers) need_layer(layer);
  for (const MtpWeights& mtp : weights.mtp) {
    need(mtp.e_proj);
    need(mtp.h_proj);
    need_layer(mtp.layer);
  }
}

}  // namespace

DeepseekV4::DeepseekV4(const V4Config& config, const ModelWeights& weights, Numerics numerics)
    : config_(config), weights_(weights), numerics_(numerics) {
  const std::int64_t index_width = config.index_head_dim;
  if (numerics.sim && (index_width & (index_width - 1)) != 0)
    fail("index_head_dim: rounding index keys to the cache's grid needs a power of two, found {}",
         index_width);
  if (numerics.linear_activations == LinearActivations::kFp8) need_fp8_linears(weights);
  if (numerics.expert_activations != ExpertActivations::kNvfp4 &&
      numerics.expert_activations != ExpertActivations::kStatic)
    return;
  if (config.hidden_size % kNvfp4Block != 0 || config.moe_intermediate_size % kNvfp4Block != 0)
    fail(
        "NVFP4 expert activations need widths in multiples of {}, found hidden_size {} and "
        "moe_intermediate_size {}",
        kNvfp4Block, config.hidden_size, config.moe_intermediate_size);
  if (numerics.expert_activations != ExpertActivations::kStatic) return;
  const auto need_input_scales = [](const LayerWeights& layer) {
    if (!layer.ffn.experts->has_input_scales)
      fail(
          "{}: static expert activations need a calibrated input_scale for every projection, the "
          "same for w1 and w3; use per-row scales instead",
          layer.ffn.experts->name);
  };
  for (const LayerWeights& layer : weights.layers) need_input_scales(layer);
  for (const MtpWeights& mtp : weights.mtp) need_input_scales(mtp.layer);
}

void DeepseekV4::forward(Ops& ops, Arena& arena, const Batch& batch, const KvCache& cache,
                         Tensor streams, Tensor logit_rows, Tensor logits) const {
  const Arena::Scope scope(arena);
  const Step step{ops, arena, batch};
  ops.scope("embed", -1);
  ops.embed({.ids = batch.token_ids, .table = weights_.embed, .streams = streams});
  Residual residual = make_residual(step, streams);
  for (std::int64_t l = 0; l < config_.num_layers; ++l) {
    block(step, l, weights_.layers[static_cast<std::size_t>(l)], cache.layer(l), residual);
  }
  leave(step, residual);
  ops.scope("head", -1);
  head(step, weights_.hc_head, weights_.norm, streams, logit_rows, logits);
}

void DeepseekV4::forward_mtp(Ops& ops, Arena& arena, const Batch& next, const KvCache& cache,
                             std::int64_t m, Tensor streams, Tensor logit_rows,
                             Tensor logits) const {
  const Arena::Scope scope(arena);
  const Step step{ops, arena, next};
  const MtpWeights& w = weights_.mtp[static_cast<std::size_t>(m)];
  const std::int64_t tokens = step.rows(), hc = config_.hc_mult, width = config_.hidden_size;
  ops.scope("mtp", config_.num_layers + m);

  // Z_s = e_proj · norm(embed[next]) + h_proj · norm(X_s)
  Tensor embedded = step.make({tokens, 1, width});
  ops.embed({.ids = next.token_ids, .table = weights_.embed, .streams = embedded});
  Tensor e = norm(step, embedded.reshaped({tokens, width}), w.enorm);
  Tensor h = norm(step, streams.reshaped({tokens * hc, width}), w.hnorm);
  ops.linear({.x = h,
              .w = w.h_proj.get(),
              .out = streams.reshaped({tokens * hc, width}),
              .activations = numerics_.linear_activations});
  ops.add_to_streams({.e = linear(step, e, *w.e_proj), .streams = streams});

  Residual residual = make_residual(step, streams);
  block(step, config_.num_layers + m, w.layer, cache.mtp(m), residual);
  leave(step, residual);
  ops.scope("mtp_head", config_.num_layers + m);
  head(step, w.hc_head, w.norm, streams, logit_rows, logits);
}

DeepseekV4::Residual DeepseekV4::make_residual(const Step& step, Tensor streams) const {
  const std::int64_t tokens = step.rows(), hc = config_.hc_mult;
  return {.streams = streams,
          .f = step.make({tokens, config_.hidden_size}),
          .post = step.make_f32({tokens, hc}),
          .comb = step.make_f32({tokens, hc, hc})};
}

void DeepseekV4::enter(const Step& step, const HcWeights& weights, Tensor norm_weight,
                       Residual& residual, Tensor out) const {
  const auto norm_eps = static_cast<float>(config_.rms_norm_eps);
  const op::HcPreNorm next{.pre = {.streams = residual.streams,
                                   .weights = weights,
                                   .sinkhorn_iters = static_cast<int>(config_.hc_sinkhorn_iters),
                                   .hc_eps = static_cast<float>(config_.hc_eps),
                                   .norm_eps = norm_eps,
                                   .out = out,
                                   .post = residual.post,
                                   .comb = residual.comb},
                           .norm_weight = norm_weight,
                           .eps = norm_eps};
  if (residual.has_output)
    step.ops.hc_post_pre_norm({.post = residual.update(), .next = next});
  else
    step.ops.hc_pre_norm(next);
  residual.has_output = true;
}

void DeepseekV4::leave(const Step& step, const Residual& residual) const {
  if (residual.has_output) step.ops.hc_post(residual.update());
}

// One transformer block: two sub-layers, each behind a site of the residual streams.
void DeepseekV4::block(const Step& step, std::int64_t layer, const LayerWeights& w,
                       const LayerCache& cache, Residual& residual) const {
  const auto sub_layer = [&](const char* part, const HcWeights& site, Tensor norm_weight,
                             auto&& body) {
    const Arena::Scope scope(step.arena);
    step.ops.scope(part, layer);
    Tensor x = step.make({step.rows(), config_.hidden_size});
    enter(step, site, norm_weight, residual, x);
    body(x);
  };
  sub_layer("attn", w.hc_attn, w.attn_norm,
            [&](Tensor x) { attention(step, w, cache, x, residual.f); });
  sub_layer("ffn", w.hc_ffn, w.ffn_norm, [&](Tensor x) { moe(step, w.ffn, x, residual.f); });
}

void DeepseekV4::attention(const Step& step, const LayerWeights& w, const LayerCache& cache,
                           Tensor x, Tensor out) const {
  const AttentionWeights& a = w.attn;
  const Batch& batch = step.batch;
  const std::int64_t tokens = step.rows(), heads = config_.num_heads, n = config_.head_dim;
  const std::int64_t groups = config_.o_groups;
  const auto eps = static_cast<float>(config_.rms_norm_eps);
  const Tensor inv_freq = frequencies(w.ratio);

  // All projections of x at once: queries' low rank, the latent, compressors, the indexer's
  // weights.
  Tensor qr = step.make({tokens, a.wq_a->rows}), kv = step.make({tokens, n});
  CompressorInputs entry, key;
  Tensor head_weights;
  op::Linears of_x{.x = x, .activations = numerics_.linear_activations};
  of_x.add(*a.wq_a, qr);
  of_x.add(*a.wkv, kv);
  if (w.ratio > 0) entry = add_compressor(step, a.compressor, of_x);
  if (w.ratio == 4) {
    key = add_compressor(step, a.indexer.compressor, of_x);
    head_weights = step.make({tokens, a.indexer.weights_proj->rows});
    of_x.add(*a.indexer.weights_proj, head_weights);
  }
  step.ops.linears(of_x);

  // One latent per token is key and value of every head.
  const CacheGrid latent_grid = numerics_.sim ? CacheGrid::kLatent : CacheGrid::kNone;
  const op::NormRope low_ranks{.rows = {{{.x = qr, .weight = a.q_norm},
                                         {.x = kv,
                                          .weight = a.kv_norm,
                                          .inv_freq = inv_freq,
                                          .grid = latent_grid,
                                          .rope_dim = config_.rope_dim}}},
                               .count = 2,
                               .eps = eps,
                               .positions = batch.positions};
  if (w.ratio == 0) {
    step.ops.norm_rope(low_ranks);
  } else {
    op::AttentionInputs inputs{.rows = low_ranks, .compressors = {}, .count = 1};
    inputs.compressors[0] =
        compress(step, a.compressor, cache.compressor, cache.entries, CacheGrid::kLatent, entry);
    if (w.ratio == 4)
      inputs.compressors[1] = compress(step, a.indexer.compressor, cache.index_compressor,
                                       cache.index_keys, CacheGrid::kIndex, key);
    inputs.count = w.ratio == 4 ? 2 : 1;
    step.ops.attention_inputs(inputs);
  }

  // Queries are normalised per head without a weight, those of the indexer not at all: attention
  // and the choice of entries see to it.
  Tensor q = step.make({tokens, heads, n}), index_q;
  op::Linears of_qr{.x = qr, .activations = numerics_.linear_activations};
  of_qr.add(*a.wq_b, q.reshaped({tokens, heads * n}));
  if (w.ratio == 4) {
    index_q = step.make({tokens, config_.index_num_heads, config_.index_head_dim});
    of_qr.add(*a.indexer.wq_b, index_q.reshaped({tokens, a.indexer.wq_b->rows}));
  }
  step.ops.linears(of_qr);
  Tensor selected;
  if (w.ratio == 4) selected = select_entries(step, cache, index_q, head_weights);

  Tensor o = step.make({tokens, heads, n});
  step.ops.attend_store(
      {.attend = {.batch = batch,
                  .q = q,
                  .latents = kv,
                  .ring = cache.ring,
                  .entries = cache.entries,
                  .selected = selected,
                  .sinks = a.sinks,
                  .inv_freq = inv_freq,  // values carried their rotation into the output
                  .out = o},
       .queries = {
           .rows = {{{.x = q, .inv_freq = inv_freq}}}, .eps = eps, .positions = batch.positions}});

  Tensor u = step.make({tokens, groups, config_.o_lora_rank});
  step.ops.grouped_linear({.x = o.reshaped({tokens, groups, heads / groups * n}),
                           .w = a.wo_a.get(),
                           .out = u,
                           .activations = numerics_.linear_activations});
  step.ops.linear({.x = u.reshaped({tokens, groups * config_.o_lora_rank}),
                   .w = a.wo_b.get(),
                   .out = out,
                   .activations = numerics_.linear_activations});
}

// The lightning indexer: keys of its own compressor, rotated queries from qr, head weights from x.
Tensor DeepseekV4::select_entries(const Step& step, const LayerCache& cache, Tensor q,
                                  Tensor head_weights) const {
  if (numerics_.sim)
    step.ops.norm_rope({.rows = {{{.x = q,
                                   .norm = false,
                                   .inv_freq = weights_.compress_inv_freq,
                                   .grid = CacheGrid::kIndex}}},
                        .eps = 0,
                        .positions = step.batch.positions});
  Tensor selected = step.arena.make(DType::kI32, {step.rows(), config_.index_topk});
  step.ops.index_select({.batch = step.batch,
                         .q = q,
                         .weights = head_weights,
                         .keys = cache.index_keys,
                         .selected = selected,
                         .inv_freq = numerics_.sim ? Tensor() : weights_.compress_inv_freq});
  return selected;
}

DeepseekV4::CompressorInputs DeepseekV4::add_compressor(const Step& step,
                                                        const CompressorWeights& w,
                                                        op::Linears& of_x) const {
  const CompressorInputs inputs{.values = step.make_f32({step.rows(), w.wkv->rows}),
                                .scores = step.make_f32({step.rows(), w.wgate->rows})};
  of_x.add(*w.wkv, inputs.values, true);
  of_x.add(*w.wgate, inputs.scores, true);
  return inputs;
}

op::Compress DeepseekV4::compress(const Step& step, const CompressorWeights& w,
                                  const CompressorState& state, const RowPool& entries,
                                  CacheGrid grid, const CompressorInputs& inputs) const {
  return {.batch = step.batch,
          .values = inputs.values,
          .scores = inputs.scores,
          .bias = w.ape,
          .norm_weight = w.norm,
          .inv_freq = weights_.compress_inv_freq,
          .eps = static_cast<float>(config_.rms_norm_eps),
          .grid = numerics_.sim ? grid : CacheGrid::kNone,
          .state = state,
          .entries = entries};
}

void DeepseekV4::moe(const Step& step, const FfnWeights& w, Tensor x, Tensor out) const {
  const std::int64_t tokens = step.rows(), k = config_.experts_per_token;
  const auto limit = static_cast<float>(config_.swiglu_limit);
  Tensor scores = step.make_f32({tokens, config_.num_experts});
  Tensor gate = step.make({tokens, w.shared_w1->rows}), up = step.make({tokens, w.shared_w3->rows});
  op::Linears of_x{.x = x, .activations = numerics_.linear_activations};
  of_x.add(*w.gate, scores, true);
  of_x.add(*w.shared_w1, gate);
  of_x.add(*w.shared_w3, up);
  step.ops.linears(of_x);

  Tensor ids = step.arena.make(DType::kI32, {tokens, k});
  Tensor weights = step.make_f32({tokens, k});
  step.ops.route({.logits = scores,
                  .bias = w.bias,
                  .hash_table = w.hash_table,
                  .token_ids = step.batch.token_ids,
                  .scale = static_cast<float>(config_.routed_scaling_factor),
                  .ids = ids,
                  .weights = weights});

  // The shared expert first; the routed ones add to it.
  step.ops.swiglu_linear({.gate = gate,
                          .up = up,
                          .limit = limit,
                          .w = w.shared_w2.get(),
                          .out = out,
                          .activations = numerics_.linear_activations});
  step.ops.experts({.batch = step.batch,
                    .x = x,
                    .ids = ids,
                    .weights = weights,
                    .w = w.experts.get(),
                    .limit = limit,
                    .activations = numerics_.expert_activations,
                    .out = out});
}

void DeepseekV4::head(const Step& step, const HcWeights& hc_head, Tensor norm_weight,
                      Tensor streams, Tensor logit_rows, Tensor logits) const {
  if (!logit_rows || logit_rows.dim(0) == 0) return;
  Tensor last = step.make({logit_rows.dim(0), config_.hc_mult, config_.hidden_size});
  step.ops.gather_rows({.x = streams, .rows = logit_rows, .out = last});
  Tensor h = step.make({logit_rows.dim(0), config_.hidden_size});
  step.ops.hc_head({.streams = last,
                    .weights = hc_head,
                    .hc_eps = static_cast<float>(config_.hc_eps),
                    .norm_eps = static_cast<float>(config_.rms_norm_eps),
                    .out = h});
  step.ops.linear({.x = norm(step, h, norm_weight), .w = weights_.head.get(), .out = logits});
}

Tensor DeepseekV4::norm(const Step& step, Tensor x, Tensor weight) const {
  Tensor out = step.make({x.dim(0), x.dim(1)});
  step.ops.rms_norm(
      {.x = x, .weight = weight, .eps = static_cast<float>(config_.rms_norm_eps), .out = out});
  return out;
}

Tensor DeepseekV4::linear(const Step& step, Tensor x, const PackedLinear& w) const {
  Tensor out = step.make({x.dim(0), w.rows});
  step.ops.linear({.x = x, .w = &w, .out = out, .activations = numerics_.linear_activations});
  return out;
}

// Window-only layers rotate with the plain base; compressed ones with their own and YaRN, in all
// their rotations.
Tensor DeepseekV4::frequencies(std::int64_t ratio) const {
  return ratio == 0 ? weights_.inv_freq : weights_.compress_inv_freq;
}

}  // namespace quatrain

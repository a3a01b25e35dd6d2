// SPDX-License-Identifier: Apache-2.0
#include "apps/op_cases.h"

#include <algorithm>

#include "core/random.h"
#include "model/weights.h"

namespace quatrain::apps {
namespace {

using Call = OpBench::Call;

class Cases {
 public:
  Cases(Ops& ops, const ModelSource& source, const std::string& model, const OpCaseOptions& options,
        int repetitions, const std::function<void(OpResult)>& done)
      : bench_(ops, repetitions, options.cycle_bytes),
        source_(source),
        c_(source.config),
        model_(model),
        options_(options),
        done_(done) {
    while (c_.ratio(csa_) != 4) ++csa_;
    while (c_.ratio(hca_) != 128) ++hca_;
  }

  void run() {
    reserve();
    linears();
    for (const std::int64_t rows : options_.rows) {
      streams(rows);
      small(rows);
      route(rows);
      for (const std::int64_t context : options_.contexts) {
        compress(rows, context);
        index_select(rows, context);
        for (const std::int64_t ratio : {0, 4, 128}) attend(rows, context, ratio);
      }
    }
    experts();
  }

 private:
  bool wanted(const std::string& operation) const {
    return operation.find(options_.filter) != std::string::npos;
  }

  Ops& ops() { return bench_.ops(); }

  // Comes after packing: scratch may depend on the widest weight.
  void reserve() {
    std::int64_t rows = 1, context = 1;
    for (const std::int64_t r : options_.rows) rows = std::max(rows, r);
    for (const std::int64_t n : options_.contexts) context = std::max(context, n);
    ops().reserve({.rows = rows,
                   .context = std::max(context, rows),
                   .slots = std::max(rows, options_.most_sequences),
                   .experts_per_token = c_.experts_per_token,
                   .num_experts = c_.num_experts,
                   .hidden_size = c_.hidden_size,
                   .intermediate_size = c_.moe_intermediate_size,
                   .window = c_.sliding_window,
                   .index_topk = c_.index_topk,
                   .linear_activations = options_.linear_activations});
  }

  // One measurement: calls that differ in what they read, and the cost of one.
  void measure(const std::string& operation, const std::string& shape, std::int64_t rows,
               std::int64_t context, const OpCost& cost, const std::vector<Call>& calls) {
    done_({.model = model_,
           .operation = operation,
           .shape = shape,
           .rows = rows,
           .context = context,
           .microseconds = bench_.microseconds(calls),
           .cost = cost});
  }

  template <class Args>
  void measure(const std::string& operation, const std::string& shape, std::int64_t rows,
               std::int64_t context, const std::vector<Args>& variants,
               void (Ops::*method)(const Args&)) {
    std::vector<Call> calls;
    for (const Args& args : variants)
      calls.push_back([this, method, args] { (ops().*method)(args); });
    measure(operation, shape, rows, context, cost_of(variants.front(), context), calls);
    bench_.clear();
  }

  // ---- weights ----

  LoadedLinear load(const std::string& base, std::int64_t rows, std::int64_t cols) const {
    return source_.checkpoint.load(source_.checkpoint.linear(base, rows, cols));
  }

  void linears() {
    const std::string layer = fmt::format("layers.{}.", csa_);
    const std::int64_t hidden = c_.hidden_size, q_lora = c_.q_lora_rank;
    const std::int64_t heads = c_.num_heads * c_.head_dim, o_rows = c_.o_groups * c_.o_lora_rank;
    const std::int64_t inner = c_.moe_intermediate_size * c_.num_shared_experts;
    const std::int64_t index_width = c_.index_num_heads * c_.index_head_dim;
    linear(layer + "attn.wq_a", q_lora, hidden);
    linear(layer + "attn.wq_b", heads, q_lora);
    linear(layer + "attn.wkv", c_.head_dim, hidden);
    linear(layer + "attn.wo_a", o_rows, heads / c_.o_groups, c_.o_groups);
    linear(layer + "attn.wo_b", hidden, o_rows);
    linear(layer + "attn.compressor.wkv", 2 * c_.head_dim, hidden, 0, true);
    linear(layer + "attn.indexer.wq_b", index_width, q_lora);
    linear(layer + "attn.indexer.weights_proj", c_.index_num_heads, hidden);
    linear(layer + "attn.indexer.compressor.wkv", 2 * c_.index_head_dim, hidden, 0, true);
    linear(layer + "ffn.gate", c_.num_experts, hidden, 0, true);
    linear(layer + "ffn.shared_experts.w1", inner, hidden);
    linear(layer + "ffn.shared_experts.w2", hidden, inner);
    linear("head", c_.vocab_size, hidden);
  }

  // `groups` > 0 makes it a grouped_linear.
  void linear(const std::string& name, std::int64_t rows, std::int64_t cols,
              std::int64_t groups = 0, bool precise = false) {
    const std::string operation =
        fmt::format("{} {}", groups > 0 ? "grouped_linear" : "linear", short_weight_name(name));
    if (!wanted(operation)) return;
    const LoadedLinear loaded = load(name, rows, cols);
    std::vector<LinearPtr> packed;
    for (std::int64_t i = bench_.copies(loaded.matrix.bytes()); i > 0; --i)
      packed.push_back(ops().pack_linear(loaded.matrix));
    reserve();
    const bool dense = loaded.matrix.format == WeightFormat::kDense;
    const std::string shape = fmt::format(
        "{} [{}, {}]", dense ? name_of(loaded.matrix.dtype) : name_of(loaded.matrix.format), rows,
        cols);
    for (const std::int64_t tokens : options_.rows) {
      if (groups > 0) {
        op::GroupedLinear args{.x = bench_.activations({tokens, groups, cols}),
                               .out = bench_.activations({tokens, groups, rows / groups}),
                               .activations = options_.linear_activations};
        std::vector<op::GroupedLinear> variants;
        for (const LinearPtr& w : packed) (args.w = w.get(), variants.push_back(args));
        measure(operation, shape, tokens, 0, variants, &Ops::grouped_linear);
      } else {
        const bool wide = precise || name == "head";
        op::Linear args{
            .x = bench_.activations({tokens, cols}),
            .out = bench_.make(wide ? DType::kF32 : ops().activation_dtype(), {tokens, rows}),
            .precise = precise,
            .activations = options_.linear_activations};
        std::vector<op::Linear> variants;
        for (const LinearPtr& w : packed) (args.w = w.get(), variants.push_back(args));
        measure(operation, shape, tokens, 0, variants, &Ops::linear);
      }
    }
  }

  void experts() {
    if (!wanted("experts")) return;
    const std::string base = fmt::format("layers.{}.ffn.experts", csa_);
    const std::int64_t hidden = c_.hidden_size, inner = c_.moe_intermediate_size;
    const auto packed = ops().make_experts(base, c_.num_experts, hidden, inner);
    for (std::int64_t e = 0; e < c_.num_experts; ++e)
      ops().pack_expert(*packed, e, load(fmt::format("{}.{}.w1", base, e), inner, hidden).matrix,
                        load(fmt::format("{}.{}.w3", base, e), inner, hidden).matrix,
                        load(fmt::format("{}.{}.w2", base, e), hidden, inner).matrix);
    reserve();
    const std::int64_t k = c_.experts_per_token;
    for (const std::int64_t rows : options_.rows) {
      const std::int64_t slots = sequences(rows);
      op::Experts args{.batch = bench_.batch(rows, slots, std::max<std::int64_t>(rows, 128)),
                       .x = bench_.activations({rows, hidden}),
                       .ids = {},
                       .weights = bench_.make(DType::kF32, {rows, k}, 0.1f),
                       .w = packed.get(),
                       .limit = static_cast<float>(c_.swiglu_limit),
                       .activations = options_.activations,
                       .out = bench_.activations({rows, hidden})};
      std::vector<op::Experts> variants;
      const std::int64_t chosen = std::min(c_.num_experts, rows * k);
      for (std::int64_t v = bench_.copies(packed->bytes * chosen / c_.num_experts); v > 0; --v) {
        args.ids = random_experts(rows, v);
        variants.push_back(args);
      }
      measure("experts", fmt::format("NVFP4 {} x 3 x [{}, {}]", c_.num_experts, inner, hidden),
              rows, 0, variants, &Ops::experts);
    }
  }

  // k different experts for each row, every expert equally likely.
  Tensor random_experts(std::int64_t rows, std::int64_t key) {
    const std::int64_t k = c_.experts_per_token;
    std::vector<std::int64_t> chosen;
    for (std::int64_t r = 0, draw = 0; r < rows; ++r) {
      const std::size_t begin = chosen.size();
      while (std::ssize(chosen) < (r + 1) * k) {
        const auto id =
            static_cast<std::int64_t>(random_word(static_cast<std::uint64_t>(key), draw++) %
                                      static_cast<std::uint64_t>(c_.num_experts));
        const auto row = chosen.begin() + static_cast<std::ptrdiff_t>(begin);
        if (std::find(row, chosen.end(), id) == chosen.end()) chosen.push_back(id);
      }
    }
    return bench_.make_ints({rows, k},
                            [&](std::int64_t i) { return chosen[static_cast<std::size_t>(i)]; });
  }

  // ---- residual streams ----

  HcWeights site(std::int64_t mixes) {
    return {.fn = bench_.make(DType::kF32, {mixes, c_.hc_mult * c_.hidden_size}, 0.01f),
            .base = bench_.make(DType::kF32, {mixes}),
            .scale = bench_.make(DType::kF32, {mixes == c_.hc_mult ? 1 : 3})};
  }

  op::HcPost update(std::int64_t rows) {
    const std::int64_t hc = c_.hc_mult, hidden = c_.hidden_size;
    return {.f = bench_.activations({rows, hidden}),
            .post = bench_.make(DType::kF32, {rows, hc}, 0.1f),
            .comb = bench_.make(DType::kF32, {rows, hc, hc}, 0.1f),
            .streams = bench_.activations({rows, hc, hidden})};
  }

  // An update and the site behind it, whose weights take turns.
  std::vector<op::HcPostPreNorm> sites(std::int64_t rows) {
    const std::int64_t hc = c_.hc_mult, hidden = c_.hidden_size, mixes = (2 + hc) * hc;
    const auto eps = static_cast<float>(c_.rms_norm_eps);
    const op::HcPost post = update(rows);
    op::HcPostPreNorm args{
        .post = post,
        .next = {.pre = {.streams = post.streams,
                         .weights = {},
                         .sinkhorn_iters = static_cast<int>(c_.hc_sinkhorn_iters),
                         .hc_eps = static_cast<float>(c_.hc_eps),
                         .norm_eps = eps,
                         .out = bench_.activations({rows, hidden}),
                         .post = post.post,
                         .comb = post.comb},
                 .norm_weight = bench_.make(DType::kF32, {hidden}),
                 .eps = eps}};
    std::vector<op::HcPostPreNorm> variants;
    for (std::int64_t i = bench_.copies(mixes * hc * hidden * 4); i > 0; --i) {
      args.next.pre.weights = site(mixes);
      variants.push_back(args);
    }
    return variants;
  }

  // What `part_of` takes of them.
  template <class Args>
  void site_case(std::int64_t rows, void (Ops::*method)(const Args&),
                 Args (*part_of)(const op::HcPostPreNorm&)) {
    if (!wanted(Args::kName)) return;
    std::vector<Args> variants;
    for (const op::HcPostPreNorm& args : sites(rows)) variants.push_back(part_of(args));
    measure(Args::kName, fmt::format("{} x {}", c_.hc_mult, c_.hidden_size), rows, 0, variants,
            method);
  }

  void streams(std::int64_t rows) {
    const std::int64_t hc = c_.hc_mult, hidden = c_.hidden_size;
    const std::string shape = fmt::format("{} x {}", hc, hidden);
    const auto eps = static_cast<float>(c_.rms_norm_eps);
    const auto make_state = [&] { return bench_.activations({rows, hc, hidden}); };
    if (wanted("embed"))
      measure<op::Embed>("embed", shape, rows, 0,
                         {{.ids = bench_.make_ints(
                               {rows}, [&](std::int64_t i) { return (i * 7919) % c_.vocab_size; }),
                           .table = bench_.make(DType::kBF16, {c_.vocab_size, hidden}),
                           .streams = make_state()}},
                         &Ops::embed);
    site_case<op::HcPre>(rows, &Ops::hc_pre, [](const auto& args) { return args.next.pre; });
    site_case<op::HcPreNorm>(rows, &Ops::hc_pre_norm, [](const auto& args) { return args.next; });
    site_case<op::HcPostPreNorm>(rows, &Ops::hc_post_pre_norm,
                                 [](const auto& args) { return args; });
    if (wanted("hc_post"))
      measure<op::HcPost>("hc_post", shape, rows, 0, {update(rows)}, &Ops::hc_post);
    if (wanted("hc_head"))
      measure<op::HcHead>("hc_head", shape, rows, 0,
                          {{.streams = make_state(),
                            .weights = site(hc),
                            .hc_eps = static_cast<float>(c_.hc_eps),
                            .norm_eps = eps,
                            .out = bench_.activations({rows, hidden})}},
                          &Ops::hc_head);
  }

  // ---- small operations ----

  void small(std::int64_t rows) {
    const auto eps = static_cast<float>(c_.rms_norm_eps);
    const Tensor hidden = bench_.activations({rows, c_.hidden_size});
    if (wanted("rms_norm"))
      measure<op::RmsNorm>("rms_norm", fmt::format("{}", c_.hidden_size), rows, 0,
                           {{.x = hidden,
                             .weight = bench_.make(DType::kF32, {c_.hidden_size}),
                             .eps = eps,
                             .out = bench_.activations({rows, c_.hidden_size})}},
                           &Ops::rms_norm);
    const std::string heads = fmt::format("{} x {}", c_.num_heads, c_.head_dim);
    const auto queries = [&] { return bench_.activations({rows, c_.num_heads, c_.head_dim}); };
    if (wanted("rms_norm")) {
      const Tensor q = queries();
      measure<op::RmsNorm>("rms_norm q", heads, rows, 0,
                           {{.x = q, .weight = {}, .eps = eps, .out = q}}, &Ops::rms_norm);
    }
    if (wanted("rope"))
      measure<op::Rope>("rope q", heads, rows, 0,
                        {{.x = queries(),
                          .positions = bench_.make_ints({rows}, [](std::int64_t i) { return i; }),
                          .inv_freq = bench_.make(DType::kF32, {c_.rope_dim / 2})}},
                        &Ops::rope);
    const std::int64_t inner = c_.moe_intermediate_size * c_.num_shared_experts;
    if (wanted("swiglu"))
      measure<op::SwiGlu>("swiglu", fmt::format("{}", inner), rows, 0,
                          {{.gate = bench_.activations({rows, inner}),
                            .up = bench_.activations({rows, inner}),
                            .limit = static_cast<float>(c_.swiglu_limit),
                            .out = bench_.activations({rows, inner})}},
                          &Ops::swiglu);
    bench_.clear();
  }

  void route(std::int64_t rows) {
    if (!wanted("route")) return;
    const std::int64_t k = c_.experts_per_token;
    measure<op::Route>("route", fmt::format("{} of {}", k, c_.num_experts), rows, 0,
                       {{.logits = bench_.make(DType::kF32, {rows, c_.num_experts}),
                         .bias = bench_.make(DType::kF32, {c_.num_experts}, 0.1f),
                         .hash_table = {},
                         .token_ids = bench_.make_ints({rows}, [](std::int64_t i) { return i; }),
                         .scale = static_cast<float>(c_.routed_scaling_factor),
                         .ids = bench_.make_ints({rows, k}, [](std::int64_t) { return 0; }),
                         .weights = bench_.make(DType::kF32, {rows, k})}},
                       &Ops::route);
  }

  // ---- operations on caches ----

  std::int64_t sequences(std::int64_t rows) const {
    return rows <= options_.most_sequences ? rows : 1;
  }

  // Sequences to take turns with, so that what one reads is not in a cache from the last time.
  std::int64_t slots_for(std::int64_t rows, std::int64_t bytes_per_sequence) const {
    if (sequences(rows) == 1 && rows > 1) return 1;
    return std::max(rows, std::min(bench_.copies(bytes_per_sequence), options_.most_sequences));
  }

  static std::int64_t blocks(std::int64_t context) {
    return (context + kBlockTokens - 1) / kBlockTokens;
  }

  RowPool pool(std::int64_t ratio, std::int64_t width, std::int64_t slots, std::int64_t context) {
    return {.rows = bench_.make(ops().cache_dtype(),
                                {slots * blocks(context) * (kBlockTokens / ratio), width}),
            .ratio = ratio};
  }

  // The same arguments for groups of sequences in turn.
  template <class Args>
  std::vector<Args> in_turn(Args args, std::int64_t rows, std::int64_t slots,
                            std::int64_t context) {
    std::vector<Args> variants;
    const std::int64_t groups = slots == 1 ? 1 : std::max<std::int64_t>(1, slots / rows);
    for (std::int64_t g = 0; g < groups; ++g) {
      args.batch = bench_.batch(rows, slots, context, g * rows);
      variants.push_back(args);
    }
    return variants;
  }

  void compress(std::int64_t rows, std::int64_t context) {
    for (const std::int64_t ratio : {4, 128}) {
      const std::string operation = ratio == 4 ? "compress CSA" : "compress HCA";
      if (!wanted(operation) || rows > context) continue;
      const std::int64_t width = c_.head_dim, channels = ratio == 4 ? 2 * width : width;
      const std::int64_t slots = slots_for(rows, 2 * 4 * channels * (ratio == 4 ? 8 : 128));
      const std::int64_t capacity = ratio == 4 ? 8 : 128;
      op::Compress args{.batch = {},
                        .values = bench_.make(DType::kF32, {rows, channels}),
                        .scores = bench_.make(DType::kF32, {rows, channels}),
                        .bias = bench_.make(DType::kF32, {ratio, channels}),
                        .norm_weight = bench_.make(DType::kF32, {width}),
                        .inv_freq = bench_.make(DType::kF32, {c_.rope_dim / 2}),
                        .eps = static_cast<float>(c_.rms_norm_eps),
                        .grid = grid(CacheGrid::kLatent),
                        .state = {.values = bench_.make(DType::kF32, {slots, capacity, channels}),
                                  .scores = bench_.make(DType::kF32, {slots, capacity, channels})},
                        .entries = pool(ratio, width, slots, context)};
      measure(operation, fmt::format("{}", width), rows, context,
              in_turn(args, rows, slots, context), &Ops::compress);
    }
  }

  // Packed caches hold what is on their grid.
  CacheGrid grid(CacheGrid packed) {
    return ops().cache_dtype() == DType::kU8 ? packed : CacheGrid::kNone;
  }

  void index_select(std::int64_t rows, std::int64_t context) {
    if (!wanted("index_select") || rows > context) return;
    const std::int64_t heads = c_.index_num_heads, width = c_.index_head_dim;
    const std::int64_t slots = slots_for(rows, context / 4 * width * 2);
    op::IndexSelect args{
        .batch = {},
        .q = bench_.activations({rows, heads, width}),
        .weights = bench_.activations({rows, heads}),
        .keys = pool(4, width, slots, context),
        .selected = bench_.make_ints({rows, c_.index_topk}, [](std::int64_t) { return -1; })};
    measure("index_select", fmt::format("{} x {}, top {}", heads, width, c_.index_topk), rows,
            context, in_turn(args, rows, slots, context), &Ops::index_select);
  }

  void attend(std::int64_t rows, std::int64_t context, std::int64_t ratio) {
    const std::string operation = ratio == 0   ? "attend window"
                                  : ratio == 4 ? "attend CSA"
                                               : "attend HCA";
    if (!wanted(operation) || rows > context) return;
    const std::int64_t heads = c_.num_heads, width = c_.head_dim, window = c_.sliding_window;
    const std::int64_t entries = ratio == 0 ? 0 : context / ratio;
    const std::int64_t read = window + (ratio == 4 ? std::min(entries, c_.index_topk) : entries);
    const std::int64_t slots = slots_for(rows, read * width * 2);
    op::Attend args{.batch = {},
                    .q = bench_.activations({rows, heads, width}),
                    .latents = bench_.activations({rows, width}),
                    .ring = bench_.make(ops().cache_dtype(), {slots, window, width}),
                    .entries = {},
                    .selected = {},
                    .sinks = bench_.make(DType::kF32, {heads}),
                    .inv_freq = bench_.make(DType::kF32, {c_.rope_dim / 2}),
                    .out = bench_.activations({rows, heads, width})};
    if (ratio > 0) args.entries = pool(ratio, width, slots, context);
    if (ratio == 4) {
      // Entries spread evenly over what is visible to every row, ascending.
      const std::int64_t topk = c_.index_topk;
      const std::int64_t visible = std::max<std::int64_t>(0, (context - rows + 1) / 4);
      args.selected = bench_.make_ints({rows, topk}, [&](std::int64_t i) {
        const std::int64_t n = i % topk;
        if (visible >= topk) return n * visible / topk;
        return n < visible ? n : -1;
      });
    }
    measure(operation, fmt::format("{} x {}", heads, width), rows, context,
            in_turn(args, rows, slots, context), &Ops::attend);
  }

  OpBench bench_;
  const ModelSource& source_;
  const V4Config& c_;
  const std::string& model_;
  const OpCaseOptions& options_;
  const std::function<void(OpResult)>& done_;
  std::int64_t csa_ = 0, hca_ = 0;  // layers of either kind
};

}  // namespace

void measure_operations(Ops& ops, const ModelSource& source, const std::string& model,
                        const OpCaseOptions& options, int repetitions,
                        const std::function<void(OpResult)>& done) {
  Cases(ops, source, model, options, repetitions, done).run();
}

}  // namespace quatrain::apps

// SPDX-License-Identifier: Apache-2.0
#include "runtime/memory_plan.h"

#include <algorithm>
#include <numeric>

#include "ops/cost_ops.h"
#include "runtime/slot_sampler.h"

namespace quatrain {
namespace {

// What a recorded step takes of the driver, per operation of the model and in all: an estimate from
// above. Seen on an H200: 4.2 MB for five steps of a small model, 6.3 MB for a single one.
constexpr std::int64_t kGraphBytesPerOperation = 8192;
constexpr std::int64_t kGraphBytes = std::int64_t{6} << 20;
// Stays free for the driver, fragmentation and rounding of allocations.
constexpr double kReserve = 0.01;

// Hands out no memory and adds up what is asked for.
class MeasuringOps final : public Interceptor {
 public:
  using Interceptor::Interceptor;
  Buffer allocate(std::int64_t bytes) override {
    total += bytes;
    return {};
  }
  void zero(const Tensor&) override {}
  void upload(const Tensor&, const void*) override {}

  std::int64_t total = 0;
};

// Counts the operations of a dry run.
class CountingOps final : public Interceptor {
 public:
  explicit CountingOps(Ops& dry) : Interceptor(dry) {}
  std::int64_t count = 0;

 protected:
  void before(const OpCall&) override { ++count; }
};

std::int64_t cache_bytes(Ops& ops, const V4Config& config, std::int64_t slots,
                         std::int64_t blocks) {
  MeasuringOps measuring(ops);
  return KvCache(measuring, config, slots, blocks).bytes();
}

struct DryRun {
  std::int64_t arena = 0;
  std::int64_t operations = 0;
};

// The largest step, on operations that compute nothing and tensors without memory.
DryRun dry_run(Ops& ops, const V4Config& config, const EngineOptions& options,
               const ModelWeights& weights) {
  CostOps dry(ops, options.max_model_len);
  CountingOps counting(dry);
  MeasuringOps measuring(ops);
  const KvCache cache(measuring, config, 1, 1);
  const DeepseekV4 model(config, weights, options.numerics);
  const std::int64_t rows = options.max_num_batched_tokens;
  const auto ints = [](std::int64_t n) { return Tensor(nullptr, DType::kI32, {n}); };
  const Batch batch{.token_ids = ints(rows),
                    .positions = ints(rows),
                    .slots = ints(rows),
                    .first_rows = ints(rows),
                    .block_table = Tensor(nullptr, DType::kI32, {1, 1})};
  const Tensor streams(nullptr, ops.activation_dtype(), {rows, config.hc_mult, config.hidden_size});
  const Tensor logits(nullptr, DType::kF32, {options.max_logit_rows, config.vocab_size});
  Arena arena = Arena::measuring();
  model.forward(counting, arena, batch, cache, streams, ints(options.max_logit_rows), logits);
  const std::int64_t operations = counting.count;
  for (std::size_t m = 0; m < weights.mtp.size(); ++m)
    model.forward_mtp(counting, arena, batch, cache, static_cast<std::int64_t>(m), streams,
                      ints(options.max_logit_rows), logits);
  return {std::max<std::int64_t>(arena.high_water(), Arena::kAlignment), operations};
}

std::string shown(std::int64_t bytes) {
  const auto n = static_cast<double>(bytes);
  if (n < 1e6) return fmt::format("{:.1f} kB", n / 1e3);
  return n < 1e9 ? fmt::format("{:.1f} MB", n / 1e6) : fmt::format("{:.2f} GB", n / 1e9);
}

}  // namespace

StepLimits step_limits(const V4Config& config, const EngineOptions& options) {
  return {.rows = options.max_num_batched_tokens,
          .context = options.max_model_len,
          .slots = options.max_num_seqs,
          .experts_per_token = config.experts_per_token,
          .num_experts = config.num_experts,
          .hidden_size = config.hidden_size,
          .intermediate_size = config.moe_intermediate_size,
          .window = config.sliding_window,
          .index_topk = config.index_topk,
          .vocab_size = config.vocab_size,
          .linear_activations = options.numerics.linear_activations};
}

std::vector<std::int64_t> decode_buckets(const EngineOptions& options) {
  const std::int64_t most =
      std::min({options.max_num_seqs, options.max_num_batched_tokens, options.max_logit_rows});
  std::vector<std::int64_t> rows;
  for (std::int64_t n = 1; n < most; n += n < 8 ? n : 8) rows.push_back(n);
  rows.push_back(most);
  return rows;
}

MemoryPlan plan_memory(Ops& ops, const V4Config& config, const EngineOptions& options,
                       const WeightList& list) {
  MemoryPlan plan;
  plan.backend = ops.backend_name();
  plan.memory = ops.memory();
  plan.options = options;
  plan.cache_dtype = ops.cache_dtype();
  std::copy_n(list.linear_bytes, kWeightGroups, plan.weights);
  plan.weights[static_cast<int>(WeightGroup::kOther)] += 4 * list.vector_elements;

  const std::int64_t slots = options.max_num_seqs;
  const std::int64_t blocks = options.kv_blocks;
  plan.state = cache_bytes(ops, config, slots, 0) +
               SlotSampler::bytes(config.vocab_size, slots, options.max_logit_rows);
  plan.caches = cache_bytes(ops, config, slots, blocks) - cache_bytes(ops, config, slots, 0);
  plan.cache_per_token = plan.caches / (blocks * kBlockTokens);

  const DryRun run = dry_run(ops, config, options, list.model);
  plan.arena = run.arena;
  plan.scratch = run.arena + ops.reserve_bytes(step_limits(config, options));
  plan.step = options.max_num_batched_tokens *
                  (config.hc_mult * config.hidden_size * bytes_of(ops.activation_dtype()) + 16) +
              options.max_logit_rows * (config.vocab_size * 4 + 12) +
              4 * slots * blocks_per_sequence(options);
  if (options.record && ops.can_record())
    plan.graphs = kGraphBytes +
                  std::ssize(decode_buckets(options)) * run.operations * kGraphBytesPerOperation;
  return plan;
}

std::int64_t MemoryPlan::weight_bytes() const {
  return std::accumulate(weights, weights + kWeightGroups, std::int64_t{0});
}

std::int64_t MemoryPlan::total() const {
  return weight_bytes() + caches + state + scratch + step + graphs;
}

std::int64_t MemoryPlan::missing() const {
  if (memory.total == 0) return 0;
  const auto usable =
      memory.free - static_cast<std::int64_t>(kReserve * static_cast<double>(memory.total));
  return std::max<std::int64_t>(0, total() - usable);
}

std::string MemoryPlan::describe() const {
  std::string text = fmt::format("memory on {}:\n", backend);
  const auto line = [&](std::string_view what, std::int64_t bytes, const std::string& remark) {
    text += fmt::format("  {:<18} {:>10}{}{}\n", what, shown(bytes), remark.empty() ? "" : "  ",
                        remark);
  };
  line("weights", weight_bytes(), "");
  for (int g = 0; g < kWeightGroups; ++g)
    text +=
        fmt::format("    {:<18} {:>10}\n", name_of(static_cast<WeightGroup>(g)), shown(weights[g]));
  line("caches", caches,
       fmt::format("{} per token, {} sequences of {} tokens, {}", shown(cache_per_token),
                   options.max_num_seqs, options.max_model_len, name_of(cache_dtype)));
  line("state", state, "of sequences");
  line("scratch", scratch, fmt::format("for steps of {} tokens", options.max_num_batched_tokens));
  line("step", step, "inputs, streams, logits");
  if (graphs > 0) line("recorded steps", graphs, "estimate");
  line("together", total(),
       memory.total == 0
           ? std::string()
           : fmt::format("of {} free, {} in all", shown(memory.free), shown(memory.total)));
  return text;
}

void MemoryPlan::check() const {
  const std::int64_t lacking = missing();
  if (lacking == 0) return;
  std::string advice;
  const auto advise = [&](const std::string& text) {
    advice += (advice.empty() ? "; to free it: " : ", ") + text;
  };
  const std::int64_t sequences = options.max_num_seqs;
  const std::int64_t fitting =
      options.max_model_len -
      (lacking / (std::max<std::int64_t>(1, cache_per_token) * sequences) + 1 + kBlockTokens) /
          kBlockTokens * kBlockTokens;
  if (caches > lacking && fitting > 0)
    advise(fmt::format("--max-model-len {} (now {}; caches take {})", fitting,
                       options.max_model_len, shown(caches)));
  if (sequences > 1)
    advise(fmt::format("--max-num-seqs below {} (each sequence takes {})", sequences,
                       shown((caches + state) / sequences)));
  if (options.max_num_batched_tokens > 1)
    advise(fmt::format("--max-num-batched-tokens below {} (steps take {})",
                       options.max_num_batched_tokens, shown(scratch + step)));
  if (cache_dtype == DType::kF32 && backend != "cpu")
    advise(fmt::format("--kv-cache-dtype bf16 (frees {})", shown(caches / 2)));
  fail("not enough memory: {} are needed ({} for weights), {} are free on {}: {} are missing{}",
       shown(total()), shown(weight_bytes()), shown(memory.free), backend, shown(lacking), advice);
}

}  // namespace quatrain

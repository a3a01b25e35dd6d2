// SPDX-License-Identifier: Apache-2.0
// A sequence gives the same logits and leaves the same caches however its tokens are divided into
// steps and whatever else runs in those steps (3.3).
#include "ops/cost_ops.h"
#include "support/loaded_model.h"
#include "support/op_harness.h"
#include "support/random_model.h"

namespace quatrain::testing {
namespace {

constexpr std::int64_t kLongest = 700;
constexpr std::int64_t kSequences = 3;

EngineOptions options() {
  EngineOptions o;
  o.max_model_len = 768;
  o.max_num_seqs = kSequences;
  o.max_num_batched_tokens = kLongest;
  o.max_logit_rows = kLongest;
  return o;
}

std::vector<float> values_of(Ops& ops, const Tensor& tensor) {
  std::vector<float> out(static_cast<std::size_t>(tensor.elements()));
  ops.download(out.data(), tensor);
  return out;
}

// Everything that the caches hold of one slot, by layer. Pool rows come in the order of entries.
std::vector<std::vector<float>> caches_of(LoadedModel& model, std::int64_t slot) {
  std::vector<std::vector<float>> out;
  const V4Config& config = model.runner->config();
  for (std::int64_t l = 0; l < config.num_layers; ++l) {
    const LayerCache& cache = model.runner->cache().layer(l);
    out.push_back(values_of(model.check, cache.ring[slot]));
    for (const CompressorState* state : {&cache.compressor, &cache.index_compressor})
      if (state->values) {
        out.push_back(values_of(model.check, state->values[slot]));
        out.push_back(values_of(model.check, state->scores[slot]));
      }
    for (const RowPool* pool : {&cache.entries, &cache.index_keys})
      if (pool->rows) {
        const std::int64_t rows = pool->rows.dim(0) / kSequences;
        out.push_back(values_of(model.check, pool->rows.rows(slot * rows, rows)));
      }
  }
  return out;
}

// Equal up to `tolerance`, and untouched (NaN) in the same places.
void expect_same_caches(const std::vector<std::vector<float>>& a,
                        const std::vector<std::vector<float>>& b, float tolerance) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i].size(), b[i].size());
    for (std::size_t j = 0; j < a[i].size(); ++j) {
      ASSERT_EQ(std::isnan(a[i][j]), std::isnan(b[i][j])) << "cache " << i << " element " << j;
      if (!std::isnan(a[i][j])) {
        ASSERT_NEAR(a[i][j], b[i][j], tolerance) << "cache " << i << " element " << j;
      }
    }
  }
}

struct Sequence {
  std::vector<std::int32_t> ids;
  std::vector<std::int64_t> chunks;  // lengths, in order
};

// Lengths that cut windows in every way, mixed with random ones.
std::vector<std::int64_t> random_split(Random& random, std::int64_t total) {
  constexpr std::int64_t kSpecial[] = {1, 1, 2, 3, 4, 5, 127, 128, 129};
  std::vector<std::int64_t> out;
  while (total > 0) {
    const std::int64_t kind = random.integer(0, 11);
    const std::int64_t wanted = kind < 9 ? kSpecial[kind] : random.integer(1, 200);
    out.push_back(std::min(total, wanted));
    total -= out.back();
  }
  return out;
}

// Runs the sequences in slots 0, 1, …; each step takes the next chunk of some of them.
std::vector<std::vector<float>> run_interleaved(LoadedModel& model,
                                                const std::vector<Sequence>& sequences,
                                                const std::vector<std::int64_t>& slots,
                                                Random& random) {
  std::vector<std::vector<float>> logits(sequences.size());
  std::vector<std::size_t> next(sequences.size(), 0);
  std::vector<std::int64_t> position(sequences.size(), 0);
  const auto vocab = static_cast<std::size_t>(model.runner->config().vocab_size);
  for (bool left = true; left;) {
    left = false;
    std::vector<SequenceChunk> step;
    std::vector<std::size_t> order;
    std::int64_t rows = 0;
    for (const std::int32_t i : random.permutation(static_cast<std::int64_t>(sequences.size()))) {
      const auto s = static_cast<std::size_t>(i);
      if (next[s] == sequences[s].chunks.size()) continue;
      left = true;
      const std::int64_t n = sequences[s].chunks[next[s]];
      if (rows + n > kLongest || (rows > 0 && random.integer(0, 3) == 0)) continue;
      step.push_back({.slot = slots[s],
                      .position = position[s],
                      .tokens = std::span(sequences[s].ids)
                                    .subspan(static_cast<std::size_t>(position[s]),
                                             static_cast<std::size_t>(n)),
                      .logits = LogitRows::kAll});
      order.push_back(s);
      rows += n;
      ++next[s];
      position[s] += n;
    }
    if (step.empty()) continue;
    std::span<const float> found = model.runner->step(step);
    for (std::size_t c = 0; c < step.size(); ++c) {
      const std::size_t count = step[c].tokens.size() * vocab;
      logits[order[c]].insert(logits[order[c]].end(), found.begin(),
                              found.begin() + static_cast<std::ptrdiff_t>(count));
      found = found.subspan(count);
    }
  }
  return logits;
}

class Chunking : public ::testing::TestWithParam<bool> {
 protected:
  static TinyShape shape() {
    TinyShape s;
    s.hidden = 32;
    s.quantised = GetParam();
    return s;
  }
  RandomModel model{shape(), 21};
  std::filesystem::path folder = model.write();
  Random random{GetParam() ? 5u : 6u};

  Sequence sequence(std::int64_t length) {
    return {random.integers(length, model.shape().vocab), random_split(random, length)};
  }
};

TEST_P(Chunking, RandomSplitsOfInterleavedSequencesGiveOneShotResults) {
  LoadedModel chunked(folder, options(), 1), whole(folder, options(), 1);
  for (int round = 0; round < 5; ++round) {
    std::vector<Sequence> sequences;
    for (std::int64_t s = 0; s < kSequences; ++s)
      sequences.push_back(sequence(random.integer(1, kLongest)));
    chunked.runner->cache().poison(chunked.check);
    const auto logits = run_interleaved(chunked, sequences, {2, 0, 1}, random);
    for (std::size_t s = 0; s < sequences.size(); ++s) {
      const std::int64_t slot = std::vector<std::int64_t>{2, 0, 1}[s];
      whole.runner->cache().poison(whole.check);
      const std::vector<float> expected = whole.logits(sequences[s].ids, {kLongest}, slot);
      EXPECT_LE(max_difference(logits[s], expected), 1e-5f)
          << sequences[s].ids.size() << " tokens in " << sequences[s].chunks.size() << " chunks";
      expect_same_caches(caches_of(chunked, slot), caches_of(whole, slot), 1e-5f);
    }
  }
}

TEST_P(Chunking, EverySpecialSplit) {
  LoadedModel loaded(folder, options(), 1);
  const std::vector<std::int32_t> ids = random.integers(264, model.shape().vocab);
  loaded.runner->cache().poison(loaded.check);
  const std::vector<float> whole = loaded.logits(ids, {kLongest});
  const auto caches = caches_of(loaded, 0);
  const std::vector<std::vector<std::int64_t>> splits = {
      {1},      {2},      {3},      {4},         {5},      {127},       {128},   {129},
      {127, 1}, {128, 1}, {129, 1}, {126, 2, 1}, {255, 1}, {3, 125, 1}, {130, 7}};
  for (const auto& split : splits) {
    loaded.runner->cache().poison(loaded.check);
    EXPECT_LE(max_difference(loaded.logits(ids, split), whole), 1e-5f) << split[0];
    expect_same_caches(caches_of(loaded, 0), caches, 1e-5f);
  }
}

TEST_P(Chunking, BatchMatesDoNotChangeABit) {
  std::vector<Sequence> sequences;
  for (const std::int64_t n : {150, 131, 270}) sequences.push_back(sequence(n));
  LoadedModel together(folder, options(), 1), alone(folder, options(), 3);
  together.runner->cache().poison(together.check);
  const auto logits = run_interleaved(together, sequences, {1, 2, 0}, random);
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    alone.runner->cache().poison(alone.check);
    const auto own = run_interleaved(alone, {sequences[s]}, {0}, random);
    EXPECT_TRUE(same_bits(own[0], logits[s]));
  }
}

// Decode of many sequences in one step while another one is being prefilled.
TEST_P(Chunking, BatchedDecodeBesideAPrefill) {
  std::vector<Sequence> sequences;
  for (const std::int64_t n : {140, 9}) {
    sequences.push_back(sequence(n));
    sequences.back().chunks.assign(static_cast<std::size_t>(n), 1);
  }
  sequences.push_back(sequence(400));
  sequences.back().chunks = {133, 129, 127, 11};
  LoadedModel together(folder, options(), 1), whole(folder, options(), 1);
  together.runner->cache().poison(together.check);
  const auto logits = run_interleaved(together, sequences, {0, 1, 2}, random);
  for (std::size_t s = 0; s < sequences.size(); ++s)
    EXPECT_LE(max_difference(logits[s], whole.logits(sequences[s].ids, {kLongest})), 1e-5f);
}

// A slot that held a longer sequence before serves a new one as if it were new.
TEST_P(Chunking, OldContentsOfASlotAreNotSeen) {
  LoadedModel used(folder, options(), 1), fresh(folder, options(), 1);
  used.logits(random.integers(500, model.shape().vocab), {kLongest});
  const std::vector<std::int32_t> ids = random.integers(135, model.shape().vocab);
  EXPECT_TRUE(same_bits(used.logits(ids, {5, 1, 64}), fresh.logits(ids, {5, 1, 64})));
}

TEST_P(Chunking, SimulatedGridGivesOneShotResultsToo) {
  EngineOptions o = options();
  o.numerics.sim = true;
  LoadedModel loaded(folder, o, 1);
  const std::vector<std::int32_t> ids = random.integers(270, model.shape().vocab);
  const std::vector<float> whole = loaded.logits(ids, {kLongest});
  for (const std::vector<std::int64_t>& split :
       {std::vector<std::int64_t>{1}, {3, 125, 1, 1, 129}, {127, 7}}) {
    loaded.runner->cache().poison(loaded.check);
    EXPECT_LE(max_difference(loaded.logits(ids, split), whole), 1e-5f) << split[0];
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Chunking, ::testing::Values(false, true),
                         [](const auto& test) { return test.param ? "Quantised" : "Full"; });

// The dry run on CostOps must take exactly the scratch that a real step takes.
TEST(Scratch, DryRunMeasuresARealStep) {
  TinyShape shape;
  shape.mtp_layers = 1;
  const RandomModel random_model(shape, 2);
  const std::filesystem::path folder = random_model.write();
  CpuOps ops(2);
  const V4Config config = read_config(folder);
  const ModelWeights weights =
      load_weights(Checkpoint::open(folder), config, ops, {.mtp = true, .progress = {}});
  for (const bool sim : {false, true}) {
    const DeepseekV4 model(config, weights, {.sim = sim, .expert_activations = {}});
    const KvCache cache(ops, config, 1, 2);
    StepLimits limits = roomy_limits();
    limits.rows = 17;
    ops.reserve(limits);
    std::vector<std::int32_t> rows(17);
    std::iota(rows.begin(), rows.end(), 0);
    const Ints ids(ops, {17}, std::vector<std::int32_t>(17, 3)), positions(ops, {17}, rows);
    const Ints slots(ops, {17}, std::vector<std::int32_t>(17, 0)),
        first(ops, {17}, std::vector<std::int32_t>(17, 0));
    const Ints table(ops, {1, 2}, {1, 0}), logit_rows(ops, {3}, {2, 0, 16});
    const Batch batch{.token_ids = ids,
                      .positions = positions,
                      .slots = slots,
                      .first_rows = first,
                      .block_table = table};
    const Floats streams(ops, {17, shape.hc, shape.hidden}), logits(ops, {3, shape.vocab});
    const auto run = [&](Ops& on, Arena& arena) {
      model.forward(on, arena, batch, cache, streams, logit_rows, logits);
      const std::int64_t forward = arena.high_water();
      model.forward_mtp(on, arena, batch, cache, 0, streams, logit_rows, logits);
      EXPECT_EQ(arena.used(), 0) << "a step gives its scratch back";
      return std::pair(forward, arena.high_water());
    };
    CostOps dry(ops, 200);
    Arena measuring = Arena::measuring();
    const auto measured = run(dry, measuring);
    const Buffer memory = ops.allocate(measured.second);
    Arena exact(memory.data(), measured.second);
    EXPECT_EQ(run(ops, exact), measured);
    Arena small(memory.data(), measured.first - Arena::kAlignment);
    EXPECT_THROW(model.forward(ops, small, batch, cache, streams, logit_rows, logits), Error);
  }
}

}  // namespace
}  // namespace quatrain::testing

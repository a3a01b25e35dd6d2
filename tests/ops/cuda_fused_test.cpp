// SPDX-License-Identifier: Apache-2.0
// Fused operations of a decode step on the device: against the CPU, and against their parts on the
// device itself, bit for bit where both are the same sums.
#include "ops/cuda_compare.h"

namespace quatrain::testing {
namespace {

constexpr std::int64_t kSlots = 4;

class CudaFused : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (!IsSkipped()) reserve(roomy_limits());
  }
};

// ---- hc_post_pre_norm ----

struct Streams {
  std::int64_t tokens, width;

  std::vector<float> take(int seed, std::int64_t per_token, float scale = 1) const {
    return Random(static_cast<unsigned>(seed)).normals(tokens * per_token, scale);
  }
};

// Streams, outputs, post and comb, token by token, of the tokens from `first` on.
std::vector<float> hc_post_pre_norm(Ops& ops, Streams s, std::int64_t first, std::int64_t tokens) {
  const std::int64_t hc = 4, mixes = 24, width = s.width;
  const auto rows = [&](int seed, std::int64_t per_token, float scale = 1) {
    return rows_of(s.take(seed, per_token, scale), first, tokens, per_token);
  };
  const Floats streams(ops, {tokens, hc, width}, rows(61, hc * width, 3));
  const Floats f(ops, {tokens, width}, rows(62, width));
  // In and out in one: the site replaces what the one before has left.
  const Floats post(ops, {tokens, hc}, rows(63, hc)),
      comb(ops, {tokens, hc, hc}, rows(64, hc * hc));
  const Floats fn(ops, {mixes, hc * width}, Random(65).normals(mixes * hc * width, 0.05f));
  const Floats base(ops, {mixes}, Random(66).normals(mixes));
  const Floats scale(ops, {3}, {0.7f, 1.3f, 2.0f});
  const Floats weight(ops, {width}, Random(67).normals(width)), out(ops, {tokens, width});
  in_step([&] {
    ops.hc_post_pre_norm({.post = {.f = f, .post = post, .comb = comb, .streams = streams},
                          .next = {.pre = {.streams = streams,
                                           .weights = {.fn = fn, .base = base, .scale = scale},
                                           .sinkhorn_iters = 20,
                                           .hc_eps = 1e-6f,
                                           .norm_eps = 1e-6f,
                                           .out = out,
                                           .post = post,
                                           .comb = comb},
                                   .norm_weight = weight,
                                   .eps = 1e-6f}});
  });
  std::vector<float> all;
  for (std::int64_t t = 0; t < tokens; ++t)
    for (const auto& [values, row] : {std::pair(streams.values(), hc * width),
                                      {out.values(), width},
                                      {post.values(), hc},
                                      {comb.values(), hc * hc}}) {
      const std::vector<float> part = rows_of(values, t, 1, row);
      all.insert(all.end(), part.begin(), part.end());
    }
  return all;
}

TEST_F(CudaFused, UpdateAndSiteTogetherMatchTheCpuForAnyBatch) {
  for (const std::int64_t width : {4, 384, 2052, 4096, 7168})
    for (const std::int64_t tokens : {1, 3, 9, 21, 70, 300}) {
      if (tokens > 9 && width > 4096) continue;
      SCOPED_TRACE(fmt::format("{} tokens of {}", tokens, width));
      const Streams s{tokens, width};
      const std::vector<float> found = hc_post_pre_norm(gpu(), s, 0, tokens);
      expect_near(found, hc_post_pre_norm(cpu(), s, 0, tokens), 1e-5);
      const std::int64_t row = static_cast<std::int64_t>(found.size()) / tokens;
      for (const std::int64_t t : {std::int64_t{0}, tokens / 2, tokens - 1})
        expect_same(hc_post_pre_norm(gpu(), s, t, 1), rows_of(found, t, 1, row));
    }
}

// ---- attention_inputs ----

struct CompressorArrays {
  CompressorArrays(Ops& ops, const Step& step, std::int64_t every, std::int64_t width,
                   unsigned seed)
      : ratio(every),
        capacity(ratio == 4 ? 8 : ratio),
        channels(ratio == 4 ? 2 * width : width),
        values(ops, {step.rows(), channels}, Random(seed).normals(step.rows() * channels)),
        scores(ops, {step.rows(), channels}, Random(seed + 1).normals(step.rows() * channels, 3)),
        bias(ops, {ratio, channels}, Random(seed + 2).normals(ratio * channels)),
        norm(ops, {width}, Random(seed + 3).normals(width)),
        state_values(ops, {kSlots, capacity, channels},
                     Random(seed + 4).normals(kSlots * capacity * channels)),
        state_scores(ops, {kSlots, capacity, channels},
                     Random(seed + 5).normals(kSlots * capacity * channels, 3)),
        entries(ops, {step.pool_blocks * (128 / ratio), width}) {}

  op::Compress args(const Step& step, const Tensor& inv_freq) const {
    return {.batch = step.batch(),
            .values = values,
            .scores = scores,
            .bias = bias,
            .norm_weight = norm,
            .inv_freq = inv_freq,
            .eps = 1e-6f,
            .state = {.values = state_values, .scores = state_scores},
            .entries = {.rows = entries, .ratio = ratio}};
  }

  std::int64_t ratio, capacity, channels;
  Floats values, scores, bias, norm, state_values, state_scores;
  CacheArray entries;
};

// Everything that attention_inputs writes.
std::vector<std::vector<float>> attention_inputs(Ops& ops, const std::vector<Chunk>& chunks,
                                                 std::int64_t ratio, bool in_parts) {
  const Step step(ops, chunks, kSlots);
  const std::int64_t rows = step.rows(), heads = 20, index_heads = 5;
  const Floats q(ops, {rows, heads, 512}, Random(1).normals(rows * heads * 512));
  const Floats index_q(ops, {rows, index_heads, 128}, Random(2).normals(rows * index_heads * 128));
  std::vector<float> frequencies(32);
  for (std::size_t i = 0; i < 32; ++i)
    frequencies[i] = std::pow(160000.0f, -static_cast<float>(i) / 32);
  const Floats inv_freq(ops, {32}, frequencies);
  const CompressorArrays entry(ops, step, ratio, 512, 10), key(ops, step, 4, 128, 20);
  op::AttentionInputs args{.rows = {.rows = {{{.x = q, .inv_freq = inv_freq}}},
                                    .eps = 1e-6f,
                                    .positions = step.batch().positions},
                           .compressors = {entry.args(step, inv_freq)},
                           .count = 1};
  if (ratio == 4) {
    args.rows.rows[1] = {.x = index_q, .norm = false, .inv_freq = inv_freq};
    args.rows.count = 2;
    args.compressors[1] = key.args(step, inv_freq);
    args.count = 2;
  }
  in_step([&] {
    if (in_parts)
      ops.Ops::attention_inputs(args);
    else
      ops.attention_inputs(args);
  });
  return {q.values(),
          index_q.values(),
          entry.state_values.values(),
          entry.state_scores.values(),
          entry.entries.values(),
          key.state_values.values(),
          key.state_scores.values(),
          key.entries.values()};
}

TEST_F(CudaFused, AttentionInputsAreTheBitsOfTheirParts) {
  const std::vector<Chunk> decode = {{0, 3, 1}, {-1, 0, 1}, {2, 127, 1}, {1, 6, 1}, {-1, 0, 2}};
  const std::vector<Chunk> alone = {{3, 255, 1}};
  const std::vector<Chunk> chunked = {{0, 3, 2}, {-1, 0, 1}, {2, 120, 9}, {1, 7, 1}};
  for (const auto& chunks : {decode, alone, chunked})
    for (const std::int64_t ratio : {4, 128}) {
      const auto found = attention_inputs(gpu(), chunks, ratio, false);
      const auto parts = attention_inputs(gpu(), chunks, ratio, true);
      for (std::size_t i = 0; i < found.size(); ++i) {
        SCOPED_TRACE(fmt::format("{} chunks, ratio {}, array {}", chunks.size(), ratio, i));
        expect_same(found[i], parts[i]);
      }
    }
}

// ---- attend_store ----

TEST_F(CudaFused, AttendStoreAttendsAndStoresAsItsParts) {
  StepLimits limits = roomy_limits();
  limits.rows = 420;
  reserve(limits);
  const std::int64_t n = 512, heads = 20, window = 128;
  const std::vector<Chunk> decode = {{0, 3, 1}, {-1, 0, 1}, {2, 127, 1}, {1, 300, 1}, {-1, 0, 2}};
  const std::vector<Chunk> chunked = {{0, 3, 2}, {-1, 0, 1}, {2, 120, 9}, {1, 7, 1}};
  const std::vector<Chunk> many = {{0, 0, 70}};
  const std::vector<Chunk> several_each = {
      {0, 0, 270}, {-1, 0, 2}, {2, 5, 140}};  // rows of a block
  struct Case {
    std::vector<Chunk> chunks;
    bool has_queries, has_entries;
  };
  for (const Case& c : {Case{decode, false, false},
                        {decode, true, false},
                        {decode, true, true},
                        {chunked, false, false},
                        {chunked, true, true},
                        {many, true, false},
                        {many, true, true},
                        {several_each, true, false},
                        {several_each, true, true}}) {
    SCOPED_TRACE(fmt::format("{} chunks, queries {}, entries {}", c.chunks.size(), c.has_queries,
                             c.has_entries));
    const auto run = [&](bool in_parts) {
      const Step step(gpu(), c.chunks, kSlots);
      const std::int64_t rows = step.rows();
      const Floats q(gpu(), {rows, heads, n}, Random(31).normals(rows * heads * n));
      const Floats latents(gpu(), {rows, n}, Random(32).normals(rows * n));
      const Floats sinks(gpu(), {heads}, Random(33).normals(heads)), out(gpu(), {rows, heads, n});
      const Floats inv_freq(gpu(), {2}, {1.0f, 0.01f});
      const CacheArray ring(gpu(), {kSlots, window, n}, Random(34).normals(kSlots * window * n));
      const CacheArray pool(gpu(), {step.pool_blocks, n}, Random(35).normals(step.pool_blocks * n));
      op::AttendStore args{.attend = {.batch = step.batch(),
                                      .q = q,
                                      .latents = latents,
                                      .ring = ring,
                                      .entries = {.rows = pool, .ratio = 128},
                                      .selected = {},
                                      .sinks = sinks,
                                      .inv_freq = inv_freq,
                                      .out = out}};
      if (!c.has_entries) args.attend.entries = {};
      if (c.has_queries)
        args.queries = {.rows = {{{.x = q, .inv_freq = inv_freq}}},
                        .eps = 1e-6f,
                        .positions = step.batch().positions};
      in_step([&] {
        if (in_parts)
          gpu().Ops::attend_store(args);
        else
          gpu().attend_store(args);
      });
      return std::pair(out.values(), ring.values());
    };
    const auto [out, ring] = run(false);
    const auto [expected_out, expected_ring] = run(true);
    expect_same(out, expected_out);
    expect_same(ring, expected_ring);
  }
}

}  // namespace
}  // namespace quatrain::testing

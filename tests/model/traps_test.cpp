// SPDX-License-Identifier: Apache-2.0
// Known mistakes of other implementations where the whole model shows them: wiring, order of
// operations, what may change when an input changes. Numbered as in the specification's list of
// traps; the ones that one operation shows are in tests/ops.
#include "support/loaded_model.h"
#include "support/op_harness.h"
#include "support/reference_model.h"
#include "support/spy_ops.h"

namespace quatrain::testing {
namespace {

EngineOptions options(std::int64_t context = 640) {
  EngineOptions o;
  o.max_model_len = context;
  o.max_num_batched_tokens = 640;
  o.max_logit_rows = 640;
  return o;
}

TinyShape layers(std::vector<std::int64_t> ratios) {
  TinyShape shape;
  shape.ratios = std::move(ratios);
  return shape;
}

// A model whose operations are watched.
struct Watched {
  explicit Watched(const RandomModel& model, EngineOptions o = options())
      : cpu(1), spy(cpu), loaded(model.write(), o, spy) {}

  std::vector<float> logits(const std::vector<std::int32_t>& ids,
                            std::vector<std::int64_t> chunks = {640}) {
    return loaded.logits(ids, std::move(chunks));
  }
  /// Runs tokens at positions that nothing came before.
  void run_at(std::int64_t position, const std::vector<std::int32_t>& ids) {
    const SequenceChunk chunk{.slot = 0, .position = position, .tokens = ids};
    loaded.runner->step({&chunk, 1});
  }

  CpuOps cpu;
  SpyOps spy;
  LoadedModel loaded;
};

std::vector<float> values_of(const Tensor& t) { return {t.f32(), t.f32() + t.elements()}; }

std::vector<float> row(const std::vector<float>& logits, std::size_t r, std::size_t vocab) {
  return rows_of(logits, static_cast<std::int64_t>(r), 1, static_cast<std::int64_t>(vocab));
}

// Window-only attention is relative: with the rotation undone at the query's position, the logits
// depend on the last 128 tokens alone, not on where they stand.
TEST(Traps, Trap03OutputIsRotatedBackAtTheQuery) {
  const RandomModel model(layers({0}), 2);
  LoadedModel loaded(model.write(), options(), 1);
  Random random(1);
  std::vector<std::int32_t> tail = random.integers(128, 61), longer = random.integers(372, 61);
  longer.insert(longer.end(), tail.begin(), tail.end());
  const std::vector<float> near = loaded.logits(tail, {640});
  const std::vector<float> far = loaded.logits(longer, {640});
  EXPECT_LE(max_difference(row(near, 127, 61), row(far, 499, 61)), 2e-4f);

  Watched watched(model);
  std::vector<std::int32_t> positions;
  bool undone = false;
  watched.spy.on_attend = [&](const op::Attend& a) {
    undone = static_cast<bool>(a.inv_freq);
    const Tensor& at = a.batch.positions;
    positions.assign(at.i32(), at.i32() + at.elements());
  };
  watched.run_at(500, {1, 2, 3});
  EXPECT_TRUE(undone);
  EXPECT_EQ(positions, (std::vector<std::int32_t>{500, 501, 502}));
}

TEST(Traps, Trap04EachLayerKindHasItsOwnFrequencies) {
  const RandomModel model(layers({0, 4, 128}), 3);
  Watched watched(model, options(4000));
  std::map<std::int64_t, int> rotations;
  const std::vector<float> main = reference::frequencies(8, 10000, false);
  const std::vector<float> compress = reference::frequencies(8, 160000, true);
  EXPECT_NE(main, compress);
  const auto check = [&](const Tensor& inv_freq) {
    const std::int64_t layer = watched.spy.current_layer();
    expect_close(values_of(inv_freq), reference::to_double(layer == 0 ? main : compress), 1e-7);
    ++rotations[layer];
  };
  watched.spy.on_rope = [&](const op::Rope& a) { check(a.inv_freq); };
  watched.spy.on_compress = [&](const op::Compress& a) { check(a.inv_freq); };
  watched.spy.on_index_select = [&](const op::IndexSelect& a) { check(a.inv_freq); };
  watched.spy.on_attend = [&](const op::Attend& a) { check(a.inv_freq); };
  // The queries of layers 0 and 1 at a position where the two differ widely.
  std::vector<float> before, after;
  watched.spy.after_rms_norm = [&](const op::RmsNorm& a) {
    if (!a.weight) before = values_of(a.x);
  };
  watched.spy.after_rope = [&](const op::Rope& a) {
    if (a.inverse || a.x.dim(1) != model.shape().heads) return;
    after = values_of(a.x);
    for (std::int64_t h = 0; h < 4; ++h) {
      reference::Row q = reference::to_double(rows_of(before, h, 1, 32));
      reference::rotate(q, watched.spy.current_layer() == 0 ? main : compress, 3500);
      expect_close(rows_of(after, h, 1, 32), q, 1e-5);
    }
  };
  watched.run_at(3500, {7});
  EXPECT_EQ(rotations[0], 3) << "q, kv, output";
  EXPECT_EQ(rotations[1], 6) << "q, kv, entry, index key, index query, output";
  EXPECT_EQ(rotations[2], 4) << "q, kv, entry, output";
}

TEST(Traps, Trap05NoYarnOnWindowLayersAndMtp) {
  TinyShape shape = layers({0, 4});
  shape.mtp_layers = 1;
  const RandomModel model(shape, 3);
  EngineOptions o = options();
  o.mtp = true;
  Watched watched(model, o);
  int seen = 0;
  const auto check = [&](const Tensor& inv_freq) {
    if (watched.spy.current_layer() == 1) return;
    expect_close(values_of(inv_freq), reference::to_double(reference::frequencies(8, 10000, false)),
                 1e-7);
    seen += watched.spy.current_layer() == 2 ? 1 : 0;
  };
  watched.spy.on_rope = [&](const op::Rope& a) { check(a.inv_freq); };
  watched.spy.on_attend = [&](const op::Attend& a) { check(a.inv_freq); };
  watched.run_at(0, {1, 2});
  const std::vector<std::int32_t> next = {2, 3};
  watched.loaded.runner->step_mtp(0, next);
  EXPECT_EQ(seen, 3);
}

TEST(Traps, Trap09WindowReachesBack127Tokens) {
  const RandomModel model(layers({0}), 4);
  LoadedModel loaded(model.write(), options(), 1);
  const std::vector<std::int32_t> ids = Random(2).integers(300, 61);
  const std::vector<float> base = loaded.logits(ids, {640});
  const std::size_t t = 250;
  const auto changed = [&](std::size_t at, const std::vector<std::int64_t>& chunks) {
    std::vector<std::int32_t> other = ids;
    other[at] = (other[at] + 1) % 61;
    return max_difference(row(loaded.logits(other, chunks), t, 61), row(base, t, 61));
  };
  for (const std::vector<std::int64_t>& chunks : {std::vector<std::int64_t>{640}, {100, 1, 77}}) {
    EXPECT_GT(changed(t - 127, chunks), 1e-5f);
    EXPECT_EQ(changed(t - 128, chunks), 0);
    EXPECT_EQ(changed(t + 1, chunks), 0);
  }
}

TEST(Traps, Trap11WindowAndEntriesShareASoftmaxInTheModel) {
  for (const std::int64_t ratio : {4, 128}) {
    const RandomModel model(layers({ratio}), 5);
    LoadedModel loaded(model.write(), options(), 1);
    const std::vector<std::int32_t> ids = Random(3).integers(270, 61);
    const auto expected = reference::Model(model).run(ids).logits;
    expect_close(row(loaded.logits(ids, {640}), 269, 61), expected[269], 2e-4);
  }
}

TEST(Traps, Trap14LaterTokensOfAChunkDoNotReachEarlierOnes) {
  const RandomModel model(layers({0, 4, 128}), 6);
  LoadedModel loaded(model.write(), options(), 1);
  std::vector<std::int32_t> ids = Random(4).integers(400, 61);
  const std::vector<float> base = loaded.logits(ids, {640});
  for (const std::size_t from : {1u, 127u, 128u, 255u, 256u, 399u}) {
    std::vector<std::int32_t> other = ids;
    for (std::size_t t = from; t < 400; ++t) other[t] = (other[t] + 1) % 61;
    const std::vector<float> changed = loaded.logits(other, {640});
    const auto rows = static_cast<std::int64_t>(from);
    EXPECT_TRUE(same_bits(rows_of(changed, 0, rows, 61), rows_of(base, 0, rows, 61))) << from;
  }
}

TEST(Traps, Trap17And19OddChunksAndSingleTokensKeepTheCompressors) {
  const RandomModel model(layers({4, 128}), 7);
  LoadedModel loaded(model.write(), options(), 1);
  const std::vector<std::int32_t> ids = Random(5).integers(140, 61);
  const std::vector<float> whole = loaded.logits(ids, {640});
  for (const std::vector<std::int64_t>& chunks :
       {std::vector<std::int64_t>{4, 1}, {5, 1}, {8, 1}, {9, 1}, {3}, {5}, {7, 2}}) {
    loaded.runner->cache().poison(loaded.check);
    EXPECT_LE(max_difference(loaded.logits(ids, chunks), whole), 1e-5f) << chunks[0];
  }
}

TEST(Traps, Trap20IndexerTakesQueriesFromQrAndWeightsFromX) {
  const RandomModel model(layers({4}), 8);
  Watched watched(model);
  std::map<std::string, std::vector<float>> inputs;
  std::vector<std::vector<float>> weightless_norms;
  watched.spy.on_linear = [&](const op::Linear& a) { inputs[a.w->name] = values_of(a.x); };
  watched.spy.after_rms_norm = [&](const op::RmsNorm& a) {
    if (!a.weight) weightless_norms.push_back(values_of(a.x));
  };
  watched.run_at(0, {5, 6, 7, 8, 9});
  const std::string attn = "layers.0.attn.";
  EXPECT_EQ(inputs[attn + "indexer.wq_b"], inputs[attn + "wq_b"]) << "qr, after q_norm";
  EXPECT_EQ(inputs[attn + "indexer.weights_proj"], inputs[attn + "wq_a"]) << "x";
  EXPECT_EQ(inputs[attn + "indexer.compressor.wkv"], inputs[attn + "wq_a"]);
  EXPECT_EQ(inputs[attn + "compressor.wgate"], inputs[attn + "wq_a"]);
  EXPECT_EQ(weightless_norms.size(), 1u) << "only the attention's queries are normalised per head";
}

TEST(Traps, Trap22RotationComesBeforeHadamard) {
  const RandomModel model(layers({4}), 8);
  EngineOptions o = options();
  o.numerics.sim = true;
  Watched watched(model, o);
  std::vector<const void*> rotated;
  int rounded = 0;
  watched.spy.on_rope = [&](const op::Rope& a) { rotated.push_back(a.x.data()); };
  watched.spy.on_round_to_grid = [&](const op::RoundToGrid& a) {
    if (a.grid != CacheGrid::kIndex) return;
    ++rounded;
    EXPECT_EQ(rotated.back(), a.x.data()) << "queries are rotated first";
    EXPECT_EQ(a.x.dim(1), model.shape().index_heads);
  };
  std::vector<CacheGrid> key_grids;
  watched.spy.on_compress = [&](const op::Compress& a) { key_grids.push_back(a.grid); };
  watched.run_at(0, {1, 2, 3, 4});
  EXPECT_EQ(rounded, 1);
  EXPECT_EQ(key_grids, (std::vector<CacheGrid>{CacheGrid::kLatent, CacheGrid::kIndex}))
      << "keys too, by their compressor";
}

TEST(Traps, Trap24FewerEntriesThanTopKReadsNothingElse) {
  const RandomModel model(layers({4}), 9);
  LoadedModel loaded(model.write(), options(), 1);
  const std::vector<std::int32_t> ids = Random(5).integers(20, 61);
  loaded.runner->cache().poison(loaded.check);
  for (const float v : loaded.logits(ids, {640})) ASSERT_TRUE(std::isfinite(v));
}

TEST(Traps, Trap31HeadCollapsesThenNormalises) {
  const RandomModel model(layers({0}), 10);
  LoadedModel loaded(model.write(), options(), 1);
  const std::vector<std::int32_t> ids = Random(6).integers(5, 61);
  const std::vector<float> logits = loaded.logits(ids, {640});
  const auto vec = [&](const char* name) { return reference::to_double(model.floats(name)); };
  for (std::int64_t t = 0; t < 5; ++t) {
    const reference::Row x = reference::to_double(rows_of(loaded.tap.streams[0], t, 1, 4 * 48));
    reference::Row pre = reference::mixes(x, vec("hc_head_fn"), 1e-6);
    for (std::size_t j = 0; j < 4; ++j)
      pre[j] = reference::sigmoid(pre[j] * vec("hc_head_scale")[0] + vec("hc_head_base")[j]) + 1e-6;
    const reference::Row h =
        reference::rms_norm(reference::collapse(x, pre), vec("norm.weight"), 1e-6);
    const reference::Row head = vec("head.weight");
    reference::Row expected;
    for (std::size_t v = 0; v < 61; ++v)
      expected.push_back(reference::inner(std::span(head).subspan(v * 48, 48), h));
    expect_close(row(logits, static_cast<std::size_t>(t), 61), expected, 1e-5);
  }
}

TEST(Traps, Trap33SharedExpertIsClampedToo) {
  TinyShape shape = layers({0});
  shape.swiglu_limit = 0.75;
  const RandomModel model(shape, 11);
  Watched watched(model);
  int shared = 0, routed = 0, beyond = 0;
  watched.spy.on_swiglu = [&](const op::SwiGlu& a) {
    ++shared;
    EXPECT_EQ(a.limit, 0.75f);
    for (const float g : values_of(a.gate)) beyond += g > 0.75f;
  };
  watched.spy.after_swiglu = [&](const op::SwiGlu& a) {
    for (const float v : values_of(a.out)) EXPECT_LE(std::abs(v), 0.75f * 0.75f);
  };
  watched.spy.on_experts = [&](const op::Experts& a) {
    ++routed;
    EXPECT_EQ(a.limit, 0.75f);
  };
  watched.run_at(0, {1, 2, 3});
  EXPECT_EQ(shared, 1);
  EXPECT_EQ(routed, 1);
  EXPECT_GT(beyond, 0) << "the data must reach the clamp";
}

TEST(Traps, Trap34SharedExpertIsAddedOnceWithWeightOne) {
  const RandomModel model(layers({0}), 12);
  Watched watched(model);
  std::vector<float> shared, before;
  watched.spy.after_linear = [&](const op::Linear& a) {
    if (a.w->name == "layers.0.ffn.shared_experts.w2") shared = values_of(a.out);
  };
  watched.spy.on_experts = [&](const op::Experts& a) {
    before = values_of(a.out);
    for (std::int64_t t = 0; t < a.weights.dim(0); ++t)
      EXPECT_NEAR(a.weights.f32()[2 * t] + a.weights.f32()[2 * t + 1], 1.5, 1e-6);
  };
  watched.run_at(0, {1, 2, 3});
  EXPECT_FALSE(shared.empty());
  EXPECT_TRUE(same_bits(before, shared));
}

// All tokens look alike; only the hash table tells them apart.
TEST(Traps, Trap36HashLayersFollowTheTokenIds) {
  RandomModel model(layers({0, 128}), 13);
  std::vector<float>& table = model.floats("embed.weight");
  for (std::size_t id = 1; id < 61; ++id) std::copy_n(table.begin(), 48, &table[id * 48]);
  const std::vector<std::int64_t> experts = model.ints("layers.0.ffn.gate.tid2eid");
  LoadedModel loaded(model.write(), options(), 1);
  const std::vector<std::int32_t> ids = Random(7).integers(90, 61);
  loaded.logits(ids, {7, 1, 1, 30});
  for (std::size_t t = 0; t < ids.size(); ++t)
    for (std::size_t i = 0; i < 2; ++i)
      EXPECT_EQ(loaded.tap.experts[0][2 * t + i],
                experts[static_cast<std::size_t>(ids[t]) * 2 + i]);
}

TEST(Traps, Trap46GroupsOfHeadsAreContiguous) {
  TinyShape shape = layers({0});
  shape.heads = 16;
  shape.o_groups = 2;
  const RandomModel model(shape, 14);
  Watched watched(model);
  std::vector<float> clean, dirty;
  for (const bool perturb : {false, true}) {
    watched.spy.on_grouped_linear = [&](const op::GroupedLinear& a) {
      EXPECT_EQ(a.x.dim(1), 2);
      EXPECT_EQ(a.x.dim(2), 8 * 32);
      if (perturb)  // head 9 of token 1
        for (std::int64_t d = 0; d < 32; ++d) a.x.f32()[(16 + 9) * 32 + d] += 1;
    };
    watched.spy.after_grouped_linear = [&](const op::GroupedLinear& a) {
      (perturb ? dirty : clean) = values_of(a.out);
    };
    watched.run_at(0, {1, 2, 3});
  }
  for (std::size_t i = 0; i < clean.size(); ++i) {
    const bool in_group_1_of_token_1 = i / 12 == 3;  // [3 tokens][2 groups][12]
    EXPECT_EQ(clean[i] != dirty[i], in_group_1_of_token_1) << i;
  }
}

TEST(Traps, Trap47QueriesAreNormalisedPerHeadOverAllDims) {
  const RandomModel model(layers({0}), 15);
  Watched watched(model);
  int seen = 0;
  watched.spy.after_rms_norm = [&](const op::RmsNorm& a) {
    if (a.weight) return;
    ++seen;
    EXPECT_EQ(a.x.dim(1), model.shape().heads);
    EXPECT_EQ(a.x.dim(2), model.shape().head_dim);
    for (std::int64_t h = 0; h < 3 * 4; ++h)
      EXPECT_NEAR(reference::mean_square(reference::to_double(rows_of(values_of(a.out), h, 1, 32))),
                  1, 1e-4);
  };
  watched.run_at(0, {1, 2, 3});
  EXPECT_EQ(seen, 1);
}

TEST(Traps, Trap48LatentNormCoversAllDimsAndTheGridLeavesTheRotaryOnes) {
  const RandomModel model(layers({0}), 16);
  EngineOptions o = options();
  o.numerics.sim = true;
  Watched watched(model, o);
  const reference::Row weight = reference::to_double(model.floats("layers.0.attn.kv_norm.weight"));
  std::vector<float> raw, before;
  watched.spy.after_linear = [&](const op::Linear& a) {
    if (a.w->name == "layers.0.attn.wkv") raw = values_of(a.out);
  };
  watched.spy.after_rms_norm = [&](const op::RmsNorm& a) {
    if (!a.weight || a.x.dim(1) != 32) return;
    expect_close(rows_of(values_of(a.out), 1, 1, 32),
                 reference::rms_norm(reference::to_double(rows_of(raw, 1, 1, 32)), weight, 1e-6),
                 1e-5);
  };
  watched.spy.on_round_to_grid = [&](const op::RoundToGrid& a) { before = values_of(a.x); };
  int changed = 0;
  watched.spy.after_round_to_grid = [&](const op::RoundToGrid& a) {
    const std::vector<float> now = values_of(a.x);
    for (std::size_t i = 0; i < now.size(); ++i)
      if (i % 32 >= 24)
        EXPECT_EQ(now[i], before[i]) << "rotary dim " << i % 32;
      else
        changed += now[i] != before[i];
  };
  watched.run_at(40, {1, 2, 3});
  EXPECT_GT(changed, 20);
}

TEST(Traps, Trap49RingIsWrittenAfterAttention) {
  const RandomModel model(layers({0}), 17);
  Watched watched(model);
  std::vector<std::string> order;
  watched.spy.on_attend = [&](const op::Attend&) { order.push_back("attend"); };
  watched.spy.on_kv_store = [&](const op::KvStore&) { order.push_back("kv_store"); };
  const std::vector<std::int32_t> ids = Random(8).integers(400, 61);
  const std::vector<float> whole = watched.logits(ids);
  EXPECT_EQ(order, (std::vector<std::string>{"attend", "kv_store"}));
  // Chunks as long as the ring and longer overwrite all that their own early queries still need.
  EXPECT_LE(max_difference(watched.logits(ids, {130, 129, 141}), whole), 1e-5f);
}

TEST(Traps, Trap59LogitsKeepFullPrecision) {
  RandomModel model(layers({0}), 18);
  std::vector<float>& head = model.floats("head.weight");
  for (std::size_t d = 0; d < 48; ++d) head[48 + d] = head[d] * (1 + 0x1p-12f);
  Watched watched(model);
  watched.spy.on_linear = [&](const op::Linear& a) {
    if (a.w->name == "head") {
      EXPECT_EQ(a.out.dtype(), DType::kF32);
    }
  };
  const std::vector<float> logits = watched.logits({1, 2, 3});
  for (std::size_t t = 0; t < 3; ++t) {
    EXPECT_NE(logits[t * 61], logits[t * 61 + 1]) << "closer than BF16 can tell apart";
    EXPECT_NEAR(logits[t * 61 + 1] / logits[t * 61], 1 + 0x1p-12, 1e-6);
  }
}

}  // namespace
}  // namespace quatrain::testing

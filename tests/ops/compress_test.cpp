// SPDX-License-Identifier: Apache-2.0
// compress against plain double precision: entries and open windows of several sequences, whatever
// steps their tokens arrive in.
#include "support/op_harness.h"
#include "support/reference_math.h"

namespace quatrain::testing {
namespace {

constexpr std::int64_t kSlots = 3;
constexpr float kEps = 1e-6f;

struct Layer {
  std::int64_t ratio, width;
  CacheGrid grid = CacheGrid::kNone;

  std::int64_t channels() const { return ratio == 4 ? 2 * width : width; }
  std::int64_t capacity() const { return ratio == 4 ? 8 : ratio; }
  std::vector<float> value(std::int64_t slot, std::int64_t p) const {
    return Random(static_cast<unsigned>(10000 * slot + p)).normals(channels());
  }
  std::vector<float> score(std::int64_t slot, std::int64_t p) const {
    return Random(static_cast<unsigned>(500000 + 10000 * slot + p)).normals(channels(), 3);
  }
  std::vector<float> bias() const { return Random(1).normals(ratio * channels(), 2); }
  std::vector<float> norm() const { return Random(2).normals(width); }
  std::vector<float> inv_freq() const { return {1.0f, 0.013f, 0.0007f}; }
};

// The caches of one layer, poisoned, and the steps that fill them.
class Caches {
 public:
  Caches(Ops& ops, Layer layer)
      : ops_(ops),
        layer_(layer),
        layout_(ops, {{0, 0, 1}}, kSlots),
        entries(ops, {layout_.pool_blocks * (128 / layer.ratio), layer.width}),
        values(ops, {kSlots, layer.capacity(), layer.channels()}),
        scores(ops, {kSlots, layer.capacity(), layer.channels()}) {}

  void run(const std::vector<Chunk>& chunks) {
    const Step step(ops_, chunks, kSlots);
    const std::int64_t rows = step.rows();
    std::vector<float> k, s;
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t slot = step.slot[static_cast<std::size_t>(r)];
      const std::int64_t position = step.position[static_cast<std::size_t>(r)];
      std::vector<float> nan(static_cast<std::size_t>(layer_.channels()), kNaN);
      const std::vector<float> value = slot < 0 ? nan : layer_.value(slot, position);
      const std::vector<float> score = slot < 0 ? nan : layer_.score(slot, position);
      k.insert(k.end(), value.begin(), value.end());
      s.insert(s.end(), score.begin(), score.end());
    }
    const Floats k_in(ops_, {rows, layer_.channels()}, k), s_in(ops_, {rows, layer_.channels()}, s);
    const Floats bias(ops_, {layer_.ratio, layer_.channels()}, layer_.bias());
    const Floats norm(ops_, {layer_.width}, layer_.norm()), freq(ops_, {3}, layer_.inv_freq());
    in_step([&] {
      ops_.compress({.batch = step.batch(),
                     .values = k_in,
                     .scores = s_in,
                     .bias = bias,
                     .norm_weight = norm,
                     .inv_freq = freq,
                     .eps = kEps,
                     .grid = layer_.grid,
                     .state = {.values = values, .scores = scores},
                     .entries = {.rows = entries, .ratio = layer_.ratio}});
    });
  }

  std::vector<float> entry(std::int64_t slot, std::int64_t w) const {
    return rows_of(entries.values(), layout_.pool_row(slot, w, layer_.ratio), 1, layer_.width);
  }
  std::vector<float> all() const {
    std::vector<float> out = entries.values();
    for (const Floats* state : {&values, &scores})
      for (const float v : state->values()) out.push_back(v);
    return out;
  }

 private:
  Ops& ops_;
  Layer layer_;
  Step layout_;

 public:
  Floats entries, values, scores;
};

// Entries before rounding to a grid.
std::vector<reference::Row> expected_entries(const Layer& layer, std::int64_t slot,
                                             std::int64_t tokens) {
  const std::vector<float> bias = layer.bias();
  std::vector<reference::Row> values, scores, out;
  for (std::int64_t p = 0; p < tokens; ++p) {
    values.push_back(reference::to_double(layer.value(slot, p)));
    scores.push_back(reference::to_double(layer.score(slot, p)));
    for (std::int64_t c = 0; c < layer.channels(); ++c)
      scores.back()[static_cast<std::size_t>(c)] +=
          bias[static_cast<std::size_t>(p % layer.ratio * layer.channels() + c)];
  }
  for (std::int64_t w = 0; w < tokens / layer.ratio; ++w) {
    reference::Row entry =
        reference::rms_norm(reference::pool_window(values, scores, w, layer.ratio,
                                                   static_cast<std::size_t>(layer.width)),
                            reference::to_double(layer.norm()), kEps);
    reference::rotate(entry, layer.inv_freq(), static_cast<double>(w * layer.ratio));
    out.push_back(entry);
  }
  return out;
}

// Lengths of the three sequences and the steps that bring them.
const std::vector<std::vector<Chunk>> kSteps = {
    {{0, 0, 1}, {-1, 0, 2}, {2, 0, 7}},
    {{2, 7, 1}, {0, 1, 2}, {-1, 0, 1}, {1, 0, 130}},
    {{-1, 0, 1}, {1, 130, 1}, {2, 8, 121}, {0, 3, 1}},
    {{2, 129, 127}, {0, 4, 5}},
    {{0, 9, 3}, {2, 256, 1}, {-1, 0, 4}, {1, 131, 129}},
};
constexpr std::int64_t kLengths[] = {12, 260, 257};

class Compress : public ::testing::TestWithParam<Layer> {};

TEST_P(Compress, EntriesAreThePooledWindows) {
  const Layer layer = GetParam();
  CpuOps ops(2);
  Caches caches(ops, layer);
  for (const auto& step : kSteps) caches.run(step);
  std::size_t closed = 0;
  for (std::int64_t slot = 0; slot < kSlots; ++slot) {
    const auto expected = expected_entries(layer, slot, kLengths[slot]);
    for (std::size_t w = 0; w < expected.size(); ++w)
      expect_close(caches.entry(slot, static_cast<std::int64_t>(w)), expected[w], 2e-5);
    closed += expected.size();
  }
  // Whatever no window closed on is still poison.
  const std::vector<float> all = caches.entries.values();
  const auto written =
      std::count_if(all.begin(), all.end(), [](float v) { return !std::isnan(v); });
  EXPECT_EQ(written, static_cast<std::ptrdiff_t>(closed) * layer.width);
}

TEST_P(Compress, StateHoldsTheLastTokens) {
  const Layer layer = GetParam();
  CpuOps ops(2);
  Caches caches(ops, layer);
  for (const auto& step : kSteps) caches.run(step);
  const std::vector<float> values = caches.values.values(), scores = caches.scores.values();
  const std::vector<float> bias = layer.bias();
  for (std::int64_t slot = 0; slot < kSlots; ++slot)
    for (std::int64_t p = std::max<std::int64_t>(0, kLengths[slot] - layer.capacity());
         p < kLengths[slot]; ++p) {
      const std::int64_t row = slot * layer.capacity() + p % layer.capacity();
      EXPECT_TRUE(same_bits(rows_of(values, row, 1, layer.channels()), layer.value(slot, p)));
      std::vector<float> biased = layer.score(slot, p);
      for (std::int64_t c = 0; c < layer.channels(); ++c)
        biased[static_cast<std::size_t>(c)] +=
            bias[static_cast<std::size_t>(p % layer.ratio * layer.channels() + c)];
      EXPECT_TRUE(same_bits(rows_of(scores, row, 1, layer.channels()), biased));
    }
}

TEST_P(Compress, KeepsItsBitsForAnyThreadsStepsAndBatchMates) {
  const Layer layer = GetParam();
  CpuOps one(1);
  Caches first(one, layer);
  for (const auto& step : kSteps) first.run(step);
  for (const int threads : {2, 3, 7}) {
    CpuOps many(threads);
    Caches again(many, layer);
    for (const auto& step : kSteps) again.run(step);
    EXPECT_TRUE(same_bits(again.all(), first.all())) << threads << " threads";
  }
  CpuOps two(2);
  Caches whole(two, layer), single(two, layer);
  whole.run({{0, 0, 12}, {1, 0, 260}, {2, 0, 257}});
  EXPECT_TRUE(same_bits(whole.all(), first.all())) << "in one step";
  for (std::int64_t slot = 0; slot < kSlots; ++slot)
    for (std::int64_t p = 0; p < kLengths[slot]; ++p) single.run({{slot, p, 1}});
  EXPECT_TRUE(same_bits(single.all(), first.all())) << "token by token";
}

INSTANTIATE_TEST_SUITE_P(Layers, Compress, ::testing::Values(Layer{4, 11}, Layer{128, 11}),
                         [](const auto& test) { return fmt::format("ratio{}", test.param.ratio); });

TEST(CompressGrid, EntriesLieOnTheGridOfTheirCache) {
  for (const Layer& layer : {Layer{4, 70, CacheGrid::kLatent}, Layer{4, 64, CacheGrid::kIndex},
                             Layer{128, 70, CacheGrid::kLatent}}) {
    CpuOps ops(2);
    Caches caches(ops, layer);
    caches.run({{1, 0, 257}});
    const auto expected = expected_entries(layer, 1, 257);
    std::int64_t different = 0, count = 0;
    for (std::size_t w = 0; w < expected.size(); ++w) {
      reference::Row row = expected[w];
      if (layer.grid == CacheGrid::kLatent)
        reference::latent_grid(row, 6);
      else
        reference::index_grid(row);
      const std::vector<float> found = caches.entry(1, static_cast<std::int64_t>(w));
      for (std::size_t d = 0; d < row.size(); ++d)
        different += std::abs(found[d] - row[d]) > 2e-5 * std::max(1.0, std::abs(row[d]));
      count += layer.width;
    }
    EXPECT_LE(different, count / 500) << "only values next to a rounding step may differ";
  }
}

}  // namespace
}  // namespace quatrain::testing

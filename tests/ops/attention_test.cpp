// SPDX-License-Identifier: Apache-2.0
// attend, kv_store and index_select against plain double precision, on steps of several sequences
// at different positions, with poison wherever nothing may be read.
#include <map>
#include <optional>

#include "support/op_harness.h"
#include "support/reference_math.h"

namespace quatrain::testing {
namespace {

constexpr std::int64_t kSlots = 4;

// Several sequences, two of them old, and padding before, between and after.
const std::vector<Chunk> kMixed = {{-1, 0, 2},  {2, 0, 5},    {-1, 0, 1}, {0, 300, 3},
                                   {3, 130, 1}, {1, 120, 20}, {-1, 0, 1}};

// Data of every sequence by position and entry, whatever part of it a step brings or finds.
struct World {
  std::int64_t heads, width, window, ratio, topk;

  std::vector<float> latent(std::int64_t slot, std::int64_t position) const {
    return Random(static_cast<unsigned>(1000 + 5000 * slot + position)).normals(width);
  }
  std::vector<float> query(std::int64_t slot, std::int64_t position) const {
    return Random(static_cast<unsigned>(90000 + 5000 * slot + position)).normals(heads * width, 2);
  }
  std::vector<float> entry(std::int64_t slot, std::int64_t w) const {
    return Random(static_cast<unsigned>(500000 + 5000 * slot + w)).normals(width);
  }
  std::vector<float> sinks() const { return Random(11).normals(heads, 2); }
  // An ascending choice of entries that depends on the row alone, or all of them.
  std::vector<std::int64_t> chosen(std::int64_t slot, std::int64_t position) const {
    std::vector<std::int64_t> out;
    if (ratio == 0) return out;
    const std::int64_t visible = (position + 1) / ratio;
    Random random(static_cast<unsigned>(70000 + 5000 * slot + position));
    for (std::int64_t w = 0; w < visible; ++w) {
      const std::int64_t left = topk - static_cast<std::int64_t>(out.size());
      if (topk == 0 || visible - w <= left || (left > 0 && random.integer(0, 1) == 0))
        out.push_back(w);
    }
    return out;
  }
};

// One attend over `chunks`; NaN in padded rows, in the ring's and the pool's unused rows.
std::vector<float> run_attend(Ops& ops, const World& world, const std::vector<Chunk>& chunks,
                              const std::vector<float>& frequencies = {}) {
  ops.reserve(roomy_limits());
  const Step step(ops, chunks, kSlots);
  const std::int64_t rows = step.rows(), n = world.width, window = world.window;
  std::vector<float> q, latents;
  std::vector<std::int32_t> selected;
  std::vector<float> ring(static_cast<std::size_t>(kSlots * window * n), kNaN);
  const std::int64_t pool_rows = world.ratio ? step.pool_blocks * (128 / world.ratio) : 1;
  std::vector<float> pool(static_cast<std::size_t>(pool_rows * n), kNaN);
  const auto put = [n](std::vector<float>& to, std::int64_t row, const std::vector<float>& from) {
    std::copy(from.begin(), from.end(), to.begin() + row * n);
  };
  for (const Chunk& c : chunks) {
    if (c.slot < 0) continue;
    for (std::int64_t p = std::max<std::int64_t>(0, c.position - window); p < c.position; ++p)
      put(ring, c.slot * window + p % window, world.latent(c.slot, p));
    for (std::int64_t w = 0; world.ratio && w < (c.position + c.count) / world.ratio; ++w)
      put(pool, step.pool_row(c.slot, w, world.ratio), world.entry(c.slot, w));
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t slot = step.slot[static_cast<std::size_t>(r)];
    const std::int64_t position = step.position[static_cast<std::size_t>(r)];
    std::vector<float> row_q(static_cast<std::size_t>(world.heads * n), kNaN);
    std::vector<float> row_latent(static_cast<std::size_t>(n), kNaN);
    std::vector<std::int32_t> row_selected(static_cast<std::size_t>(world.topk), -1);
    if (slot >= 0) {
      row_q = world.query(slot, position);
      row_latent = world.latent(slot, position);
      std::size_t at = 0;
      for (const std::int64_t w : world.chosen(slot, position))
        if (world.topk > 0) row_selected[at++] = static_cast<std::int32_t>(w);
    }
    q.insert(q.end(), row_q.begin(), row_q.end());
    latents.insert(latents.end(), row_latent.begin(), row_latent.end());
    selected.insert(selected.end(), row_selected.begin(), row_selected.end());
  }
  const Floats q_in(ops, {rows, world.heads, n}, q), latents_in(ops, {rows, n}, latents);
  const Floats ring_in(ops, {kSlots, window, n}, ring), pool_in(ops, {pool_rows, n}, pool);
  const Floats sinks(ops, {world.heads}, world.sinks()), out(ops, {rows, world.heads, n});
  std::optional<Ints> selected_in;
  if (world.topk > 0)
    selected_in.emplace(ops, std::initializer_list<std::int64_t>{rows, world.topk}, selected);
  std::optional<Floats> freq;
  if (!frequencies.empty())
    freq.emplace(ops,
                 std::initializer_list<std::int64_t>{static_cast<std::int64_t>(frequencies.size())},
                 frequencies);
  const Tensor none;
  in_step([&] {
    ops.attend({.batch = step.batch(),
                .q = q_in,
                .latents = latents_in,
                .ring = ring_in,
                .entries = {.rows = world.ratio ? pool_in.tensor() : none, .ratio = world.ratio},
                .selected = selected_in ? selected_in->tensor() : none,
                .sinks = sinks,
                .inv_freq = freq ? freq->tensor() : none,
                .out = out});
  });
  return out.values();
}

std::vector<double> expected_row(const World& world, std::int64_t slot, std::int64_t position) {
  std::vector<reference::Row> keys;
  for (std::int64_t p = std::max<std::int64_t>(0, position - world.window + 1); p <= position; ++p)
    keys.push_back(reference::to_double(world.latent(slot, p)));
  for (const std::int64_t w : world.chosen(slot, position))
    keys.push_back(reference::to_double(world.entry(slot, w)));
  std::vector<double> out;
  const std::vector<float> q = world.query(slot, position);
  for (std::int64_t h = 0; h < world.heads; ++h)
    for (const double o : reference::attend(reference::to_double(rows_of(q, h, 1, world.width)),
                                            keys, world.sinks()[static_cast<std::size_t>(h)]))
      out.push_back(o);
  return out;
}

class Attend : public ::testing::TestWithParam<World> {};

TEST_P(Attend, MatchesOneSoftmaxOverAllKeysAndTheSink) {
  const World world = GetParam();
  CpuOps ops(2);
  const std::vector<float> found = run_attend(ops, world, kMixed);
  const Step step(ops, kMixed, kSlots);
  for (std::int64_t r = 0; r < step.rows(); ++r)
    if (step.slot[static_cast<std::size_t>(r)] >= 0)
      expect_close(rows_of(found, r, 1, world.heads * world.width),
                   expected_row(world, step.slot[static_cast<std::size_t>(r)],
                                step.position[static_cast<std::size_t>(r)]),
                   1e-5);
}

TEST_P(Attend, KeepsItsBitsForAnyThreadsAndBatchMates) {
  const World world = GetParam();
  const std::int64_t width = world.heads * world.width;
  CpuOps one(1);
  const std::vector<float> all = run_attend(one, world, kMixed);
  for (const int threads : {2, 3, 7}) {
    CpuOps many(threads);
    const std::vector<float> again = run_attend(many, world, kMixed);
    std::int64_t row = 0;
    for (const Chunk& c : kMixed) {
      if (c.slot >= 0) {
        EXPECT_TRUE(
            same_bits(rows_of(again, row, c.count, width), rows_of(all, row, c.count, width)));
        EXPECT_TRUE(same_bits(run_attend(many, world, {c}), rows_of(all, row, c.count, width)))
            << "sequence " << c.slot << " alone";
      }
      row += c.count;
    }
  }
}

TEST_P(Attend, RotatesTheOutputBackAtTheQuery) {
  const World world = GetParam();
  const std::vector<float> frequencies = {1.0f, 0.01f};
  CpuOps ops(2);
  const std::vector<float> plain = run_attend(ops, world, kMixed);
  const std::vector<float> found = run_attend(ops, world, kMixed, frequencies);
  const Step step(ops, kMixed, kSlots);
  for (std::int64_t r = 0; r < step.rows(); ++r) {
    const auto i = static_cast<std::size_t>(r);
    if (step.slot[i] < 0) continue;
    for (std::int64_t h = r * world.heads; h < (r + 1) * world.heads; ++h) {
      reference::Row row = reference::to_double(rows_of(plain, h, 1, world.width));
      reference::rotate(row, frequencies, step.position[i], -1);
      expect_close(rows_of(found, h, 1, world.width), row, 1e-5);
    }
  }
}

TEST_P(Attend, OneStepOrMany) {
  const World world = GetParam();
  const std::int64_t width = world.heads * world.width;
  CpuOps ops(2);
  const std::vector<float> whole = run_attend(ops, world, {{1, 250, 9}});
  for (std::int64_t i = 0; i < 9; ++i)
    EXPECT_TRUE(same_bits(run_attend(ops, world, {{1, 250 + i, 1}}), rows_of(whole, i, 1, width)));
}

INSTANTIATE_TEST_SUITE_P(Layers, Attend,
                         ::testing::Values(World{3, 37, 128, 0, 0}, World{2, 16, 7, 0, 0},
                                           World{3, 37, 128, 128, 0}, World{3, 24, 128, 4, 6},
                                           World{1, 5, 33, 4, 64}),
                         [](const auto& test) {
                           return fmt::format("window{}_ratio{}_topk{}", test.param.window,
                                              test.param.ratio, test.param.topk);
                         });

TEST(KvStore, KeepsTheLastWindowOfEachSequence) {
  const std::int64_t window = 6, n = 5;
  const std::vector<Chunk> chunks = {{-1, 0, 1}, {3, 0, 2},  {-1, 0, 3}, {0, 17, 9},
                                     {2, 4, 6},  {1, 11, 1}, {-1, 0, 2}};
  const auto run = [&](int threads) {
    CpuOps ops(threads);
    const Step step(ops, chunks, kSlots);
    std::vector<float> latents;
    for (std::int64_t r = 0; r < step.rows(); ++r)
      for (std::int64_t d = 0; d < n; ++d)
        latents.push_back(step.slot[static_cast<std::size_t>(r)] < 0
                              ? kNaN
                              : static_cast<float>(10000 * step.slot[static_cast<std::size_t>(r)] +
                                                   10 * step.position[static_cast<std::size_t>(r)] +
                                                   d));
    const Floats in(ops, {step.rows(), n}, latents);
    const Floats ring(ops, {kSlots, window, n},
                      std::vector<float>(static_cast<std::size_t>(kSlots * window * n), -1));
    in_step([&] { ops.kv_store({.batch = step.batch(), .latents = in, .ring = ring}); });
    return ring.values();
  };
  std::vector<float> expected(static_cast<std::size_t>(kSlots * window * n), -1);
  for (const Chunk& c : chunks)
    for (std::int64_t p = std::max(c.position, c.position + c.count - window);
         c.slot >= 0 && p < c.position + c.count; ++p)
      for (std::int64_t d = 0; d < n; ++d)
        expected[static_cast<std::size_t>((c.slot * window + p % window) * n + d)] =
            static_cast<float>(10000 * c.slot + 10 * p + d);
  for (const int threads : {1, 2, 3, 7}) EXPECT_EQ(run(threads), expected) << threads;
}

// ---- index_select ----

struct IndexWorld {
  std::int64_t heads, width, topk;
  std::vector<float> key(std::int64_t slot, std::int64_t w) const {
    return Random(static_cast<unsigned>(300000 + 5000 * slot + w)).normals(width);
  }
  std::vector<float> query(std::int64_t slot, std::int64_t position) const {
    return Random(static_cast<unsigned>(5000 * slot + position)).normals(heads * width);
  }
  std::vector<float> weights(std::int64_t slot, std::int64_t position) const {  // of either sign
    return Random(static_cast<unsigned>(800000 + 5000 * slot + position)).normals(heads);
  }
};

std::vector<std::int32_t> run_select(Ops& ops, const IndexWorld& world,
                                     const std::vector<Chunk>& chunks, bool equal_keys = false) {
  ops.reserve(roomy_limits());
  const Step step(ops, chunks, kSlots);
  const std::int64_t rows = step.rows(), n = world.width;
  std::vector<float> pool(static_cast<std::size_t>(step.pool_blocks * 32 * n), kNaN);
  for (const Chunk& c : chunks)
    for (std::int64_t w = 0; c.slot >= 0 && w < (c.position + c.count) / 4; ++w) {
      const std::vector<float> key = world.key(c.slot, equal_keys ? 0 : w);
      std::copy(key.begin(), key.end(), pool.begin() + step.pool_row(c.slot, w, 4) * n);
    }
  std::vector<float> q, weights;
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t slot = step.slot[static_cast<std::size_t>(r)];
    const std::int64_t position = step.position[static_cast<std::size_t>(r)];
    const bool padding = slot < 0;
    for (std::int64_t i = 0; i < world.heads * n; ++i)
      q.push_back(padding ? kNaN : world.query(slot, position)[static_cast<std::size_t>(i)]);
    for (std::int64_t i = 0; i < world.heads; ++i)
      weights.push_back(padding ? kNaN
                                : world.weights(slot, position)[static_cast<std::size_t>(i)]);
  }
  const Floats q_in(ops, {rows, world.heads, n}, q), weights_in(ops, {rows, world.heads}, weights);
  const Floats keys(ops, {step.pool_blocks * 32, n}, pool);
  const Ints selected(ops, {rows, world.topk});
  in_step([&] {
    ops.index_select({.batch = step.batch(),
                      .q = q_in,
                      .weights = weights_in,
                      .keys = {.rows = keys, .ratio = 4},
                      .selected = selected});
  });
  return selected.values();
}

TEST(IndexSelect, TakesTheBestScoresInAscendingOrder) {
  for (const IndexWorld& world : {IndexWorld{3, 21, 6}, IndexWorld{5, 16, 64}}) {
    CpuOps ops(2);
    const std::vector<std::int32_t> found = run_select(ops, world, kMixed);
    const Step step(ops, kMixed, kSlots);
    for (std::int64_t r = 0; r < step.rows(); ++r) {
      const std::int64_t slot = step.slot[static_cast<std::size_t>(r)];
      const std::int64_t position = step.position[static_cast<std::size_t>(r)];
      std::vector<std::int32_t> wanted;
      if (slot >= 0) {
        const std::vector<float> flat = world.query(slot, position);
        std::vector<reference::Row> q;
        for (std::int64_t h = 0; h < world.heads; ++h)
          q.push_back(reference::to_double(rows_of(flat, h, 1, world.width)));
        const reference::Row weights = reference::to_double(world.weights(slot, position));
        std::vector<std::pair<double, std::int32_t>> scored;
        for (std::int64_t w = 0; w < (position + 1) / 4; ++w)
          scored.emplace_back(
              -reference::index_score(q, weights, reference::to_double(world.key(slot, w))),
              static_cast<std::int32_t>(w));
        std::sort(scored.begin(), scored.end());
        for (const auto& [score, w] : scored)
          if (static_cast<std::int64_t>(wanted.size()) < world.topk) wanted.push_back(w);
        std::sort(wanted.begin(), wanted.end());
      }
      wanted.resize(static_cast<std::size_t>(world.topk), -1);
      EXPECT_EQ(rows_of(found, r, 1, world.topk), wanted) << "row " << r;
    }
  }
}

TEST(IndexSelect, KeepsItsChoiceForAnyThreadsAndBatchMates) {
  const IndexWorld world{3, 21, 6};
  CpuOps one(1);
  const std::vector<std::int32_t> all = run_select(one, world, kMixed);
  for (const int threads : {2, 3, 7}) {
    CpuOps many(threads);
    EXPECT_EQ(run_select(many, world, kMixed), all);
    std::int64_t row = 0;
    for (const Chunk& c : kMixed) {
      if (c.slot >= 0) {
        EXPECT_EQ(run_select(many, world, {c}), rows_of(all, row, c.count, world.topk));
      }
      row += c.count;
    }
  }
}

TEST(IndexSelect, LowestIndexWinsAmongEquals) {
  CpuOps ops(2);
  const std::vector<std::int32_t> found = run_select(ops, {2, 8, 5}, {{0, 99, 1}}, true);
  EXPECT_EQ(found, (std::vector<std::int32_t>{0, 1, 2, 3, 4}));
}

}  // namespace
}  // namespace quatrain::testing

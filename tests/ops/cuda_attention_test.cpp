// SPDX-License-Identifier: Apache-2.0
// The CUDA operations on sequences against the CPU backend: compress, kv_store, index_select,
// attend, on steps of several sequences with poisoned padding, and decoding after a prefill. Both
// backends are given the same F16 cache contents; only the CPU's are held in FP32.
#include <optional>

#include "ops/cuda_compare.h"

namespace quatrain::testing {
namespace {

constexpr std::int64_t kSlots = 4;

// Rows of a step: a sequence's own data, NaN in padding.
template <class F>
std::vector<float> step_rows(const Step& step, std::int64_t width, F&& data) {
  std::vector<float> out;
  for (std::int64_t r = 0; r < step.rows(); ++r) {
    const auto i = static_cast<std::size_t>(r);
    std::vector<float> row(static_cast<std::size_t>(width), kNaN);
    if (step.slot[i] >= 0) row = data(step.slot[i], step.position[i]);
    out.insert(out.end(), row.begin(), row.end());
  }
  return out;
}

// Data by (kind, slot, index), the same whatever step brings it.
std::vector<float> normals(int kind, std::int64_t slot, std::int64_t i, std::int64_t n,
                           float scale = 1) {
  return Random(static_cast<unsigned>(kind * 1000003 + slot * 100003 + i)).normals(n, scale);
}

void put(std::vector<float>& to, std::int64_t row, const std::vector<float>& from) {
  const auto width = static_cast<std::int64_t>(from.size());
  std::copy(from.begin(), from.end(), to.begin() + row * width);
}

// ---- compress ----

struct Compressor {
  std::int64_t ratio, width;
  CacheGrid grid;
  double may_differ;  // share of entries that FP32 noise may put elsewhere on the grid

  std::int64_t channels() const { return ratio == 4 ? 2 * width : width; }
  std::int64_t capacity() const { return ratio == 4 ? 8 : ratio; }
};

class CompressCaches {
 public:
  CompressCaches(Ops& ops, const Compressor& c)
      : ops_(ops),
        c_(c),
        pool_blocks_(Step(ops, {{0, 0, 1}}, kSlots).pool_blocks),
        entries(ops, {pool_blocks_ * (128 / c.ratio), c.width}),
        values(ops, {kSlots, c.capacity(), c.channels()}),
        scores(ops, {kSlots, c.capacity(), c.channels()}) {}

  void run(const std::vector<Chunk>& chunks) {
    const Step step(ops_, chunks, kSlots);
    const std::int64_t n = c_.channels();
    const auto k = step_rows(step, n, [n](auto s, auto p) { return normals(1, s, p, n); });
    const auto score = step_rows(step, n, [n](auto s, auto p) { return normals(2, s, p, n, 3); });
    const Floats k_in(ops_, {step.rows(), n}, k), s_in(ops_, {step.rows(), n}, score);
    const Floats bias(ops_, {c_.ratio, n}, Random(1).normals(c_.ratio * n, 2));
    const Floats norm(ops_, {c_.width}, Random(2).normals(c_.width));
    const Floats freq(ops_, {4}, {1.0f, 0.013f, 0.0007f, 0.3f});
    ops_.compress({.batch = step.batch(),
                   .values = k_in,
                   .scores = s_in,
                   .bias = bias,
                   .norm_weight = norm,
                   .inv_freq = freq,
                   .eps = 1e-6f,
                   .grid = c_.grid,
                   .state = {.values = values, .scores = scores},
                   .entries = {.rows = entries, .ratio = c_.ratio}});
    (void)s_in.values();  // waits, so that the step's arrays may go
  }

 private:
  Ops& ops_;
  Compressor c_;
  std::int64_t pool_blocks_;

 public:
  CacheArray entries;
  Floats values, scores;
};

class CudaCompress : public CudaTest {};

TEST_F(CudaCompress, EntriesAndStatesMatchTheCpuStepByStep) {
  const std::vector<std::vector<Chunk>> steps = {
      {{0, 0, 1}, {-1, 0, 2}, {2, 0, 7}},
      {{2, 7, 1}, {0, 1, 2}, {-1, 0, 1}, {1, 0, 130}},
      {{-1, 0, 1}, {1, 130, 1}, {2, 8, 121}, {0, 3, 1}},
      {{2, 129, 127}, {0, 4, 5}},
      {{0, 9, 3}, {2, 256, 1}, {-1, 0, 4}, {1, 131, 129}},
      {{3, 0, 300}},
  };
  for (const Compressor c :
       {Compressor{4, 96, CacheGrid::kNone, 0}, Compressor{128, 32, CacheGrid::kNone, 0},
        Compressor{4, 512, CacheGrid::kLatent, 0.01},
        Compressor{128, 512, CacheGrid::kLatent, 0.01},
        Compressor{4, 128, CacheGrid::kIndex, 0.02}}) {
    SCOPED_TRACE(::testing::Message() << "ratio " << c.ratio << ", width " << c.width);
    CompressCaches expected(cpu(), c), found(gpu(), c);
    for (const std::vector<Chunk>& chunks : steps) {
      expected.run(chunks);
      found.run(chunks);
      expect_same(found.values.values(), expected.values.values());
      expect_same(found.scores.values(), expected.scores.values());
      if (HasFatalFailure()) return;
    }
    expect_rounded(found.entries.values(), expected.entries.values(), c.may_differ);
  }
}

TEST_F(CudaCompress, EntriesKeepTheirBitsForAnyChunks) {
  const Compressor c = {4, 512, CacheGrid::kLatent, 0};
  CompressCaches whole(gpu(), c), parts(gpu(), c);
  whole.run({{1, 0, 40}});
  for (const Chunk chunk : {Chunk{1, 0, 3}, Chunk{1, 3, 1}, Chunk{1, 4, 13}, Chunk{1, 17, 23}})
    parts.run({{-1, 0, 1}, chunk, {-1, 0, 2}});
  expect_same(parts.entries.values(), whole.entries.values());
}

// ---- kv_store ----

class CudaKvStore : public CudaTest {};

TEST_F(CudaKvStore, RingsHoldTheLastRowsInF16) {
  const std::int64_t window = 16, n = 96;
  const std::vector<std::vector<Chunk>> steps = {{{-1, 0, 2}, {0, 0, 5}, {2, 0, 50}},
                                                 {{0, 5, 1}, {-1, 0, 1}, {2, 50, 3}, {1, 7, 16}},
                                                 {{2, 53, 1}, {0, 6, 17}}};
  const CacheArray expected(cpu(), {kSlots, window, n}), found(gpu(), {kSlots, window, n});
  const auto run = [&](Ops& ops, const CacheArray& ring, const std::vector<Chunk>& chunks) {
    const Step step(ops, chunks, kSlots);
    const Floats latents(ops, {step.rows(), n},
                         step_rows(step, n, [=](auto s, auto p) { return normals(3, s, p, n); }));
    ops.kv_store({.batch = step.batch(), .latents = latents, .ring = ring});
    return ring.values();
  };
  for (const std::vector<Chunk>& chunks : steps)
    expect_same(run(gpu(), found, chunks), f16_rounded(run(cpu(), expected, chunks)));
}

// ---- index_select ----

struct Indexer {
  std::int64_t heads, width, topk;
  bool ties;  // small integers: every sum is exact on both backends and many scores are equal
  bool rotates = false;

  std::vector<float> data(int kind, std::int64_t slot, std::int64_t i, std::int64_t n) const {
    std::vector<float> out = normals(kind, slot, i, n);
    if (ties)
      for (float& x : out) x = std::clamp(std::round(x), -2.0f, 2.0f);
    return f16_rounded(out);
  }
};

class CudaIndexSelect : public CudaTest {
 protected:
  static constexpr std::int64_t kBlocks = 80;  // per sequence: 10,240 tokens

  static std::vector<std::int32_t> run(Ops& ops, const Indexer& x, const std::vector<Chunk>& chunks,
                                       std::int64_t blocks = kBlocks) {
    const Step step(ops, chunks, kSlots, blocks);
    const std::int64_t rows = step.rows(), query = x.heads * x.width;
    const std::int64_t pool_rows = step.pool_blocks * 32;
    std::vector<float> pool(static_cast<std::size_t>(pool_rows * x.width), kNaN);
    for (const Chunk& c : chunks)
      for (std::int64_t w = 0; c.slot >= 0 && w < (c.position + c.count) / 4; ++w)
        put(pool, step.pool_row(c.slot, w, 4), x.data(5, c.slot, w, x.width));
    const CacheArray keys(ops, {pool_rows, x.width}, pool);
    const Floats q(ops, {rows, x.heads, x.width},
                   step_rows(step, query, [&](auto s, auto p) { return x.data(6, s, p, query); }));
    const Floats weights(ops, {rows, x.heads}, step_rows(step, x.heads, [&](auto s, auto p) {
                           return x.data(7, s, p, x.heads);
                         }));
    const Ints selected(ops, {rows, x.topk});
    const Floats inv_freq(ops, {4}, {1.0f, 0.1f, 0.01f, 0.001f});
    ops.index_select({.batch = step.batch(),
                      .q = q,
                      .weights = weights,
                      .keys = {.rows = keys, .ratio = 4},
                      .selected = selected,
                      .inv_freq = x.rotates ? Tensor(inv_freq) : Tensor()});
    return selected.values();
  }

  void reserve_context(std::int64_t context) {
    StepLimits limits = roomy_limits();
    limits.rows = 256;
    limits.context = context;
    limits.index_topk = 512;
    reserve(limits);
  }
};

TEST_F(CudaIndexSelect, SelectionEqualsTheCpus) {
  reserve_context(kBlocks * 128);
  const std::vector<Chunk> chunks = {{-1, 0, 2}, {0, 8000, 2}, {1, 0, 20},
                                     {-1, 0, 1}, {2, 2046, 9}, {3, 10239, 1}};
  for (const Indexer x : {Indexer{64, 128, 512, false}, Indexer{64, 64, 512, true},
                          Indexer{4, 16, 7, true}, Indexer{33, 40, 100, false}})
    ASSERT_EQ(run(gpu(), x, chunks), run(cpu(), x, chunks))
        << x.heads << " heads of " << x.width << ", top " << x.topk;
}

// A block has room for 4,096 scores; rows with more take a cluster, or turns of a block.
TEST_F(CudaIndexSelect, SelectionEqualsTheCpusForManyKeys) {
  constexpr std::int64_t kManyBlocks = 320;  // 10,240 keys
  reserve_context(kManyBlocks * 128);
  for (const Indexer x : {Indexer{4, 16, 512, true}, Indexer{1, 8, 500, true}})
    for (const std::vector<Chunk>& chunks :
         {std::vector<Chunk>{{0, 40958, 2}, {1, 16380, 8}}, {{2, 38000, 70}, {0, 16300, 90}}})
      ASSERT_EQ(run(gpu(), x, chunks, kManyBlocks), run(cpu(), x, chunks, kManyBlocks))
          << x.topk << " of the scores of " << chunks.size() << " chunks";
}

TEST_F(CudaIndexSelect, SelectionDoesNotDependOnTheBatch) {
  reserve_context(kBlocks * 128);
  const Indexer x = {64, 128, 64, false, true};
  const auto all = run(gpu(), x, {{0, 700, 33}, {-1, 0, 1}, {2, 3000, 3}});
  for (const std::int64_t r : {0, 16, 32})
    EXPECT_EQ(run(gpu(), x, {{0, 700 + r, 1}}), rows_of(all, r, 1, x.topk));
  EXPECT_EQ(run(gpu(), x, {{-1, 0, 3}, {2, 3002, 1}}), [&] {
    std::vector<std::int32_t> rows(static_cast<std::size_t>(3 * x.topk), -1);
    const auto last = rows_of(all, 36, 1, x.topk);
    rows.insert(rows.end(), last.begin(), last.end());
    return rows;
  }());
}

// With a context of a million tokens the scratch holds the scores of a part of the step only.
TEST_F(CudaIndexSelect, LongStepsTakeSeveralPasses) {
  reserve_context(std::int64_t{1} << 20);
  const Indexer x = {4, 16, 16, true};
  const std::vector<Chunk> chunks = {{0, 500, 90}, {-1, 0, 1}, {1, 10, 70}, {2, 2000, 40}};
  EXPECT_EQ(run(gpu(), x, chunks), run(cpu(), x, chunks));
}

// ---- attend ----

struct Attention {
  std::int64_t heads, width, window, ratio, topk;

  std::vector<float> latent(std::int64_t slot, std::int64_t p) const {
    return normals(8, slot, p, width);
  }
  std::vector<float> entry(std::int64_t slot, std::int64_t w) const {
    return normals(9, slot, w, width);
  }
  // The entries that a row selects: an ascending choice that depends on the row alone.
  std::vector<std::int32_t> chosen(std::int64_t slot, std::int64_t position) const {
    std::vector<std::int32_t> out;
    const std::int64_t visible = (position + 1) / ratio;
    Random random(static_cast<unsigned>(77 + 5000 * slot + position));
    for (std::int64_t w = 0; w < visible; ++w) {
      const std::int64_t left = topk - static_cast<std::int64_t>(out.size());
      if (visible - w <= left || (left > 0 && random.integer(0, 1) == 0))
        out.push_back(static_cast<std::int32_t>(w));
    }
    out.resize(static_cast<std::size_t>(topk), -1);
    return out;
  }
};

class CudaAttend : public CudaTest {
 protected:
  static constexpr std::int64_t kBlocks = 40;  // per sequence: 5,120 tokens

  // The CPU is given the latents as the device rounds them.
  static std::vector<float> run(Ops& ops, const Attention& a, const std::vector<Chunk>& chunks) {
    const Step step(ops, chunks, kSlots, kBlocks);
    const std::int64_t rows = step.rows(), n = a.width;
    std::vector<float> ring(static_cast<std::size_t>(kSlots * a.window * n), kNaN);
    const std::int64_t pool_rows = a.ratio > 0 ? step.pool_blocks * (128 / a.ratio) : 1;
    std::vector<float> pool(static_cast<std::size_t>(pool_rows * n), kNaN);
    for (const Chunk& c : chunks) {
      if (c.slot < 0) continue;
      for (std::int64_t p = std::max<std::int64_t>(0, c.position - a.window); p < c.position; ++p)
        put(ring, c.slot * a.window + p % a.window, a.latent(c.slot, p));
      for (std::int64_t w = 0; a.ratio > 0 && w < (c.position + c.count) / a.ratio; ++w)
        put(pool, step.pool_row(c.slot, w, a.ratio), a.entry(c.slot, w));
    }
    std::vector<float> latents = step_rows(step, n, [&](auto s, auto p) { return a.latent(s, p); });
    if (ops.cache_dtype() == DType::kF32) latents = f16_rounded(latents);
    std::vector<std::int32_t> selected;
    for (std::int64_t r = 0; a.topk > 0 && r < rows; ++r) {
      const auto i = static_cast<std::size_t>(r);
      const auto row = step.slot[i] < 0
                           ? std::vector<std::int32_t>(static_cast<std::size_t>(a.topk), 1 << 30)
                           : a.chosen(step.slot[i], step.position[i]);
      selected.insert(selected.end(), row.begin(), row.end());
    }
    const Floats q(ops, {rows, a.heads, n}, step_rows(step, a.heads * n, [&](auto s, auto p) {
                     return normals(10, s, p, a.heads * n, 2);
                   }));
    const Floats latents_in(ops, {rows, n}, latents), out(ops, {rows, a.heads, n});
    const Floats sinks(ops, {a.heads}, Random(11).normals(a.heads, 2));
    const Floats freq(ops, {5}, {1.0f, 0.013f, 0.0007f, 0.3f, 0.09f});
    const CacheArray ring_in(ops, {kSlots, a.window, n}, ring), pool_in(ops, {pool_rows, n}, pool);
    std::optional<Ints> selected_in;
    if (a.topk > 0)
      selected_in.emplace(ops, std::initializer_list<std::int64_t>{rows, a.topk}, selected);
    const Tensor none, entries = pool_in;
    ops.attend({.batch = step.batch(),
                .q = q,
                .latents = latents_in,
                .ring = ring_in,
                .entries = {.rows = a.ratio > 0 ? entries : none, .ratio = a.ratio},
                .selected = selected_in ? selected_in->tensor() : none,
                .sinks = sinks,
                .inv_freq = freq,
                .out = out});
    return out.values();
  }

  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    StepLimits limits = roomy_limits();
    limits.rows = 160;
    limits.context = kBlocks * 128;
    limits.index_topk = 512;
    reserve(limits);
  }
};

TEST_F(CudaAttend, MatchesTheCpu) {
  const std::vector<Chunk> mixed = {{-1, 0, 2},  {2, 0, 5},    {-1, 0, 1}, {0, 300, 3},
                                    {3, 130, 1}, {1, 120, 20}, {-1, 0, 1}};
  for (const Attention a :
       {Attention{3, 32, 8, 0, 0}, Attention{5, 96, 16, 4, 6}, Attention{8, 128, 128, 128, 0},
        Attention{9, 64, 128, 4, 0}, Attention{4, 320, 20, 4, 300}}) {
    SCOPED_TRACE(::testing::Message() << a.heads << " heads of " << a.width);
    expect_near(run(gpu(), a, mixed), run(cpu(), a, mixed), 1e-4);
  }
}

// The kernels for latents round queries and probabilities to F16. Steps of few rows, and one in
// which a sequence brings more rows than are split over blocks.
TEST_F(CudaAttend, MatchesTheCpuAtTheSizesOfFlash) {
  const std::vector<Chunk> few = {{0, 4500, 1}, {-1, 0, 1}, {1, 0, 1}, {2, 127, 1}};
  const std::vector<Chunk> mixed = {{0, 4500, 1}, {-1, 0, 2}, {1, 60, 1}, {2, 127, 2}, {3, 700, 9}};
  for (const Attention a : {Attention{64, 512, 128, 4, 512}, Attention{64, 512, 128, 128, 0},
                            Attention{64, 512, 128, 0, 0}, Attention{70, 512, 20, 4, 100}}) {
    SCOPED_TRACE(::testing::Message() << a.heads << " heads, ratio " << a.ratio);
    expect_near(run(gpu(), a, few), run(cpu(), a, few), 1e-3);
    expect_near(run(gpu(), a, mixed), run(cpu(), a, mixed), 1e-3);
  }
}

TEST_F(CudaAttend, DecodingAtTheSizesOfFlashKeepsItsBitsInAnyBatch) {
  const Attention a = {64, 512, 128, 4, 512};
  const std::int64_t width = a.heads * a.width;
  const auto alone = run(gpu(), a, {{1, 4000, 1}});
  std::vector<Chunk> many = {{-1, 0, 3}, {0, 5, 2}, {1, 4000, 1}, {3, 64, 30}};
  expect_same(rows_of(run(gpu(), a, many), 5, 1, width), alone);
  many.pop_back();  // smaller blocks
  expect_same(rows_of(run(gpu(), a, many), 5, 1, width), alone);
  // Two parts to a block, then also rows in turns, and rows that have fewer tiles than parts.
  expect_same(rows_of(run(gpu(), a, {{1, 4000, 1}, {3, 64, 31}}), 0, 1, width), alone);
  const auto crowd = run(gpu(), a, {{-1, 0, 100}, {0, 5, 2}, {1, 4000, 1}, {3, 64, 30}});
  expect_same(rows_of(crowd, 102, 1, width), alone);
  expect_same(rows_of(crowd, 100, 2, width), run(gpu(), a, {{0, 5, 2}}));
  const auto prompt = run(gpu(), a, {{2, 1000, 40}});
  expect_same(rows_of(run(gpu(), a, {{1, 9, 1}, {2, 1000, 40}, {-1, 0, 1}}), 1, 40, width), prompt);
}

// Few rows have a kernel of their own: with rows of few and of many tiles, heads that do not fill a
// block, and a sequence that brings several rows.
TEST_F(CudaAttend, FewRowsHaveTheBitsOfMany) {
  for (const Attention a : {Attention{64, 512, 128, 4, 512}, Attention{64, 512, 128, 128, 0},
                            Attention{64, 512, 128, 4, 0}, Attention{70, 512, 20, 4, 100}}) {
    const std::int64_t width = a.heads * a.width;
    for (const std::int64_t position : {0, 5, 63, 130, 1025, 4500, 5117}) {
      SCOPED_TRACE(::testing::Message()
                   << a.heads << " heads, ratio " << a.ratio << ", position " << position);
      const auto few = run(gpu(), a, {{1, position, 3}, {-1, 0, 1}});
      const auto many = run(gpu(), a, {{0, 900, 1}, {1, position, 3}, {3, 64, 70}});
      expect_same(rows_of(many, 1, 3, width), rows_of(few, 0, 3, width));
      expect_same(rows_of(few, 3, 1, width), std::vector<float>(static_cast<std::size_t>(width)));
    }
  }
}

// Blocks take several rows each, of one tile and of many, with rows between that are another
// kernel's; alone, every row has a block of its own.
TEST_F(CudaAttend, RowsOfALongStepHaveTheBitsOfAShortOne) {
  StepLimits limits = roomy_limits();
  limits.rows = 420;
  limits.context = kBlocks * 128;
  limits.index_topk = 512;
  reserve(limits);
  const std::vector<Chunk> all = {
      {0, 0, 200}, {-1, 0, 3}, {2, 4500, 2}, {1, 600, 130}, {3, 100, 60}};
  for (const Attention a : {Attention{64, 512, 128, 4, 512}, Attention{64, 512, 128, 128, 0},
                            Attention{64, 512, 128, 0, 0}, Attention{70, 512, 20, 4, 100}}) {
    const std::int64_t width = a.heads * a.width;
    const auto many = run(gpu(), a, all);
    struct Part {
      std::int64_t row;
      Chunk chunk;
    };
    for (const auto& [row, chunk] :
         {Part{0, {0, 0, 20}}, Part{55, {0, 55, 20}}, Part{180, {0, 180, 20}},
          Part{203, {2, 4500, 2}}, Part{205, {1, 600, 20}}, Part{320, {1, 715, 15}},
          Part{335, {3, 100, 60}}}) {
      SCOPED_TRACE(::testing::Message()
                   << a.heads << " heads, ratio " << a.ratio << ", row " << row);
      expect_same(rows_of(many, row, chunk.count, width), run(gpu(), a, {chunk}));
    }
    expect_same(rows_of(many, 200, 3, width),
                std::vector<float>(static_cast<std::size_t>(3 * width)));
  }
}

TEST_F(CudaAttend, KeepsItsBitsForAnyChunksAndBatchMates) {
  const Attention a = {10, 128, 16, 4, 12};
  const std::int64_t width = a.heads * a.width;
  const auto all = run(gpu(), a, {{1, 90, 33}});
  for (const std::int64_t r : {0, 1, 15, 16, 32})
    expect_same(run(gpu(), a, {{1, 90 + r, 1}}), rows_of(all, r, 1, width));
  const auto among = run(gpu(), a, {{-1, 0, 3}, {0, 5, 2}, {1, 100, 4}, {3, 64, 1}});
  expect_same(rows_of(among, 5, 4, width), rows_of(all, 10, 4, width));
}

// ---- a sequence over several steps ----

// One CSA layer's caches and their use by every step: compress, attend to all entries, kv_store.
class Layer {
 public:
  static constexpr std::int64_t kHeads = 4, kWidth = 64, kWindow = 16, kChannels = 2 * kWidth;

  explicit Layer(Ops& ops)
      : ops_(ops),
        ring_(ops, {kSlots, kWindow, kWidth}),
        entries_(ops, {Step(ops, {{0, 0, 1}}, kSlots).pool_blocks * 32, kWidth}),
        values_(ops, {kSlots, 8, kChannels}),
        scores_(ops, {kSlots, 8, kChannels}) {}

  std::vector<float> run(const std::vector<Chunk>& chunks) {
    const Step step(ops_, chunks, kSlots);
    const std::int64_t rows = step.rows();
    const auto rows_in = [&](int kind, std::int64_t n) {
      return step_rows(step, n, [&](auto s, auto p) { return normals(kind, s, p, n); });
    };
    const Floats k(ops_, {rows, kChannels}, rows_in(1, kChannels));
    const Floats s(ops_, {rows, kChannels}, rows_in(2, kChannels));
    const Floats q(ops_, {rows, kHeads, kWidth}, rows_in(10, kHeads * kWidth));
    const Floats latents(ops_, {rows, kWidth}, rows_in(8, kWidth)),
        out(ops_, {rows, kHeads, kWidth});
    const Floats bias(ops_, {4, kChannels}, Random(1).normals(4 * kChannels));
    const Floats norm(ops_, {kWidth}, Random(2).normals(kWidth));
    const Floats freq(ops_, {2}, {1.0f, 0.01f}), sinks(ops_, {kHeads}, Random(3).normals(kHeads));
    const RowPool pool = {.rows = entries_, .ratio = 4};
    ops_.compress({.batch = step.batch(),
                   .values = k,
                   .scores = s,
                   .bias = bias,
                   .norm_weight = norm,
                   .inv_freq = freq,
                   .eps = 1e-6f,
                   .grid = CacheGrid::kNone,
                   .state = {.values = values_, .scores = scores_},
                   .entries = pool});
    ops_.attend({.batch = step.batch(),
                 .q = q,
                 .latents = latents,
                 .ring = ring_,
                 .entries = pool,
                 .selected = {},
                 .sinks = sinks,
                 .inv_freq = {},
                 .out = out});
    ops_.kv_store({.batch = step.batch(), .latents = latents, .ring = ring_});
    return out.values();
  }

 private:
  Ops& ops_;
  CacheArray ring_, entries_;
  Floats values_, scores_;
};

class CudaSequence : public CudaTest {};

TEST_F(CudaSequence, DecodesAfterAPrefillAsTheCpu) {
  reserve(roomy_limits());
  Layer expected(cpu()), found(gpu());
  std::vector<std::vector<Chunk>> steps = {{{0, 0, 150}, {-1, 0, 2}, {1, 0, 7}}, {{2, 0, 33}}};
  for (std::int64_t i = 0; i < 6; ++i)
    steps.push_back({{0, 150 + i, 1}, {-1, 0, 1}, {1, 7 + 3 * i, 3}, {2, 33 + i, 1}});
  // BF16 caches against FP32 ones.
  for (const std::vector<Chunk>& chunks : steps)
    expect_near(found.run(chunks), expected.run(chunks), 1e-2);
}

TEST_F(CudaSequence, ChunkingChangesNoBit) {
  Layer whole(gpu()), parts(gpu());
  const std::int64_t width = Layer::kHeads * Layer::kWidth;
  const auto all = whole.run({{1, 0, 60}});
  std::int64_t done = 0;
  for (const std::int64_t n : {1, 7, 20, 1, 1, 30}) {
    expect_same(rows_of(parts.run({{-1, 0, 1}, {1, done, n}}), 1, n, width),
                rows_of(all, done, n, width));
    done += n;
  }
}

}  // namespace
}  // namespace quatrain::testing

// SPDX-License-Identifier: Apache-2.0
// Known mistakes of other implementations where one operation shows them, numbered as in the
// specification's list of traps; the ones about wiring are in tests/model/traps_test.cpp.
#include <sys/mman.h>

#include "backends/cpu/sequence_view.h"
#include "model/weights.h"
#include "support/op_harness.h"
#include "support/reference_math.h"

namespace quatrain::testing {
namespace {

const YarnConfig kYarn{
    .factor = 16, .original_max_positions = 65536, .beta_fast = 32, .beta_slow = 1};

std::vector<float> rotated(std::vector<float> x, std::int32_t position,
                           const std::vector<float>& inv_freq, bool inverse = false) {
  CpuOps ops(1);
  const auto n = static_cast<std::int64_t>(x.size());
  const Floats io(ops, {1, n}, x);
  const Floats f(ops, {static_cast<std::int64_t>(inv_freq.size())}, inv_freq);
  const Ints p(ops, {1}, {position});
  in_step([&] { ops.rope({.x = io, .positions = p, .inv_freq = f, .inverse = inverse}); });
  return io.values();
}

std::vector<float> unit(std::size_t n, std::size_t at) {
  std::vector<float> x(n, 0);
  x[at] = 1;
  return x;
}

void expect_pair(const std::vector<float>& inv_freq, std::size_t pair, std::int32_t position,
                 double c, double s) {
  // The golden values have exact angles; here the frequency is rounded to FP32 first.
  const double tolerance = 1e-6 + 1.2e-7 * position * inv_freq[pair];
  const std::vector<float> a = rotated(unit(64, 2 * pair), position, inv_freq);
  const std::vector<float> b = rotated(unit(64, 2 * pair + 1), position, inv_freq);
  EXPECT_NEAR(a[2 * pair], c, tolerance);
  EXPECT_NEAR(a[2 * pair + 1], s, tolerance);
  EXPECT_NEAR(b[2 * pair], -s, tolerance);
  EXPECT_NEAR(b[2 * pair + 1], c, tolerance);
}

TEST(Traps, Trap01RopeTurnsInterleavedPairs) {
  const std::vector<float> main = rope_frequencies(64, 10000, nullptr);
  const std::vector<float> compress = rope_frequencies(64, 160000, &kYarn);
  expect_pair(compress, 15, 1000, -0.880469, -0.474104);
  expect_pair(compress, 20, 100000, -0.146820, -0.989163);
  expect_pair(main, 16, 127, 0.296281, 0.955101);
}

TEST(Traps, Trap02RopeTurnsTheLastDimsOnly) {
  const std::vector<float> freq = rope_frequencies(64, 10000, nullptr);
  for (std::size_t d = 0; d < 512; ++d) {
    const std::vector<float> before = unit(512, d), after = rotated(before, 77, freq);
    for (std::size_t i = 0; i < 512; ++i) {
      const bool touched = d >= 448 && (i == d || i == (d ^ 1));
      EXPECT_EQ(after[i] != before[i], touched) << "dim " << d << " changed dim " << i;
    }
  }
}

TEST(Traps, Trap06YarnHasNoMagnitudeScale) {
  const std::vector<float> freq = rope_frequencies(64, 160000, &kYarn);
  EXPECT_EQ(freq[0], 1);
  const std::vector<float> x = Random(1).normals(64), y = rotated(x, 70000, freq);
  for (std::size_t p = 0; p < 32; ++p)
    EXPECT_NEAR(std::hypot(y[2 * p], y[2 * p + 1]), std::hypot(x[2 * p], x[2 * p + 1]), 1e-6);
}

TEST(Traps, Trap07YarnRampLiesBetween15And25) {
  const std::vector<float> plain = rope_frequencies(64, 160000, nullptr);
  const std::vector<float> yarn = rope_frequencies(64, 160000, &kYarn);
  for (std::size_t i = 0; i < 32; ++i) {
    if (i <= 15) {
      EXPECT_EQ(yarn[i], plain[i]) << i;
    } else if (i >= 25) {
      EXPECT_FLOAT_EQ(yarn[i], plain[i] / 16) << i;
    } else {
      EXPECT_LT(yarn[i], plain[i]) << i;
      EXPECT_GT(yarn[i], plain[i] / 16) << i;
    }
  }
  const struct {
    std::size_t i;
    double plain, yarn;
  } table[] = {{0, 1, 1},
               {1, 6.876560219e-1, 6.876560219e-1},
               {10, 2.364354023e-2, 2.364354023e-2},
               {15, 3.635538584e-3, 3.635538584e-3},
               {16, 2.5e-3, 2.265625e-3},
               {17, 1.719140055e-3, 1.396801295e-3},
               {18, 1.182177011e-3, 8.496897268e-4},
               {20, 5.590169944e-4, 2.969777783e-4},
               {22, 2.643428159e-4, 9.086784295e-5},
               {24, 1.25e-4, 1.953125e-5},
               {25, 8.595700274e-5, 5.372312671e-6},
               {31, 9.088846459e-6, 5.680529037e-7}};
  for (const auto& row : table) {
    EXPECT_NEAR(plain[row.i], row.plain, 1e-7 * row.plain) << row.i;
    EXPECT_NEAR(yarn[row.i], row.yarn, 1e-7 * row.yarn) << row.i;
  }
}

TEST(Traps, Trap52SinAndCosOfLargeAngles) {
  const std::vector<float> main = rope_frequencies(64, 10000, nullptr);
  const std::vector<float> compress = rope_frequencies(64, 160000, &kYarn);
  const auto both = [](double angle) { return std::pair(std::cos(angle), std::sin(angle)); };
  expect_pair(compress, 31, 1000000, 0.842950, both(0.568052904).second);
  expect_pair(main, 31, 1000000, 0.164789, both(133.352143).second);
  const auto [c, s] = both(1048575.0);  // pair 0: the angle is the position itself
  expect_pair(main, 0, 1048575, c, s);
}

// ---- attention ----

// One query at `position` with window keys `key` and entries `entry` everywhere; the pool beyond
// the visible entries, its last row included, is NaN.
struct OneQuery {
  std::int64_t position = 0;
  std::int64_t ratio = 0;
  std::vector<float> q = {0, 0}, key = {1, 1}, entry = {1, 1};
  float sink = 0;
  std::vector<std::int32_t> selected = {};

  std::vector<float> run() const {
    CpuOps ops(1);
    StepLimits limits = roomy_limits();
    ops.reserve(limits);
    const Step step(ops, {{0, position, 1}}, 1, 16);
    const auto n = static_cast<std::int64_t>(q.size());
    const std::int64_t pool_rows = ratio ? step.pool_blocks * 128 / ratio : 1;
    std::vector<float> ring(static_cast<std::size_t>(128 * n), kNaN);
    std::vector<float> pool(static_cast<std::size_t>(pool_rows * n), kNaN);
    for (std::int64_t p = std::max<std::int64_t>(0, position - 127); p < position; ++p)
      std::copy(key.begin(), key.end(), ring.begin() + p % 128 * n);
    for (std::int64_t w = 0; ratio && w < (position + 1) / ratio; ++w)
      std::copy(entry.begin(), entry.end(), pool.begin() + step.pool_row(0, w, ratio) * n);
    const Floats q_in(ops, {1, 1, n}, q), latents(ops, {1, n}, key),
        ring_in(ops, {1, 128, n}, ring);
    const Floats pool_in(ops, {pool_rows, n}, pool), sinks(ops, {1}, {sink}), out(ops, {1, 1, n});
    const auto k = static_cast<std::int64_t>(selected.size());
    const Ints chosen(ops, {1, std::max<std::int64_t>(1, k)},
                      k ? selected : std::vector<std::int32_t>{-1});
    const Tensor none;
    in_step([&] {
      ops.attend({.batch = step.batch(),
                  .q = q_in,
                  .latents = latents,
                  .ring = ring_in,
                  .entries = {.rows = ratio ? pool_in.tensor() : none, .ratio = ratio},
                  .selected = k ? chosen.tensor() : none,
                  .sinks = sinks,
                  .inv_freq = {},
                  .out = out});
    });
    return out.values();
  }

  // With q = 0 and sink 0 every key has weight 1/(keys + 1): what entries of value 1 sum to.
  static double count_entries(std::int64_t position, std::int64_t ratio) {
    const OneQuery one{.position = position, .ratio = ratio, .key = {0, 0}, .entry = {1, 1}};
    const double share = one.run()[0];
    const double window = static_cast<double>(std::min<std::int64_t>(128, position + 1));
    return share * (window + 1) / (1 - share);
  }
};

TEST(Traps, Trap06SoftmaxScaleIsTheRootOfTheHeadDim) {
  // One key at distance z = q·k/√n: its weight against a sink of 0 is a sigmoid.
  const OneQuery one{.position = 0, .q = {3, 0, 0, 0}, .key = {1, 0, 0, 0}};
  EXPECT_NEAR(one.run()[0], 1 / (1 + std::exp(-3 / std::sqrt(4.0))), 1e-6);
}

TEST(Traps, Trap09WindowHoldsExactly128Keys) {
  const OneQuery one{.position = 500};
  EXPECT_NEAR(one.run()[0], 128.0 / 129.0, 1e-6);
  const OneQuery early{.position = 126};
  EXPECT_NEAR(early.run()[0], 127.0 / 128.0, 1e-6);
}

TEST(Traps, Trap10SinkIsAWeightWithoutValueAndWithoutScale) {
  OneQuery one{.position = 300, .ratio = 128};
  one.sink = 1e4f;
  EXPECT_EQ(one.run()[0], 0) << "a large sink takes all the weight";
  one.sink = -1e9f;
  EXPECT_NEAR(one.run()[0], 1, 1e-6) << "a very negative one leaves plain softmax";
  const OneQuery scaled{.position = 0, .q = {0, 0, 0, 0}, .key = {1, 1, 1, 1}, .sink = 2};
  EXPECT_NEAR(scaled.run()[0], 1 / (1 + std::exp(2.0)), 1e-6) << "not divided by √n";
}

TEST(Traps, Trap11OneSoftmaxOverWindowAndEntries) {
  // Entries score so high that they take all the weight; two softmaxes would share it.
  const OneQuery one{.position = 300, .ratio = 128, .q = {40, 0}, .key = {0, 5}, .entry = {3, 7}};
  const std::vector<float> out = one.run();
  EXPECT_NEAR(out[0], 3, 1e-5);
  EXPECT_NEAR(out[1], 7, 1e-5);
}

TEST(Traps, Trap12EntriesInsideTheWindowCountToo) {
  EXPECT_NEAR(OneQuery::count_entries(300, 128), 2, 1e-3);
  const OneQuery one{.position = 300, .ratio = 128};
  EXPECT_NEAR(one.run()[0], 130.0 / 131.0, 1e-6) << "128 + 2 keys";
}

TEST(Traps, Trap13EntryIsVisibleFromItsLastTokenOn) {
  const int expected[] = {0, 0, 0, 1, 1, 1, 1, 2};
  for (std::int64_t t = 0; t < 8; ++t)
    EXPECT_NEAR(OneQuery::count_entries(t, 4), expected[t], 1e-4) << t;
  for (const auto& [t, n] : {std::pair(0, 0), {126, 0}, {127, 1}, {254, 1}, {255, 2}})
    EXPECT_NEAR(OneQuery::count_entries(t, 128), n, 1e-3) << t;
}

TEST(Traps, Trap24MinusOneIsNoRow) {
  OneQuery one{.position = 9, .ratio = 4, .key = {0, 0}, .selected = {0, 1, -1, -1, -1}};
  EXPECT_NEAR(one.run()[0], 2.0 / 13.0, 1e-6) << "10 window keys, 2 entries and the sink";
  one.selected = {-1, -1, -1};
  EXPECT_EQ(one.run()[0], 0);
}

// Keys [positions/4][2] of one sequence and one query head of weight `weight` at `position`.
std::vector<std::int32_t> select_one(const std::vector<std::vector<float>>& keys, float weight,
                                     std::int64_t position, std::int64_t topk,
                                     std::vector<float> q = {1, 0}) {
  CpuOps ops(1);
  ops.reserve(roomy_limits());
  const Step step(ops, {{0, position, 1}}, 1, 8);
  std::vector<float> pool(static_cast<std::size_t>(step.pool_blocks * 32 * 2), kNaN);
  for (std::size_t w = 0; w < keys.size(); ++w)
    std::copy(keys[w].begin(), keys[w].end(),
              pool.begin() + step.pool_row(0, static_cast<std::int64_t>(w), 4) * 2);
  const Floats q_in(ops, {1, 1, 2}, q), weights(ops, {1, 1}, {weight});
  const Floats pool_in(ops, {step.pool_blocks * 32, 2}, pool);
  const Ints selected(ops, {1, topk});
  in_step([&] {
    ops.index_select({.batch = step.batch(),
                      .q = q_in,
                      .weights = weights,
                      .keys = {.rows = pool_in, .ratio = 4},
                      .selected = selected});
  });
  return selected.values();
}

TEST(Traps, Trap13IndexerSeesAnEntryFromItsLastTokenOn) {
  const std::vector<std::vector<float>> keys(3, {1, 0});
  EXPECT_EQ(select_one(keys, 1, 2, 2), (std::vector<std::int32_t>{-1, -1}));
  EXPECT_EQ(select_one(keys, 1, 3, 2), (std::vector<std::int32_t>{0, -1}));
  EXPECT_EQ(select_one(keys, 1, 7, 2), (std::vector<std::int32_t>{0, 1}));
}

TEST(Traps, Trap21ReluIsOnTheProductBeforeTheWeight) {
  // Products 2, −3, 1: with weight −1 the scores are −2, 0, −1, not −2, 3, −1 and not 0, 0, 0.
  const std::vector<std::vector<float>> keys = {{2, 0}, {-3, 0}, {1, 0}};
  EXPECT_EQ(select_one(keys, -1, 11, 2), (std::vector<std::int32_t>{1, 2}));
  EXPECT_EQ(select_one(keys, 1, 11, 2), (std::vector<std::int32_t>{0, 2}));
  // Two negative products score the same 0: the lower index wins.
  EXPECT_EQ(select_one({{-1, 0}, {-9, 0}, {4, 0}}, -1, 11, 1), (std::vector<std::int32_t>{0}));
}

TEST(Traps, Trap22HadamardOfBothSidesKeepsScores) {
  Random random(4);
  std::vector<float> q = random.normals(64), k = random.normals(64);
  const auto dot = [](const std::vector<double>& a, const std::vector<double>& b) {
    return reference::inner(a, b);
  };
  // Values on the FP4 grid after the transform: only the transform itself acts on them. It is
  // exact at width 64.
  const auto from_grid = [&](std::vector<float>& x) {
    reference::Row grid;
    for (float& v : x) grid.push_back(reference::nearest(2 * v, reference::e2m1_values()));
    for (std::size_t b = 0; b < 64; b += 32) grid[b] = 6;   // fixes the scale of the block at 1
    const reference::Row back = reference::hadamard(grid);  // its own inverse
    x.assign(back.begin(), back.end());
    return grid;
  };
  const reference::Row q_grid = from_grid(q), k_grid = from_grid(k);
  CpuOps ops(1);
  const Floats both(ops, {2, 64}, [&] {
    std::vector<float> v = q;
    v.insert(v.end(), k.begin(), k.end());
    return v;
  }());
  in_step([&] { ops.round_to_grid({.x = both, .grid = CacheGrid::kIndex}); });
  const std::vector<float> y = both.values();
  expect_close(rows_of(y, 0, 1, 64), q_grid, 1e-6);
  EXPECT_NEAR(
      dot(reference::to_double(rows_of(y, 0, 1, 64)), reference::to_double(rows_of(y, 1, 1, 64))),
      dot(reference::to_double(q), reference::to_double(k)), 1e-4);
}

TEST(Traps, Trap23TiesAreDecidedTheSameWayEverywhere) {
  Random random(9);
  std::vector<std::vector<float>> keys;
  for (int w = 0; w < 60; ++w) keys.push_back({static_cast<float>(random.integer(0, 3)), 0});
  std::vector<std::int32_t> wanted(60);
  std::iota(wanted.begin(), wanted.end(), 0);
  std::stable_sort(wanted.begin(), wanted.end(), [&](std::int32_t a, std::int32_t b) {
    return keys[static_cast<std::size_t>(a)][0] > keys[static_cast<std::size_t>(b)][0];
  });
  wanted.resize(20);
  std::sort(wanted.begin(), wanted.end());
  EXPECT_EQ(select_one(keys, 1, 239, 20), wanted);
}

// ---- compressor ----

// The entries of one sequence whose tokens arrive in the given chunks; norm weight 1, no rotation
// unless frequencies are given. `values` and `scores` are per token, [channels] each.
struct OneCompressor {
  std::int64_t ratio = 4, width = 2;
  std::vector<std::vector<float>> values, scores;
  std::vector<float> bias;
  float eps = 1e-6f;
  std::vector<float> inv_freq = {0};

  std::vector<float> entry(std::int64_t w, const std::vector<std::int64_t>& chunks) const {
    CpuOps ops(1);
    const std::int64_t channels = ratio == 4 ? 2 * width : width;
    const std::int64_t capacity = ratio == 4 ? 8 : ratio;
    const Floats entries(ops, {11 * 128 / ratio, width});
    const Floats k(ops, {1, capacity, channels}), s(ops, {1, capacity, channels});
    const Floats ape(
        ops, {ratio, channels},
        bias.empty() ? std::vector<float>(static_cast<std::size_t>(ratio * channels), 0) : bias);
    const Floats norm(ops, {width}, std::vector<float>(static_cast<std::size_t>(width), 1));
    const Floats freq(ops, {static_cast<std::int64_t>(inv_freq.size())}, inv_freq);
    std::int64_t position = 0;
    std::int64_t row = 0;
    for (const std::int64_t n : chunks) {
      std::vector<float> step_values, step_scores;
      for (std::int64_t i = position; i < position + n; ++i) {
        const auto& v = values[static_cast<std::size_t>(i)];
        const auto& z = scores[static_cast<std::size_t>(i)];
        step_values.insert(step_values.end(), v.begin(), v.end());
        step_scores.insert(step_scores.end(), z.begin(), z.end());
      }
      const Step step(ops, {{0, position, n}}, 1, 8);
      const Floats k_in(ops, {n, channels}, step_values), s_in(ops, {n, channels}, step_scores);
      in_step([&] {
        ops.compress({.batch = step.batch(),
                      .values = k_in,
                      .scores = s_in,
                      .bias = ape,
                      .norm_weight = norm,
                      .inv_freq = freq,
                      .eps = eps,
                      .state = {.values = k, .scores = s},
                      .entries = {.rows = entries, .ratio = ratio}});
      });
      position += n;
      row = step.pool_row(0, w, ratio);
    }
    return rows_of(entries.values(), row, 1, width);
  }

  static std::vector<std::vector<float>> constant(std::size_t tokens, std::vector<float> row) {
    return std::vector<std::vector<float>>(tokens, std::move(row));
  }
};

TEST(Traps, Trap08EntryIsRotatedAtTheFirstTokenOfItsWindow) {
  OneCompressor c;
  c.ratio = 128;
  c.width = 4;
  c.values = OneCompressor::constant(256, {1, -1, 1, 1});
  c.scores = OneCompressor::constant(256, {0, 0, 0, 0});
  c.inv_freq = {0.01f, 0.002f};
  reference::Row expected = {1, -1, 1, 1};
  reference::rotate(expected, c.inv_freq, 128);
  expect_close(c.entry(1, {256}), expected, 1e-5);
  OneCompressor csa = c;
  csa.ratio = 4;
  csa.values = OneCompressor::constant(12, {1, -1, 1, 1, 1, -1, 1, 1});
  csa.scores = OneCompressor::constant(12, std::vector<float>(8, 0));
  expected = {1, -1, 1, 1};
  reference::rotate(expected, c.inv_freq, 8);
  expect_close(csa.entry(2, {12}), expected, 1e-5);
}

TEST(Traps, Trap15FirstHalfBelongsToThePreviousWindow) {
  // Ca of token t is (t, 1), Cb is (100 + t, 1); an epsilon of 0 keeps the ratio of the channels.
  OneCompressor c;
  for (int t = 0; t < 8; ++t)
    c.values.push_back({static_cast<float>(t), 1, static_cast<float>(100 + t), 1});
  c.scores = OneCompressor::constant(8, {0, 0, 0, 0});
  const std::vector<float> first = c.entry(0, {8}), second = c.entry(1, {8});
  EXPECT_NEAR(first[0] / first[1], 101.5, 1e-3) << "the mean of Cb of tokens 0 … 3";
  EXPECT_NEAR(second[0] / second[1], (1.5 + 105.5) / 2, 1e-3) << "Ca of 0 … 3 and Cb of 4 … 7";
}

TEST(Traps, Trap16FirstWindowIsNotDiluted) {
  // With eps = 1 the norm shows the magnitude of what was pooled.
  OneCompressor c;
  c.eps = 1;
  c.values = OneCompressor::constant(4, {9, 9, 2, 2});
  c.scores = OneCompressor::constant(4, {0, 0, 0, 0});
  EXPECT_NEAR(c.entry(0, {4})[0], 2 / std::sqrt(4.0 + 1), 1e-6);
}

TEST(Traps, Trap17PositionBiasGoesByAbsolutePosition) {
  // The bias picks token 2 of each window, whatever chunk it arrives in.
  OneCompressor c;
  for (int t = 0; t < 20; ++t)
    c.values.push_back({static_cast<float>(t), 1, static_cast<float>(100 + t), 1});
  c.scores = OneCompressor::constant(20, {0, 0, 0, 0});
  c.bias.assign(16, 0);
  for (std::size_t channel : {2, 3}) c.bias[2 * 4 + channel] = 60;
  for (const std::vector<std::int64_t>& chunks :
       {std::vector<std::int64_t>{20}, {3, 3, 3, 3, 3, 5}, {1, 5, 7, 7}, {2, 18}}) {
    const std::vector<float> e = c.entry(4, chunks);
    EXPECT_NEAR(e[0] / e[1], 118, 1e-3) << chunks[0];
  }
}

TEST(Traps, Trap18SoftmaxIsPerChannelOverTheWindow) {
  OneCompressor c;
  c.ratio = 128;
  c.width = 3;
  for (int t = 0; t < 128; ++t) {
    const auto value = static_cast<float>(t);
    c.values.push_back({value, value, 1});
    c.scores.push_back({t == 7 ? 80.0f : 0.0f, t == 90 ? 80.0f : 0.0f, 0});
  }
  const std::vector<float> e = c.entry(0, {128});
  EXPECT_NEAR(e[0] / e[2], 7, 1e-3);
  EXPECT_NEAR(e[1] / e[2], 90, 1e-3);
}

TEST(Traps, Trap19PreviousWindowSurvivesSingleTokens) {
  Random random(3);
  OneCompressor c;
  for (int t = 0; t < 24; ++t) {
    c.values.push_back(random.normals(4));
    c.scores.push_back(random.normals(4));
  }
  for (const std::int64_t prefill : {4, 5, 8, 9}) {
    std::vector<std::int64_t> chunks(static_cast<std::size_t>(24 - prefill), 1);
    chunks.insert(chunks.begin(), prefill);
    for (std::int64_t w = 0; w < 6; ++w)
      EXPECT_TRUE(same_bits(c.entry(w, chunks), c.entry(w, {24}))) << prefill << " " << w;
  }
}

// ---- addresses ----

TEST(Traps, Trap53PoolAddressesAreWiderThan32Bits) {
  static_assert(sizeof(Tensor().elements()) == 8 && sizeof(Tensor().bytes()) == 8);
  // 5.7 million entries of 512 values: more than 2³¹ elements. Only touched pages take memory.
  const std::int64_t blocks = 5'700'000 / 32, width = 512;
  const std::int64_t bytes = blocks * 32 * width * 4;
  void* memory = mmap(nullptr, static_cast<std::size_t>(bytes), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) GTEST_SKIP() << "no address space for " << bytes << " bytes";
  const Tensor pool(memory, DType::kF32, {blocks * 32, width});
  EXPECT_EQ(pool.bytes(), bytes);
  CpuOps ops(1);
  const Ints table(ops, {1, 1}, {static_cast<std::int32_t>(blocks - 1)});
  const PagedRows rows({.rows = pool, .ratio = 4}, table, 0);
  EXPECT_EQ(rows.row(31), pool.f32() + (blocks * 32 - 1) * width);
  EXPECT_EQ(pool.rows(blocks * 32 - 1, 1).data(), rows.row(31));

  // And through an operation: the one visible entry lies at the far end.
  ops.reserve(roomy_limits());
  const Step step(ops, {{0, 3, 1}}, 1, 1);
  Batch batch = step.batch();
  batch.block_table = table;
  std::fill_n(rows.row(0), width, 2.0f);
  const Floats q(ops, {1, 1, width}, std::vector<float>(512, 0));
  const Floats latents(ops, {1, width}, std::vector<float>(512, 0));
  const Floats ring(ops, {1, 4, width}, std::vector<float>(2048, 0));
  const Floats sinks(ops, {1}, {-1e9f}), out(ops, {1, 1, width});
  in_step([&] {
    ops.attend({.batch = batch,
                .q = q,
                .latents = latents,
                .ring = ring,
                .entries = {.rows = pool, .ratio = 4},
                .selected = {},
                .sinks = sinks,
                .inv_freq = {},
                .out = out});
  });
  EXPECT_NEAR(out.values()[511], 2.0 / 5, 1e-6);
  munmap(memory, static_cast<std::size_t>(bytes));
}

}  // namespace
}  // namespace quatrain::testing

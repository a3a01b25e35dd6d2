// SPDX-License-Identifier: Apache-2.0
// The CUDA operations on single rows against the CPU backend: random rows at small and at
// V4-Flash sizes, one of them poisoned with NaN, which must not reach its neighbours.
#include "backends/cpu/activation_quant.h"
#include "backends/cuda/launch/quantise.h"
#include "ops/cuda_compare.h"

namespace quatrain::testing {
namespace {

constexpr std::int64_t kPoisoned = 1;  // this row, when there are more than two
const std::int64_t kRowCounts[] = {1, 3, 33};

// Outputs by row of `width` each, from rows [begin, begin + count) of the data.
using RowBody = std::function<std::vector<float>(Ops&, std::int64_t, std::int64_t)>;

void poison_row(std::vector<float>& data, std::int64_t rows, std::int64_t width) {
  if (rows > 2) std::fill_n(data.begin() + kPoisoned * width, width, kNaN);
}

class CudaRows : public CudaTest {
 protected:
  // The device agrees with the CPU on every row but the poisoned one, and gives the bits that it
  // gives to a row alone. A tolerance of zero asks for equal bits.
  void compare(std::int64_t rows, double tolerance, const RowBody& body) {
    const std::vector<float> expected = body(cpu(), 0, rows), found = body(gpu(), 0, rows);
    ASSERT_EQ(found.size(), expected.size());
    const auto width = static_cast<std::int64_t>(expected.size()) / rows;
    for (std::int64_t r = 0; r < rows; ++r) {
      if (rows > 2 && r == kPoisoned) continue;
      SCOPED_TRACE(::testing::Message() << "row " << r << " of " << rows);
      const std::vector<float> row = rows_of(found, r, 1, width);
      if (tolerance > 0)
        expect_near(row, rows_of(expected, r, 1, width), tolerance);
      else
        expect_same(row, rows_of(expected, r, 1, width));
      if (r % 8 == 0) expect_same(body(gpu(), r, 1), row);
      if (HasFatalFailure()) return;
    }
  }
};

// Concatenates outputs row by row.
std::vector<float> join(const std::vector<std::vector<float>>& parts, std::int64_t rows) {
  std::vector<float> out;
  for (std::int64_t r = 0; r < rows; ++r)
    for (const std::vector<float>& part : parts) {
      const auto width = static_cast<std::int64_t>(part.size()) / rows;
      out.insert(out.end(), part.begin() + r * width, part.begin() + (r + 1) * width);
    }
  return out;
}

TEST_F(CudaRows, EmbedCopiesTableRows) {
  const std::int64_t vocabulary = 50, width = 100, copies = 4;
  Random random(1);
  const std::vector<float> table = bf16_rounded(random.normals(vocabulary * width));
  std::vector<std::uint16_t> codes;
  for (const float x : table) codes.push_back(bf16_encode(x));
  for (const std::int64_t rows : kRowCounts)
    for (const DType type : {DType::kBF16, DType::kF32}) {
      const std::vector<std::int32_t> ids = random.integers(rows, vocabulary);
      compare(rows, 0, [&](Ops& ops, std::int64_t begin, std::int64_t n) {
        const Buffer memory = ops.allocate(vocabulary * width * bytes_of(type));
        const Tensor weights(memory.data(), type, {vocabulary, width});
        if (type == DType::kBF16)
          ops.upload(weights, codes.data());
        else
          ops.upload(weights, table.data());
        const Ints id(ops, {n}, rows_of(ids, begin, n, 1));
        const Floats out(ops, {n, copies, width});
        ops.embed({.ids = id, .table = weights, .streams = out});
        return out.values();
      });
    }
}

struct HcShape {
  std::int64_t hc, width;
};
const HcShape kHcShapes[] = {{4, 64}, {4, 4096}, {2, 100}, {8, 20}, {1, 32}};

// Weights of a site in the memory of `ops`: of hc_pre, or of hc_head with one mix per stream.
struct HcSite {
  Floats fn, base, scale;
  HcSite(Ops& ops, HcShape s, bool is_head)
      : HcSite(ops, is_head ? s.hc : (2 + s.hc) * s.hc, s.hc * s.width,
               is_head ? std::vector<float>{0.7f} : std::vector<float>{0.7f, 1.3f, 2.0f}) {}
  HcWeights weights() const { return {.fn = fn, .base = base, .scale = scale}; }

 private:
  HcSite(Ops& ops, std::int64_t mixes, std::int64_t n, const std::vector<float>& scales)
      : fn(ops, {mixes, n}, Random(2).normals(mixes * n, 1.0f / std::sqrt(static_cast<float>(n)))),
        base(ops, {mixes}, Random(3).normals(mixes)),
        scale(ops, {static_cast<std::int64_t>(scales.size())}, scales) {}
};

TEST_F(CudaRows, HcPreMatchesTheCpu) {
  for (const HcShape s : kHcShapes)
    for (const std::int64_t rows : kRowCounts) {
      const std::int64_t hc = s.hc, width = s.width;
      std::vector<float> streams = Random(4).normals(rows * hc * width, 3);
      poison_row(streams, rows, hc * width);
      compare(rows, 1e-4, [&](Ops& ops, std::int64_t begin, std::int64_t n) {
        const HcSite site(ops, s, false);
        const Floats x(ops, {n, hc, width}, rows_of(streams, begin, n, hc * width));
        const Floats out(ops, {n, width}), post(ops, {n, hc}), comb(ops, {n, hc, hc});
        ops.hc_pre({.streams = x,
                    .weights = site.weights(),
                    .sinkhorn_iters = 20,
                    .hc_eps = 1e-6f,
                    .norm_eps = 1e-6f,
                    .out = out,
                    .post = post,
                    .comb = comb});
        return join({out.values(), post.values(), comb.values()}, n);
      });
    }
}

// The coefficients are of order one while the collapsed streams may be large: compared apart.
TEST_F(CudaRows, HcPreCoefficientsMatchTheCpu) {
  const HcShape s = {4, 4096};
  const std::int64_t rows = 5, hc = 4;
  std::vector<float> streams = Random(40).normals(rows * hc * s.width, 50);
  poison_row(streams, rows, hc * s.width);
  compare(rows, 2e-5, [&](Ops& ops, std::int64_t begin, std::int64_t n) {
    const HcSite site(ops, s, false);
    const Floats x(ops, {n, hc, s.width}, rows_of(streams, begin, n, hc * s.width));
    const Floats out(ops, {n, s.width}), post(ops, {n, hc}), comb(ops, {n, hc, hc});
    ops.hc_pre({.streams = x,
                .weights = site.weights(),
                .sinkhorn_iters = 20,
                .hc_eps = 1e-6f,
                .norm_eps = 1e-6f,
                .out = out,
                .post = post,
                .comb = comb});
    return join({post.values(), comb.values()}, n);
  });
}

TEST_F(CudaRows, HcPostMatchesTheCpu) {
  for (const HcShape s : kHcShapes)
    for (const std::int64_t rows : kRowCounts) {
      const std::int64_t hc = s.hc, width = s.width;
      Random random(5);
      std::vector<float> streams = random.normals(rows * hc * width),
                         f = random.normals(rows * width);
      std::vector<float> post = random.normals(rows * hc), comb = random.normals(rows * hc * hc);
      for (std::vector<float>* data : {&streams, &f, &post, &comb})
        poison_row(*data, rows, static_cast<std::int64_t>(data->size()) / rows);
      compare(rows, 1e-5, [&](Ops& ops, std::int64_t begin, std::int64_t n) {
        const Floats x(ops, {n, hc, width}, rows_of(streams, begin, n, hc * width));
        const Floats f_in(ops, {n, width}, rows_of(f, begin, n, width));
        const Floats post_in(ops, {n, hc}, rows_of(post, begin, n, hc));
        const Floats comb_in(ops, {n, hc, hc}, rows_of(comb, begin, n, hc * hc));
        ops.hc_post({.f = f_in, .post = post_in, .comb = comb_in, .streams = x});
        return x.values();
      });
    }
}

TEST_F(CudaRows, HcHeadMatchesTheCpu) {
  for (const HcShape s : kHcShapes)
    for (const std::int64_t rows : kRowCounts) {
      std::vector<float> streams = Random(6).normals(rows * s.hc * s.width, 3);
      poison_row(streams, rows, s.hc * s.width);
      compare(rows, 1e-4, [&](Ops& ops, std::int64_t begin, std::int64_t n) {
        const HcSite site(ops, s, true);
        const Floats x(ops, {n, s.hc, s.width}, rows_of(streams, begin, n, s.hc * s.width));
        const Floats out(ops, {n, s.width});
        ops.hc_head({.streams = x,
                     .weights = site.weights(),
                     .hc_eps = 1e-6f,
                     .norm_eps = 1e-6f,
                     .out = out});
        return out.values();
      });
    }
}

TEST_F(CudaRows, RmsNormMatchesTheCpuAlsoInPlace) {
  for (const std::int64_t width : {8, 32, 100, 128, 512, 1024, 4096, 7168})
    for (const std::int64_t rows : kRowCounts) {
      std::vector<float> x = Random(7).normals(rows * width, 5);
      poison_row(x, rows, width);
      compare(rows, 1e-5, [&](Ops& ops, std::int64_t begin, std::int64_t n) {
        const Floats plain(ops, {n, width}, rows_of(x, begin, n, width)), out(ops, {n, width});
        const Floats weight(ops, {width}, Random(8).normals(width));
        ops.rms_norm({.x = plain, .weight = weight, .eps = 1e-6f, .out = out});
        ops.rms_norm({.x = plain, .weight = {}, .eps = 1e-6f, .out = plain});
        return join({out.values(), plain.values()}, n);
      });
    }
}

TEST_F(CudaRows, RopeMatchesTheCpuAtPositionsUpToAMillion) {
  struct Shape {
    std::int64_t heads, width, pairs;
  };
  for (const Shape s : {Shape{1, 512, 32}, Shape{64, 512, 32}, Shape{3, 40, 5}})
    for (const std::int64_t rows : kRowCounts)
      for (const bool inverse : {false, true}) {
        std::vector<float> x = Random(9).normals(rows * s.heads * s.width);
        poison_row(x, rows, s.heads * s.width);
        std::vector<std::int32_t> positions = Random(10).integers(rows, 1048576);
        positions[0] = 1000000;
        if (rows > 2) positions[kPoisoned] = -12345;
        std::vector<float> frequencies;
        for (std::int64_t i = 0; i < s.pairs; ++i)
          frequencies.push_back(std::pow(160000.0f, -static_cast<float>(i) / 32));
        compare(rows, 1e-6, [&](Ops& ops, std::int64_t begin, std::int64_t n) {
          const Floats data(ops, {n, s.heads, s.width}, rows_of(x, begin, n, s.heads * s.width));
          const Ints at(ops, {n}, rows_of(positions, begin, n, 1));
          const Floats inv_freq(ops, {s.pairs}, frequencies);
          ops.rope({.x = data, .positions = at, .inv_freq = inv_freq, .inverse = inverse});
          return data.values();
        });
      }
}

// Random rows of many magnitudes, and rows of zeros, ties, tiny and huge numbers.
std::vector<float> grid_rows(std::int64_t rows, std::int64_t width) {
  Random random(11);
  std::vector<float> x;
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < width; ++c) {
      const float special[] = {0.0f, -0.0f, 1e-41f, 3e38f, 0.25f * static_cast<float>(c % 29), 448};
      x.push_back(r % 3 == 0   ? random.normal(std::exp2(random.uniform(-12, 12)))
                  : r % 3 == 1 ? special[(r + c / 32) % 6]
                               : random.normal());
    }
  return x;
}

TEST_F(CudaRows, RoundToGridGivesTheBitsOfTheCpu) {
  struct Shape {
    std::int64_t width, rope_dim;
    CacheGrid grid;
  };
  for (const Shape s : {Shape{512, 64, CacheGrid::kLatent}, Shape{40, 6, CacheGrid::kLatent},
                        Shape{128, 0, CacheGrid::kIndex}, Shape{16, 0, CacheGrid::kIndex},
                        Shape{32, 8, CacheGrid::kNone}})
    for (const std::int64_t rows : kRowCounts) {
      const std::vector<float> x = grid_rows(rows, s.width);
      compare(rows, 0, [&](Ops& ops, std::int64_t begin, std::int64_t n) {
        const Floats data(ops, {n, 1, s.width}, rows_of(x, begin, n, s.width));
        ops.round_to_grid({.x = data, .grid = s.grid, .rope_dim = s.rope_dim});
        return data.values();
      });
    }
}

TEST_F(CudaRows, SwiGluMatchesTheCpuAlsoInPlace) {
  for (const float limit : {0.0f, 10.0f})
    for (const std::int64_t rows : kRowCounts) {
      const std::int64_t width = 2000;
      std::vector<float> gate = Random(12).normals(rows * width, 9);
      std::vector<float> up = Random(13).normals(rows * width, 9);
      poison_row(gate, rows, width);
      compare(rows, 1e-6, [&](Ops& ops, std::int64_t begin, std::int64_t n) {
        const Floats g(ops, {n, width}, rows_of(gate, begin, n, width));
        const Floats u(ops, {n, width}, rows_of(up, begin, n, width));
        ops.swiglu({.gate = g, .up = u, .limit = limit, .out = g});
        return g.values();
      });
    }
}

TEST_F(CudaRows, GatherRowsCopiesAnyRows) {
  const std::int64_t width = 77, from = 9;
  const std::vector<float> x = Random(14).normals(from * 4 * width);
  for (const std::int64_t rows : kRowCounts) {
    const std::vector<std::int32_t> chosen = Random(15).integers(rows, from);
    compare(rows, 0, [&](Ops& ops, std::int64_t begin, std::int64_t n) {
      const Floats data(ops, {from, 4, width}, x), out(ops, {n, 4, width});
      const Ints at(ops, {n}, rows_of(chosen, begin, n, 1));
      ops.gather_rows({.x = data, .rows = at, .out = out});
      return out.values();
    });
  }
}

TEST_F(CudaRows, AddToStreamsAddsToEveryStream) {
  const std::int64_t width = 300, hc = 4;
  for (const std::int64_t rows : kRowCounts) {
    const std::vector<float> x = Random(16).normals(rows * hc * width);
    const std::vector<float> e = Random(17).normals(rows * width);
    compare(rows, 0, [&](Ops& ops, std::int64_t begin, std::int64_t n) {
      const Floats streams(ops, {n, hc, width}, rows_of(x, begin, n, hc * width));
      const Floats added(ops, {n, width}, rows_of(e, begin, n, width));
      ops.add_to_streams({.e = added, .streams = streams});
      return streams.values();
    });
  }
}

struct RouteShape {
  std::int64_t experts, k;
};
const RouteShape kRouteShapes[] = {{8, 2}, {5, 5}, {256, 6}, {384, 8}, {33, 1}};

class CudaRoute : public CudaTest {
 protected:
  struct Result {
    std::vector<std::int32_t> ids;
    std::vector<float> weights;
  };
  void compare(RouteShape s, std::int64_t rows, const std::vector<float>& logits,
               const std::vector<float>& bias, const std::vector<std::int32_t>& table) {
    reserve(roomy(s));
    const std::int64_t tokens = static_cast<std::int64_t>(table.size()) / s.k;
    const std::vector<std::int32_t> ids =
        Random(18).integers(rows, std::max<std::int64_t>(1, tokens));
    const auto run = [&](Ops& ops) {
      const Floats logits_in(ops, {rows, s.experts}, logits);
      const Ints token_ids(ops, {rows}, ids), chosen(ops, {rows, s.k});
      const Floats weights(ops, {rows, s.k});
      std::unique_ptr<Floats> bias_in;
      std::unique_ptr<Ints> table_in;
      if (table.empty())
        bias_in =
            std::make_unique<Floats>(ops, std::initializer_list<std::int64_t>{s.experts}, bias);
      else
        table_in =
            std::make_unique<Ints>(ops, std::initializer_list<std::int64_t>{tokens, s.k}, table);
      ops.route({.logits = logits_in,
                 .bias = bias_in ? bias_in->tensor() : Tensor(),
                 .hash_table = table_in ? table_in->tensor() : Tensor(),
                 .token_ids = token_ids,
                 .scale = 1.5f,
                 .ids = chosen,
                 .weights = weights});
      return Result{chosen.values(), weights.values()};
    };
    const Result expected = run(cpu()), found = run(gpu());
    for (std::int64_t r = 0; r < rows; ++r) {
      const bool is_poisoned = rows > 2 && r == kPoisoned;
      for (const std::int32_t id : rows_of(found.ids, r, 1, s.k)) {
        ASSERT_GE(id, 0);
        ASSERT_LT(id, s.experts);
      }
      if (is_poisoned) continue;
      ASSERT_EQ(rows_of(found.ids, r, 1, s.k), rows_of(expected.ids, r, 1, s.k)) << "row " << r;
      expect_near(rows_of(found.weights, r, 1, s.k), rows_of(expected.weights, r, 1, s.k), 1e-6);
    }
  }

 private:
  static StepLimits roomy(RouteShape s) {
    StepLimits limits = roomy_limits();
    limits.num_experts = s.experts;
    return limits;
  }
};

TEST_F(CudaRoute, LearnedChoiceEqualsTheCpus) {
  for (const RouteShape s : kRouteShapes)
    for (const std::int64_t rows : kRowCounts) {
      std::vector<float> logits = Random(19).normals(rows * s.experts, 4);
      poison_row(logits, rows, s.experts);
      compare(s, rows, logits, Random(20).normals(s.experts, 0.2f), {});
    }
}

TEST_F(CudaRoute, LowestIdWinsTies) {
  for (const RouteShape s : kRouteShapes) {
    std::vector<float> logits;
    for (std::int64_t i = 0; i < 33 * s.experts; ++i)
      logits.push_back(static_cast<float>(i * 7 % 3) - 1);
    compare(s, 33, logits, std::vector<float>(static_cast<std::size_t>(s.experts), 0.0f), {});
  }
}

TEST_F(CudaRoute, HashTableChoosesByToken) {
  for (const RouteShape s : kRouteShapes)
    for (const std::int64_t rows : kRowCounts) {
      std::vector<float> logits = Random(21).normals(rows * s.experts, 4);
      poison_row(logits, rows, s.experts);
      compare(s, rows, logits, {}, Random(22).integers(40 * s.k, s.experts));
    }
}

class CudaNvfp4 : public CudaTest {
 protected:
  static constexpr std::int64_t kCols = 528;

  // Rounds x [10, kCols] on the device; a row per entry of `map`, or in place without one.
  std::vector<float> round(const std::vector<float>& x, const std::vector<std::int32_t>& map,
                           const std::vector<float>& scales) {
    const std::int64_t rows = map.empty() ? 10 : static_cast<std::int64_t>(map.size());
    const Floats in(gpu(), {10, kCols}, x), out(gpu(), {rows, kCols});
    const Ints row_map(gpu(), {rows}, map.empty() ? std::vector<std::int32_t>(10) : map);
    std::vector<float> padded = scales;
    padded.resize(static_cast<std::size_t>(rows));
    const Floats scales_in(gpu(), {rows}, padded);
    cuda::nvfp4_round_rows({.x = in.tensor().f32(),
                            .row_map = map.empty() ? nullptr : row_map.tensor().i32(),
                            .rows = static_cast<int>(rows),
                            .cols = static_cast<int>(kCols),
                            .global_scales = scales.empty() ? nullptr : scales_in.tensor().f32(),
                            .out = map.empty() ? in.tensor().f32() : out.tensor().f32()},
                           gpu().stream());
    return map.empty() ? in.values() : out.values();
  }

  static std::vector<float> expected(const std::vector<float>& x,
                                     const std::vector<std::int32_t>& map,
                                     const std::vector<float>& scales) {
    std::vector<float> out(map.size() * kCols);
    for (std::size_t r = 0; r < map.size(); ++r) {
      const float* row = x.data() + map[r] * kCols;
      const float g = scales.empty() ? nvfp4_row_scale(row, kCols) : scales[r];
      nvfp4_round_row(row, kCols, g, out.data() + r * kCols);
    }
    return out;
  }
};

TEST_F(CudaNvfp4, GivesTheBitsOfTheCpu) {
  const std::vector<float> x = grid_rows(10, kCols);
  const std::vector<std::int32_t> identity = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  const std::vector<std::int32_t> map = {3, 3, 0, 9, 1, 8, 2, 2, 2, 7, 6, 5, 4};
  std::vector<float> scales;
  for (std::size_t i = 0; i < map.size(); ++i)
    scales.push_back(std::exp2(static_cast<float>(i) - 9) / 3);
  expect_same(round(x, {}, {}), expected(x, identity, {}));
  expect_same(round(x, map, {}), expected(x, map, {}));
  expect_same(round(x, map, scales), expected(x, map, scales));
  const std::vector<float> ten(scales.begin(), scales.begin() + 10);
  expect_same(round(x, {}, ten), expected(x, identity, ten));
}

}  // namespace
}  // namespace quatrain::testing

// SPDX-License-Identifier: Apache-2.0
// route and experts against plain double precision: every weight format and activation mode, skewed
// routing, duplicates, padding.
#include <memory>

#include "support/random_matrix.h"
#include "support/reference_math.h"

namespace quatrain::testing {
namespace {

struct Routed {
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
};

Routed run_route(Ops& ops, const std::vector<float>& logits, std::int64_t tokens, std::int64_t k,
                 float scale, const std::vector<float>* bias,
                 const std::vector<std::int32_t>* table = nullptr,
                 std::vector<std::int32_t> token_ids = {}) {
  ops.reserve(roomy_limits());
  const auto experts = static_cast<std::int64_t>(logits.size()) / tokens;
  token_ids.resize(static_cast<std::size_t>(tokens), 0);
  const Floats in(ops, {tokens, experts}, logits);
  const Floats b(ops, {experts}, bias ? *bias : std::vector<float>(experts, kNaN));
  const Ints t(ops, {table ? static_cast<std::int64_t>(table->size()) / k : 1, k},
               table ? *table : std::vector<std::int32_t>(static_cast<std::size_t>(k), -999));
  const Ints tokens_in(ops, {tokens}, token_ids), ids(ops, {tokens, k});
  const Floats weights(ops, {tokens, k});
  const Tensor none;
  in_step([&] {
    ops.route({.logits = in,
               .bias = bias ? b.tensor() : none,
               .hash_table = table ? t.tensor() : none,
               .token_ids = tokens_in,
               .scale = scale,
               .ids = ids,
               .weights = weights});
  });
  return {ids.values(), weights.values()};
}

TEST(Route, SqrtSoftplusGoldenValues) {
  // Over a pair of experts with scores a and b the weights are a/(a+b) and b/(a+b).
  const float in[] = {-4, -1, 0, 1, 4, 30};
  const double golden[] = {0.134722, 0.559698, 0.832555, 1.145976, 2.004532, 5.477226};
  CpuOps ops(1);
  for (std::size_t i = 0; i < 6; ++i) {
    const std::vector<float> bias = {1e6f, 0};  // expert 0 first
    const Routed r = run_route(ops, {in[i], 0}, 1, 2, 1, &bias);
    EXPECT_NEAR(r.weights[0] / r.weights[1] * golden[2], golden[i], 3e-6 * golden[i] + 1e-6);
  }
}

TEST(Route, ExtremeLogitsStayFinite) {
  CpuOps ops(1);
  const std::vector<float> bias = {0, 0, 0};
  const Routed r = run_route(ops, {1000, 90, -80}, 1, 3, 1, &bias);
  for (const float w : r.weights) EXPECT_TRUE(std::isfinite(w));
  EXPECT_NEAR(r.weights[0] / r.weights[1], std::sqrt(1000.0 / 90.0), 1e-5);
}

TEST(Route, LearnedChoiceByBiasedWeightsByUnbiasedScores) {
  for (const std::int64_t tokens : {1, 3, 17}) {
    const std::int64_t experts = 23, k = 6;
    const std::vector<float> logits = Random(1).normals(tokens * experts, 3);
    const std::vector<float> bias = Random(2).normals(experts, 2);
    CpuOps ops(2);
    const Routed found = run_route(ops, logits, tokens, k, 2.5f, &bias);
    std::vector<double> weights;
    for (std::int64_t t = 0; t < tokens; ++t) {
      const reference::Choice c = reference::route(
          reference::to_double(rows_of(logits, t, 1, experts)), reference::to_double(bias), k, 2.5);
      EXPECT_EQ(rows_of(found.ids, t, 1, k), c.ids);
      weights.insert(weights.end(), c.weights.begin(), c.weights.end());
    }
    expect_close(found.weights, weights, 1e-6);
    expect_invariant(tokens, [&](Ops& own, std::int64_t begin, std::int64_t count) {
      const Routed r =
          run_route(own, rows_of(logits, begin, count, experts), count, k, 2.5f, &bias);
      std::vector<float> out;
      for (std::size_t i = 0; i < r.ids.size(); ++i) {
        out.push_back(static_cast<float>(r.ids[i]));
        out.push_back(r.weights[i]);
      }
      return out;
    });
  }
}

TEST(Route, LowestIdWinsAmongEqualsAndAllExpertsMayBeChosen) {
  CpuOps ops(1);
  const std::vector<float> bias(5, 0);
  EXPECT_EQ(run_route(ops, {1, 2, 1, 2, 1}, 1, 4, 1, &bias).ids,
            (std::vector<std::int32_t>{1, 3, 0, 2}));
  EXPECT_EQ(run_route(ops, {1, 5, 2, 4, 3}, 1, 5, 1, &bias).ids,
            (std::vector<std::int32_t>{1, 3, 4, 2, 0}));
}

TEST(Route, HashTableWithDuplicatesFollowsTheToken) {
  const std::vector<std::int32_t> table = {0, 1, 2, 3, 3, 3, 4, 0, 4};
  const std::vector<float> logits = Random(1).normals(4 * 5);
  const std::vector<std::int32_t> tokens = {2, 0, 1, 1};
  CpuOps ops(2);
  const Routed found = run_route(ops, logits, 4, 3, 1.5f, nullptr, &table, tokens);
  for (std::int64_t t = 0; t < 4; ++t) {
    const std::vector<std::int32_t> ids = rows_of(table, tokens[static_cast<std::size_t>(t)], 1, 3);
    EXPECT_EQ(rows_of(found.ids, t, 1, 3), ids);
    reference::Row scores;
    for (const float g : rows_of(logits, t, 1, 5)) scores.push_back(reference::sqrt_softplus(g));
    expect_close(rows_of(found.weights, t, 1, 3), reference::normalised(scores, ids, 1.5), 1e-6);
  }
}

// ---- experts ----

struct Layer {
  Layer(const MatrixKind& kind, std::int64_t experts, std::int64_t width, std::int64_t expert_width,
        float input_scale = 0)
      : count(experts), hidden(width), inner(expert_width) {
    for (std::int64_t e = 0; e < count; ++e)
      for (int m = 0; m < 3; ++m) {
        const bool down = m == 2;
        matrices.push_back(std::make_unique<RandomMatrix>(kind, down ? hidden : inner,
                                                          down ? inner : hidden,
                                                          static_cast<unsigned>(100 + 3 * e + m)));
        matrices.back()->view().input_scale = down ? 0.7f * input_scale : input_scale;
      }
  }

  QuantMatrix& matrix(std::int64_t e, int m) const {
    return matrices[static_cast<std::size_t>(3 * e + m)]->view();
  }
  reference::Row product(std::int64_t e, int m, const reference::Row& x) const {
    const auto& matrix_ = *matrices[static_cast<std::size_t>(3 * e + m)];
    reference::Row out;
    for (std::int64_t r = 0; r < (m == 2 ? hidden : inner); ++r)
      out.push_back(reference::inner(matrix_.row(r), x));
    return out;
  }

  std::unique_ptr<PackedExperts> pack(Ops& ops) const {
    auto packed = ops.make_experts("experts", count, hidden, inner);
    packed->fp8_inputs = fp8_inputs;
    for (std::int64_t e = 0; e < count; ++e)
      ops.pack_expert(*packed, e, matrix(e, 0), matrix(e, 1), matrix(e, 2));
    return packed;
  }

  // Makes NVFP4 scales such as casts of MXFP4 have: powers of two in pairs, from 2^-9 to 2^4.
  void cast() {
    fp8_inputs = true;
    Random random(11);
    for (const auto& matrix : matrices) {
      QuantMatrix& w = matrix->view();
      auto* scales = const_cast<std::byte*>(w.scales);
      for (std::int64_t i = 0; w.format == WeightFormat::kNvfp4 && i < w.scale_count(); i += 2) {
        const auto byte = e4m3_encode(std::exp2(static_cast<float>(random.integer(-9, 4))));
        scales[i] = scales[i + 1] = std::byte{byte};
      }
    }
  }

  std::int64_t count, hidden, inner;
  std::vector<std::unique_ptr<RandomMatrix>> matrices;
  bool fp8_inputs = false;
};

// slots: −1 marks padded rows.
struct Case {
  std::vector<float> x, weights, before;
  std::vector<std::int32_t> ids, slots;
  std::int64_t k = 0;
  float limit = 10;
  ExpertActivations mode = ExpertActivations::kFull;
  std::int64_t tokens() const { return static_cast<std::int64_t>(slots.size()); }
};

std::vector<float> run_experts(Ops& ops, const Layer& layer, const Case& c, std::int64_t begin,
                               std::int64_t count) {
  const auto packed = layer.pack(ops);
  ops.reserve(roomy_limits());
  const std::vector<std::int32_t> slots = rows_of(c.slots, begin, count, 1);
  std::vector<Chunk> chunks;
  for (std::int64_t t = 0; t < count; ++t)
    chunks.push_back({slots[static_cast<std::size_t>(t)], t, 1});
  const Step step(ops, chunks, 32, 1);
  const Floats x(ops, {count, layer.hidden}, rows_of(c.x, begin, count, layer.hidden));
  const Floats out(ops, {count, layer.hidden}, rows_of(c.before, begin, count, layer.hidden));
  const Ints ids(ops, {count, c.k}, rows_of(c.ids, begin, count, c.k));
  const Floats weights(ops, {count, c.k}, rows_of(c.weights, begin, count, c.k));
  in_step([&] {
    ops.experts({.batch = step.batch(),
                 .x = x,
                 .ids = ids,
                 .weights = weights,
                 .w = packed.get(),
                 .limit = c.limit,
                 .activations = c.mode,
                 .out = out});
  });
  return out.values();
}

double row_scale(const reference::Row& x) {
  double amax = 0;
  for (const double v : x) amax = std::max(amax, std::abs(v));
  return amax / (6 * 448);
}

// The nearest multiples, up to 127, of the power of two per group of 32 that puts the largest
// magnitude at 64 to 127; groups far below the row's largest count as 2^-24 of it.
reference::Row int8_grid(reference::Row x) {
  const auto largest = [](std::span<const double> group) {
    double amax = std::exp2(-100);
    for (const double v : group) amax = std::max(amax, std::abs(v));
    return std::ilogb(amax);
  };
  const int row = largest(x);
  for (std::size_t begin = 0; begin < x.size(); begin += 32) {
    const std::span<double> group =
        std::span(x).subspan(begin, std::min<std::size_t>(32, x.size() - begin));
    const double unit = std::exp2(std::max(largest(group), row - 24) - 6);
    for (double& v : group) v = std::clamp(std::nearbyint(v / unit), -127.0, 127.0) * unit;
  }
  return x;
}

// The nearest E4M3 value, ties to even, saturating, from the format's definition.
double nearest_e4m3(double x) {
  const double magnitude = std::min(std::abs(x), 448.0);
  const int exponent = std::max(magnitude > 0 ? std::ilogb(magnitude) : -6, -6);
  const double step = std::ldexp(1.0, exponent - 3);
  return std::copysign(std::nearbyint(magnitude / step) * step, x);
}

// E4M3 with a power of two per group of 128: the lowest that keeps the group within 448, of
// magnitudes of 1e-4 at least.
reference::Row fp8_grid(reference::Row x) {
  for (std::size_t begin = 0; begin < x.size(); begin += 128) {
    const std::span<double> group =
        std::span(x).subspan(begin, std::min<std::size_t>(128, x.size() - begin));
    double amax = 1e-4;
    for (const double v : group) amax = std::max(amax, std::abs(v));
    const double scale = std::exp2(std::ceil(std::log2(amax / 448)));
    for (double& v : group) v = nearest_e4m3(v / scale) * scale;
  }
  return x;
}

// x as projection `p` of expert `e` is given it.
reference::Row rounded(const Layer& layer, ExpertActivations mode, std::int64_t e, int p,
                       reference::Row x) {
  switch (mode) {
    case ExpertActivations::kFull:
      break;
    case ExpertActivations::kBf16:
      for (double& v : x) v = bf16_round(static_cast<float>(v));
      break;
    case ExpertActivations::kInt8: {
      const WeightFormat format = layer.matrix(e, p).format;
      if (format == WeightFormat::kNvfp4 || format == WeightFormat::kMxfp4) return int8_grid(x);
      break;
    }
    case ExpertActivations::kFp8:
      return fp8_grid(x);
    case ExpertActivations::kNvfp4:
      return reference::nvfp4(x, row_scale(x));
    case ExpertActivations::kStatic:
      return reference::nvfp4(x, layer.matrix(e, p).input_scale);
  }
  return x;
}

reference::Row expected_token(const Layer& layer, const Case& c, std::int64_t t) {
  const bool fixed = c.mode == ExpertActivations::kStatic;
  reference::Row out = reference::to_double(rows_of(c.before, t, 1, layer.hidden));
  for (std::int64_t i = 0; i < c.k; ++i) {
    const auto at = static_cast<std::size_t>(t * c.k + i);
    const std::int64_t e = c.ids[at];
    const reference::Row x =
        rounded(layer, c.mode, e, 0, reference::to_double(rows_of(c.x, t, 1, layer.hidden)));
    const reference::Row gate = layer.product(e, 0, x), up = layer.product(e, 1, x);
    reference::Row h;
    for (std::size_t n = 0; n < gate.size(); ++n)
      h.push_back(reference::swiglu(gate[n], up[n], c.limit) * (fixed ? c.weights[at] : 1));
    const reference::Row y = layer.product(e, 2, rounded(layer, c.mode, e, 2, h));
    for (std::size_t d = 0; d < y.size(); ++d) out[d] += y[d] * (fixed ? 1 : c.weights[at]);
  }
  return out;
}

void expect_experts(const Layer& layer, const Case& c, double tolerance) {
  CpuOps ops(2);
  const std::vector<float> found = run_experts(ops, layer, c, 0, c.tokens());
  for (std::int64_t t = 0; t < c.tokens(); ++t) {
    const std::vector<float> row = rows_of(found, t, 1, layer.hidden);
    if (c.slots[static_cast<std::size_t>(t)] < 0)
      EXPECT_TRUE(same_bits(row, rows_of(c.before, t, 1, layer.hidden))) << "padded row " << t;
    else
      expect_close(row, expected_token(layer, c, t), tolerance);
  }
}

// Random rows; every fifth is padding, full of NaN.
Case random_case(const Layer& layer, std::int64_t tokens, std::int64_t k, ExpertActivations mode) {
  Random random(9);
  Case c{.x = random.normals(tokens * layer.hidden),
         .weights = random.normals(tokens * k, 0.5f),
         .before = random.normals(tokens * layer.hidden),
         .ids = random.integers(tokens * k, layer.count),
         .slots = {},
         .k = k,
         .mode = mode};
  for (std::int64_t t = 0; t < tokens; ++t) {
    c.slots.push_back(t % 5 == 4 ? -1 : static_cast<std::int32_t>(t));
    if (t % 5 != 4) continue;
    std::fill_n(c.x.begin() + t * layer.hidden, layer.hidden, kNaN);
    std::fill_n(c.weights.begin() + t * k, k, kNaN);
  }
  return c;
}

class ExpertsOfFormat : public ::testing::TestWithParam<MatrixKind> {};

TEST_P(ExpertsOfFormat, MatchDoublePrecision) {
  const std::int64_t multiple = column_multiple(GetParam().format);
  const Layer layer(GetParam(), 7, multiple == 1 ? 45 : 3 * multiple,
                    multiple == 1 ? 37 : 5 * multiple);
  for (const std::int64_t tokens : {1, 3, 17})
    expect_experts(layer, random_case(layer, tokens, 3, ExpertActivations::kFull), 3e-4);
}

TEST_P(ExpertsOfFormat, RoundedActivationsMatchDoublePrecision) {
  const Layer layer(GetParam(), 5, 96, 160, 0.002f);
  for (const auto mode : {ExpertActivations::kNvfp4, ExpertActivations::kStatic})
    expect_experts(layer, random_case(layer, 9, 2, mode), 3e-4);
  // A hidden value within FP32 noise of a tie may round the other way.
  expect_experts(layer, random_case(layer, 9, 2, ExpertActivations::kInt8), 1e-2);
  expect_experts(layer, random_case(layer, 9, 2, ExpertActivations::kBf16), 4e-3);
}

INSTANTIATE_TEST_SUITE_P(Moe, ExpertsOfFormat, ::testing::ValuesIn(kMatrixKinds),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(Experts, Fp8InputsMatchDoublePrecision) {
  for (const MatrixKind& kind : {kMatrixKinds[3], kMatrixKinds[4]}) {
    Layer layer(kind, 5, 416, 160);
    layer.cast();
    // A hidden value within FP32 noise of a tie may round the other way.
    expect_experts(layer, random_case(layer, 9, 2, ExpertActivations::kFp8), 1e-2);
    // Rows whose groups differ by many binades, and one below the least magnitude.
    Case c = random_case(layer, 9, 2, ExpertActivations::kFp8);
    for (std::size_t i = 0; i < c.x.size(); ++i)
      c.x[i] *= std::exp2(static_cast<float>(static_cast<int>(i / 128 % 7) * 6 - 24));
    expect_experts(layer, c, 1e-2);
  }
}

TEST(Experts, Fp8InputsAreRefusedWhereTheyAreNotExact) {
  Layer layer(kMatrixKinds[3], 3, 64, 32);
  CpuOps ops(1);
  EXPECT_THROW(run_experts(ops, layer, random_case(layer, 1, 1, ExpertActivations::kFp8), 0, 1),
               Error);  // not packed for it
  layer.cast();
  const auto scale = const_cast<std::byte*>(layer.matrix(2, 2).scales) + 7;
  *scale = std::byte{0x39};
  try {
    layer.pack(ops);
    ADD_FAILURE() << "expected an Error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("row 3, columns 16 to 31"), std::string::npos)
        << error.what();
  }
}

TEST(Experts, KeepTheirBitsForAnyThreadsAndRows) {
  Layer layer(kMatrixKinds[3], 6, 64, 64, 0.002f);
  layer.cast();
  for (const auto mode :
       {ExpertActivations::kFull, ExpertActivations::kBf16, ExpertActivations::kInt8,
        ExpertActivations::kFp8, ExpertActivations::kNvfp4, ExpertActivations::kStatic}) {
    Case c = random_case(layer, 4, 3, mode);  // no padding: a NaN has no bits to compare
    expect_invariant(4, [&](Ops& ops, std::int64_t begin, std::int64_t count) {
      return run_experts(ops, layer, c, begin, count);
    });
  }
}

TEST(Experts, SkewedAndDuplicateRouting) {
  const Layer layer(kMatrixKinds[1], 8, 33, 21);
  Case c = random_case(layer, 17, 3, ExpertActivations::kFull);
  std::fill(c.ids.begin(), c.ids.end(), 5);  // all tokens on one expert, three times over
  expect_experts(layer, c, 1e-4);
  for (std::size_t i = 0; i < c.ids.size(); ++i) c.ids[i] = i % 3 == 0 ? 0 : 7;  // first and last
  expect_experts(layer, c, 1e-4);
}

TEST(Experts, AllRowsPaddedChangesNothing) {
  Layer layer(kMatrixKinds[4], 3, 32, 32);
  layer.cast();
  for (const auto mode :
       {ExpertActivations::kFull, ExpertActivations::kBf16, ExpertActivations::kInt8,
        ExpertActivations::kFp8, ExpertActivations::kNvfp4, ExpertActivations::kStatic}) {
    Case c = random_case(layer, 3, 2, mode);
    std::fill(c.slots.begin(), c.slots.end(), -1);
    expect_experts(layer, c, 0);
  }
}

TEST(Experts, StaleScratchOfALargerStepIsNotRead) {
  const Layer layer(kMatrixKinds[3], 4, 64, 32, 0.002f);
  CpuOps ops(2);
  Case poisoned = random_case(layer, 17, 2, ExpertActivations::kNvfp4);
  std::fill(poisoned.x.begin(), poisoned.x.end(), kNaN);
  run_experts(ops, layer, poisoned, 0, 17);
  const Case c = random_case(layer, 4, 2, ExpertActivations::kNvfp4);
  CpuOps fresh(2);
  EXPECT_TRUE(same_bits(run_experts(ops, layer, c, 0, 4), run_experts(fresh, layer, c, 0, 4)));
}

TEST(Experts, ZeroInputsGiveZeroInEveryMode) {
  Layer layer(kMatrixKinds[3], 2, 32, 32, 0.002f);
  layer.cast();
  for (const auto mode :
       {ExpertActivations::kFull, ExpertActivations::kBf16, ExpertActivations::kInt8,
        ExpertActivations::kFp8, ExpertActivations::kNvfp4, ExpertActivations::kStatic}) {
    Case c = random_case(layer, 1, 2, mode);
    std::fill(c.x.begin(), c.x.end(), 0.0f);
    CpuOps ops(1);
    EXPECT_EQ(run_experts(ops, layer, c, 0, 1), c.before);
  }
}

}  // namespace
}  // namespace quatrain::testing

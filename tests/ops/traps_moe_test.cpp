// SPDX-License-Identifier: Apache-2.0
// Known mistakes of other implementations, numbered as in the specification's list of traps:
// hyper-connections, router and experts. The others of one operation are in traps_test.cpp.
#include "core/codec.h"
#include "support/op_harness.h"
#include "support/reference_math.h"

namespace quatrain::testing {
namespace {

// ---- hyper-connections ----

struct OneSite {
  std::int64_t hc = 4;
  std::vector<float> streams, fn, base = std::vector<float>(24, 0), scale = {1, 1, 1};
  int iterations = 20;

  std::vector<float> out, post, comb;
  OneSite& run() {
    CpuOps ops(1);
    const auto total = static_cast<std::int64_t>(streams.size());
    const Floats x(ops, {1, hc, total / hc}, streams);
    if (fn.empty()) fn.assign(static_cast<std::size_t>(24 * total), 0);
    const Floats f(ops, {24, total}, fn), b(ops, {24}, base), s(ops, {3}, scale);
    const Floats y(ops, {1, total / hc}), p(ops, {1, hc}), c(ops, {1, hc, hc});
    in_step([&] {
      ops.hc_pre({.streams = x,
                  .weights = {.fn = f, .base = b, .scale = s},
                  .sinkhorn_iters = iterations,
                  .hc_eps = 1e-6f,
                  .norm_eps = 1e-6f,
                  .out = y,
                  .post = p,
                  .comb = c});
    });
    out = y.values();
    post = p.values();
    comb = c.values();
    return *this;
  }
};

TEST(Traps, Trap26StreamsAreMixedByTheTransposedMatrix) {
  OneSite site;
  site.streams = {1, 2, 3, 4};
  for (int i = 0; i < 16; ++i)
    site.base[static_cast<std::size_t>(8 + i)] = static_cast<float>(2 * std::sin(1.0 + i));
  site.run();
  CpuOps ops(1);
  const Floats x(ops, {1, 4, 1}, site.streams), f(ops, {1, 1}, {0});
  const Floats post(ops, {1, 4}, site.post), comb(ops, {1, 4, 4}, site.comb);
  in_step([&] { ops.hc_post({.f = f, .post = post, .comb = comb, .streams = x}); });
  const double right[] = {2.468020, 2.477915, 2.716176, 2.337878};
  const double untransposed[] = {1.947592, 3.627012, 1.979268, 2.446118};
  for (std::size_t k = 0; k < 4; ++k) {
    EXPECT_NEAR(x.values()[k], right[k], 2e-6);
    EXPECT_GT(std::abs(x.values()[k] - untransposed[k]), 0.1);
  }
}

TEST(Traps, Trap27SinkhornBeginsAndEndsWithColumns) {
  OneSite site;
  site.streams = {1, 1, 1, 1};
  for (int i = 0; i < 16; ++i)
    site.base[static_cast<std::size_t>(8 + i)] = static_cast<float>(2 * std::sin(1.0 + i));
  const reference::Row logits = reference::to_double(std::span(site.base).subspan(8, 16));
  for (const int iterations : {1, 2, 3, 20}) {
    site.iterations = iterations;
    site.run();
    expect_close(site.comb, reference::sinkhorn(logits, 4, iterations, 1e-6), 1e-6);
    double worst_row = 0;
    for (std::size_t i = 0; i < 4; ++i) {
      double column = 0, row = 0;
      for (std::size_t j = 0; j < 4; ++j) {
        column += site.comb[j * 4 + i];
        row += site.comb[i * 4 + j];
      }
      EXPECT_NEAR(column, 0.999999, 5e-7) << "columns last, with eps in the divisor";
      worst_row = std::max(worst_row, std::abs(row - 1));
    }
    if (iterations <= 2) {
      EXPECT_GT(worst_row, 1e-3) << "rows are not normalised after the columns";
    }
  }
}

TEST(Traps, Trap28NeutralPreAndPost) {
  OneSite site;
  site.streams = {1, 0, 0, 0};
  site.run();
  for (const float post : site.post) EXPECT_EQ(post, 1) << "2·sigmoid(0), no eps";
  EXPECT_NEAR(site.out[0], 0.5 + 1e-6, 3e-8) << "sigmoid(0) + eps";
}

TEST(Traps, Trap29MixesAreFullPrecision) {
  const std::int64_t total = 4 * 4096;  // the published width
  OneSite site;
  Random random(5);
  site.streams = random.normals(total);
  site.fn = random.normals(24 * total, 1.0f / 128);
  site.base = random.normals(24);
  site.scale = {1.37f, 0.71f, 1.93f};
  site.run();
  const reference::Site expected = reference::hc_site(
      reference::to_double(site.streams), 4, reference::to_double(site.fn),
      reference::to_double(site.base), reference::to_double(site.scale), 20, 1e-6, 1e-6);
  expect_close(site.post, expected.post, 1e-5);
  expect_close(site.comb, expected.comb, 1e-5);
  expect_close(site.out, reference::collapse(reference::to_double(site.streams), expected.pre),
               1e-5);
}

TEST(Traps, Trap30MixesNormaliseAllStreamsTogether) {
  OneSite site;
  Random random(6);
  site.streams = random.normals(4 * 8);
  for (std::size_t d = 0; d < 8; ++d) site.streams[8 + d] *= 100;
  site.fn = random.normals(24 * 32);
  site.run();
  const reference::Site expected =
      reference::hc_site(reference::to_double(site.streams), 4, reference::to_double(site.fn),
                         reference::to_double(site.base), {1, 1, 1}, 20, 1e-6, 1e-6);
  expect_close(site.post, expected.post, 1e-5);
  expect_close(site.comb, expected.comb, 1e-5);
}

// ---- experts ----

// One expert whose gate and up of the input (1, 0, …) are the given numbers and whose down matrix
// is the identity on channel 0; 16 wide, so that every activation mode takes it.
class OneExpert {
 public:
  OneExpert(float gate, float up, float w1_scale = 0, float w2_scale = 0)
      : w1_(256, 0), w3_(256, 0), w2_(256, 0), w1_scale_(w1_scale), w2_scale_(w2_scale) {
    w1_[0] = gate;
    w3_[0] = up;
    w2_[0] = 1;
  }

  // `x` [16], routing weight, limit → out [16] of zeros plus the expert's.
  std::vector<float> run(ExpertActivations mode, float limit = 10, float weight = 1,
                         std::vector<float> x = {}) {
    if (x.empty()) {
      x.assign(16, 0);
      x[0] = 1;
    }
    CpuOps ops(1);
    const auto experts = ops.make_experts("one", 1, 16, 16);
    ops.pack_expert(*experts, 0, view(w1_, w1_scale_), view(w3_, w1_scale_), view(w2_, w2_scale_));
    ops.reserve(roomy_limits());
    const Step step(ops, {{0, 0, 1}});
    const Floats in(ops, {1, 16}, x), out(ops, {1, 16}, std::vector<float>(16, 0));
    const Floats weights(ops, {1, 1}, {weight});
    const Ints ids(ops, {1, 1}, {0});
    in_step([&] {
      ops.experts({.batch = step.batch(),
                   .x = in,
                   .ids = ids,
                   .weights = weights,
                   .w = experts.get(),
                   .limit = limit,
                   .activations = mode,
                   .out = out});
    });
    return out.values();
  }

 private:
  static QuantMatrix view(const std::vector<float>& w, float input_scale) {
    return {.name = "one",
            .format = WeightFormat::kDense,
            .rows = 16,
            .cols = 16,
            .dtype = DType::kF32,
            .values = reinterpret_cast<const std::byte*>(w.data()),
            .input_scale = input_scale};
  }

  std::vector<float> w1_, w3_, w2_;
  float w1_scale_, w2_scale_;
};

TEST(Traps, Trap32ClampIsBeforeSiluAndOneSidedForTheGate) {
  const struct {
    float gate, up;
    double expected;
  } cases[] = {{12, 3, 29.9986}, {-12, -15, 7.3730e-4}, {5, 11, 49.6654}};
  for (const auto& c : cases) {
    // Rounded modes: one value per block is kept exactly, so the clamp shows in them as well.
    const auto range = static_cast<float>(c.expected / 2688);
    OneExpert expert(c.gate, c.up, 1.0f / 2688, range);
    for (const auto mode :
         {ExpertActivations::kFull, ExpertActivations::kNvfp4, ExpertActivations::kStatic})
      EXPECT_NEAR(expert.run(mode)[0], c.expected, 2e-5 * c.expected)
          << c.gate << ", " << c.up << " mode " << static_cast<int>(mode);
    EXPECT_NEAR(expert.run(ExpertActivations::kFull, 0)[0], reference::swiglu(c.gate, c.up, 0),
                1e-5 * std::abs(reference::swiglu(c.gate, c.up, 0)));
  }
}

// w2's input_scale was calibrated on weighted activations. With a small routing weight the
// unweighted ones saturate every block scale at 448.
TEST(Traps, Trap45StaticScalesTakeTheWeightBeforeW2) {
  const float weight = 0.05f;
  Random random(3);
  std::vector<float> x = random.normals(16);
  OneExpert free(2.5f, 1.5f);
  const double h = free.run(ExpertActivations::kFull, 10, 1, x)[0];
  const auto calibrated = static_cast<float>(std::abs(h) * weight * 1.1 / 2688);
  OneExpert expert(2.5f, 1.5f, 4.0f / 2688, calibrated);
  const double found = expert.run(ExpertActivations::kStatic, 10, weight, x)[0];
  // Unweighted, the only block has amax/6 above 448·g, and 6·448·g is all that remains of h.
  const double saturated = std::copysign(weight * 2688.0 * calibrated, h);
  EXPECT_GT(std::abs(h) / 6 / calibrated, 2 * 448) << "the data must saturate the wrong placement";
  EXPECT_NEAR(found, weight * h, 0.15 * std::abs(weight * h));
  EXPECT_LT(std::abs(saturated), 0.1 * std::abs(weight * h));
}

// ---- router ----

struct Routed {
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
};

Routed route_one(const std::vector<float>& logits, const std::vector<float>& bias, std::int64_t k,
                 float scale) {
  CpuOps ops(1);
  ops.reserve(roomy_limits());
  const auto n = static_cast<std::int64_t>(logits.size());
  const Floats in(ops, {1, n}, logits), b(ops, {n}, bias), weights(ops, {1, k});
  const Ints token(ops, {1}, {0}), ids(ops, {1, k});
  in_step([&] {
    ops.route({.logits = in,
               .bias = b,
               .hash_table = {},
               .token_ids = token,
               .scale = scale,
               .ids = ids,
               .weights = weights});
  });
  return {ids.values(), weights.values()};
}

TEST(Traps, Trap34BiasSelectsAndWeightsSumToTheScale) {
  for (const float scale : {1.5f, 2.5f}) {
    const Routed r = route_one({1, 2, 3, 4, 0}, {9, 0, 0, 0, 9}, 3, scale);
    EXPECT_EQ(r.ids, (std::vector<std::int32_t>{0, 4, 3}));
    EXPECT_NEAR(r.weights[0] + r.weights[1] + r.weights[2], scale, 1e-6);
    EXPECT_NEAR(r.weights[0] / r.weights[2],
                reference::sqrt_softplus(1) / reference::sqrt_softplus(4), 1e-6)
        << "weights know no bias";
  }
}

TEST(Traps, Trap35ScoresAreTheRootOfSoftplus) {
  const double golden[][2] = {{-4, 0.134722}, {-1, 0.559698}, {0, 0.832555},
                              {1, 1.145976},  {4, 2.004532},  {30, 5.477226}};
  for (const auto& [g, score] : golden) {
    const Routed r = route_one({static_cast<float>(g), 1}, {1e6f, 0}, 2, 1);
    EXPECT_NEAR(r.weights[0], score / (score + 1.145976), 1e-6) << g;
  }
  const Routed large = route_one({200, 800}, {1e6f, 0}, 2, 1);
  EXPECT_NEAR(large.weights[0], 1.0 / 3, 1e-6) << "softplus of large logits is the logit";
}

}  // namespace
}  // namespace quatrain::testing

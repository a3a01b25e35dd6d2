// SPDX-License-Identifier: Apache-2.0
// hc_pre, hc_post, hc_head against plain double precision and the golden Sinkhorn matrix of 2.2.
#include "support/op_harness.h"
#include "support/reference_math.h"

namespace quatrain::testing {
namespace {

// Random tests take epsilons large enough that leaving one out shows; golden ones the model's.
constexpr float kHcEps = 0.01f;
constexpr float kNormEps = 0.3f;
constexpr float kModelEps = 1e-6f;

struct SiteWeights {
  std::vector<float> fn, base, scale;
};

SiteWeights random_site(std::int64_t mixes, std::int64_t width, std::int64_t scales,
                        unsigned seed) {
  Random random(seed);
  SiteWeights w{random.normals(mixes * width, 0.1f), random.normals(mixes), random.normals(scales)};
  return w;
}

struct Outputs {
  std::vector<float> out, post, comb;
  std::vector<float> joined(std::int64_t rows) const {
    std::vector<float> all;
    for (std::int64_t r = 0; r < rows; ++r)
      for (const auto* v : {&out, &post, &comb}) {
        const auto width = static_cast<std::int64_t>(v->size()) / rows;
        const std::vector<float> row = rows_of(*v, r, 1, width);
        all.insert(all.end(), row.begin(), row.end());
      }
    return all;
  }
};

Outputs run_pre(Ops& ops, const std::vector<float>& x, std::int64_t rows, std::int64_t hc,
                const SiteWeights& w, float hc_eps = kHcEps, float norm_eps = kNormEps) {
  const auto width = static_cast<std::int64_t>(x.size()) / (rows * hc);
  const Floats streams(ops, {rows, hc, width}, x);
  const Floats fn(ops, {(2 + hc) * hc, hc * width}, w.fn), base(ops, {(2 + hc) * hc}, w.base);
  const Floats scale(ops, {3}, w.scale);
  const Floats out(ops, {rows, width}), post(ops, {rows, hc}), comb(ops, {rows, hc, hc});
  in_step([&] {
    ops.hc_pre({.streams = streams,
                .weights = {.fn = fn, .base = base, .scale = scale},
                .sinkhorn_iters = 20,
                .hc_eps = hc_eps,
                .norm_eps = norm_eps,
                .out = out,
                .post = post,
                .comb = comb});
  });
  return {out.values(), post.values(), comb.values()};
}

TEST(HyperConnections, PreOfRandomStreams) {
  for (const std::int64_t hc : {2, 4, 5})
    for (const std::int64_t tokens : {1, 3, 17}) {
      const std::int64_t width = 29;
      const SiteWeights w = random_site((2 + hc) * hc, hc * width, 3, 1);
      const std::vector<float> x = Random(2).normals(tokens * hc * width, 3);
      CpuOps ops(2);
      const Outputs found = run_pre(ops, x, tokens, hc, w);
      std::vector<double> out, post, comb;
      for (std::int64_t t = 0; t < tokens; ++t) {
        const reference::Row v = reference::to_double(rows_of(x, t, 1, hc * width));
        const reference::Site site = reference::hc_site(
            v, static_cast<std::size_t>(hc), reference::to_double(w.fn),
            reference::to_double(w.base), reference::to_double(w.scale), 20, kHcEps, kNormEps);
        const reference::Row y = reference::collapse(v, site.pre);
        out.insert(out.end(), y.begin(), y.end());
        post.insert(post.end(), site.post.begin(), site.post.end());
        comb.insert(comb.end(), site.comb.begin(), site.comb.end());
      }
      expect_close(found.out, out, 1e-5);
      expect_close(found.post, post, 1e-5);
      expect_close(found.comb, comb, 1e-5);
    }
}

TEST(HyperConnections, PreKeepsItsBitsForAnyThreadsAndRows) {
  const std::int64_t hc = 4, width = 21;
  const SiteWeights w = random_site((2 + hc) * hc, hc * width, 3, 1);
  const std::vector<float> x = Random(2).normals(9 * hc * width);
  expect_invariant(9, [&](Ops& ops, std::int64_t begin, std::int64_t count) {
    return run_pre(ops, rows_of(x, begin, count, hc * width), count, hc, w).joined(count);
  });
}

// The matrix of logits 2·sin(1 + 4j + k), and what it makes of streams 1, 2, 3, 4 with f = 0.
TEST(HyperConnections, SinkhornGoldenMatrix) {
  const std::int64_t hc = 4;
  SiteWeights w{std::vector<float>(24 * hc, 0), std::vector<float>(24, 0), {1, 1, 1}};
  for (int i = 0; i < 16; ++i)
    w.base[static_cast<std::size_t>(8 + i)] = static_cast<float>(2 * std::sin(1.0 + i));
  CpuOps ops(1);
  const std::vector<float> streams = {1, 2, 3, 4};
  const Outputs found = run_pre(ops, streams, 1, hc, w, kModelEps, kModelEps);
  const double golden[] = {0.315977, 0.455644, 0.193185, 0.035193, 0.004932, 0.024168,
                           0.309853, 0.661046, 0.574182, 0.106812, 0.084557, 0.234448,
                           0.104908, 0.413375, 0.412403, 0.069312};
  for (std::size_t i = 0; i < 16; ++i) EXPECT_NEAR(found.comb[i], golden[i], 1e-6) << i;
  for (std::size_t k = 0; k < 4; ++k)
    EXPECT_NEAR(found.comb[k] + found.comb[4 + k] + found.comb[8 + k] + found.comb[12 + k],
                0.999999, 5e-7);

  const Floats x(ops, {1, hc, 1}, streams), f(ops, {1, 1}, {0});
  const Floats post(ops, {1, hc}, found.post), comb(ops, {1, hc, hc}, found.comb);
  in_step([&] { ops.hc_post({.f = f, .post = post, .comb = comb, .streams = x}); });
  const double mixed[] = {2.468020, 2.477915, 2.716176, 2.337878};
  for (std::size_t k = 0; k < 4; ++k) EXPECT_NEAR(x.values()[k], mixed[k], 2e-6);
}

TEST(HyperConnections, ZeroMixesGiveTheNeutralSite) {
  const std::int64_t hc = 4, width = 5;
  const SiteWeights w{std::vector<float>(static_cast<std::size_t>(24 * hc * width), 0),
                      std::vector<float>(24, 0),
                      {1, 1, 1}};
  CpuOps ops(1);
  const Outputs found = run_pre(ops, std::vector<float>(20, 1), 1, hc, w, kModelEps, kModelEps);
  for (const float post : found.post) EXPECT_EQ(post, 1);                  // 2·½, no eps
  for (const float y : found.out) EXPECT_NEAR(y, 4 * (0.5 + 1e-6), 3e-7);  // pre = ½ + eps
  for (const float c : found.comb) EXPECT_NEAR(c, 0.25, 1e-6);
}

// Large logits would overflow a softmax that does not subtract the maximum.
TEST(HyperConnections, LargeLogitsStayFinite) {
  const std::int64_t hc = 4;
  SiteWeights w{std::vector<float>(24 * 4, 0), std::vector<float>(24, 300), {1, 1, 1}};
  w.base[9] = -300;
  w.base[14] = 600;
  CpuOps ops(1);
  const Outputs found = run_pre(ops, {1, 2, 3, 4}, 1, hc, w);
  for (const float v : found.joined(1)) EXPECT_TRUE(std::isfinite(v));
}

TEST(HyperConnections, PostOfRandomStreams) {
  for (const std::int64_t hc : {2, 4, 5})
    for (const std::int64_t tokens : {1, 3, 17}) {
      const std::int64_t width = 13;
      const std::vector<float> x = Random(1).normals(tokens * hc * width);
      const std::vector<float> f = Random(2).normals(tokens * width);
      const std::vector<float> post = Random(3).normals(tokens * hc);
      const std::vector<float> comb = Random(4).normals(tokens * hc * hc);
      const auto run = [&](Ops& ops, std::int64_t begin, std::int64_t count) {
        const Floats streams(ops, {count, hc, width}, rows_of(x, begin, count, hc * width));
        const Floats sub(ops, {count, width}, rows_of(f, begin, count, width));
        const Floats p(ops, {count, hc}, rows_of(post, begin, count, hc));
        const Floats c(ops, {count, hc, hc}, rows_of(comb, begin, count, hc * hc));
        in_step([&] { ops.hc_post({.f = sub, .post = p, .comb = c, .streams = streams}); });
        return streams.values();
      };
      std::vector<double> expected;
      for (std::int64_t t = 0; t < tokens; ++t)
        for (const double y :
             reference::hc_post(reference::to_double(rows_of(x, t, 1, hc * width)),
                                reference::to_double(rows_of(f, t, 1, width)),
                                reference::to_double(rows_of(post, t, 1, hc)),
                                reference::to_double(rows_of(comb, t, 1, hc * hc))))
          expected.push_back(y);
      CpuOps ops(2);
      expect_close(run(ops, 0, tokens), expected, 1e-5);
      if (tokens == 3) expect_invariant(tokens, run);
    }
}

TEST(HyperConnections, HeadOfRandomStreams) {
  for (const std::int64_t tokens : {1, 3, 17}) {
    const std::int64_t hc = 4, width = 29;
    const SiteWeights w = random_site(hc, hc * width, 1, 5);
    const std::vector<float> x = Random(6).normals(tokens * hc * width);
    const auto run = [&](Ops& ops, std::int64_t begin, std::int64_t count) {
      const Floats streams(ops, {count, hc, width}, rows_of(x, begin, count, hc * width));
      const Floats fn(ops, {hc, hc * width}, w.fn), base(ops, {hc}, w.base),
          scale(ops, {1}, w.scale);
      const Floats out(ops, {count, width});
      in_step([&] {
        ops.hc_head({.streams = streams,
                     .weights = {.fn = fn, .base = base, .scale = scale},
                     .hc_eps = kHcEps,
                     .norm_eps = kNormEps,
                     .out = out});
      });
      return out.values();
    };
    std::vector<double> expected;
    for (std::int64_t t = 0; t < tokens; ++t) {
      const reference::Row v = reference::to_double(rows_of(x, t, 1, hc * width));
      reference::Row pre = reference::mixes(v, reference::to_double(w.fn), kNormEps);
      for (std::size_t j = 0; j < pre.size(); ++j)
        pre[j] = reference::sigmoid(pre[j] * w.scale[0] + w.base[j]) + kHcEps;
      for (const double y : reference::collapse(v, pre)) expected.push_back(y);
    }
    CpuOps ops(2);
    expect_close(run(ops, 0, tokens), expected, 1e-5);
    if (tokens == 3) expect_invariant(tokens, run);
  }
}

}  // namespace
}  // namespace quatrain::testing

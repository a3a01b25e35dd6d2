// SPDX-License-Identifier: Apache-2.0
// FP8 activations against the words of core/fp8_activations.h in double precision.
#include "backends/cpu/activation_quant.h"

#include "core/fp8_activations.h"
#include "support/op_harness.h"
#include "support/random_matrix.h"

namespace quatrain::testing {
namespace {

TEST(Fp8Activations, ScalesArePowersOfTwoAtOrAboveAmax) {
  Random random(1);
  for (int i = 0; i < 20000; ++i) {
    const float amax = std::exp(random.uniform(-30, 80));
    const double scale = fp8_activation_scale(amax);
    int exponent = 0;
    ASSERT_EQ(std::frexp(scale, &exponent), 0.5);
    const double wanted = std::max(amax, 1e-4f) / 448.0;  // up to the rounding of one product
    ASSERT_GE(scale, wanted * (1 - 0x1p-22)) << amax;
    ASSERT_LT(scale / 2, wanted) << amax;
    ASSERT_EQ(static_cast<double>(fp8_activation_inverse(fp8_activation_scale(amax))) * scale, 1);
  }
  EXPECT_EQ(fp8_activation_scale(0), fp8_activation_scale(1e-4f));
  for (const int k : {-10, 0, 7, 100})
    EXPECT_EQ(fp8_activation_scale(std::ldexp(448.0f, k)), std::ldexp(1.0f, k));
  EXPECT_TRUE(std::isnan(fp8_activation_scale(kNaN)));
  EXPECT_TRUE(std::isnan(fp8_activation_scale(std::numeric_limits<float>::infinity())));
}

TEST(Fp8Activations, ValuesGoToTheNearestOfTheGrid) {
  Random random(2);
  for (int i = 0; i < 200; ++i) {
    const std::int64_t n = random.integer(1, 600);
    const std::vector<float> x = random.normals(n, std::exp(random.uniform(-12, 40)));
    std::vector<float> rounded = x;
    fp8_round_row(rounded.data(), n, rounded.data());
    for (std::int64_t begin = 0; begin < n; begin += kFp8ActivationBlock) {
      const std::int64_t end = std::min<std::int64_t>(n, begin + kFp8ActivationBlock);
      float amax = 0;
      for (std::int64_t c = begin; c < end; ++c)
        amax = std::max(amax, std::abs(x[static_cast<std::size_t>(c)]));
      const double scale = fp8_activation_scale(amax);
      for (std::int64_t c = begin; c < end; ++c) {
        const double value = x[static_cast<std::size_t>(c)] / scale;
        const double found = rounded[static_cast<std::size_t>(c)] / scale;
        double nearest = 1e9;
        for (unsigned code = 0; code < 256; ++code) {
          const double point = e4m3_decode(static_cast<std::uint8_t>(code));
          if (std::abs(point - value) < std::abs(nearest - value)) nearest = point;
        }
        ASSERT_EQ(std::abs(found - value), std::abs(nearest - value)) << value << " to " << found;
      }
    }
  }
}

TEST(Fp8Activations, NaNAndInfinitySpoilTheirBlockAlone) {
  std::vector<float> x = Random(3).normals(400);
  std::vector<float> clean(400), rounded(400);
  fp8_round_row(x.data(), 400, clean.data());
  x[130] = kNaN;
  x[390] = std::numeric_limits<float>::infinity();
  fp8_round_row(x.data(), 400, rounded.data());
  for (std::size_t i = 0; i < 400; ++i) {
    if (i / 128 == 1 || i / 128 == 3)
      EXPECT_TRUE(std::isnan(rounded[i]));
    else
      EXPECT_EQ(rounded[i], clean[i]);
  }
}

// 11 bits of every value of ordinary size, whatever the range of the block, and the same for others
// beside a NaN.
TEST(F16Activations, KeepElevenBits) {
  std::vector<float> x = Random(65).normals(400);
  for (std::size_t i = 128; i < 256; ++i) x[i] *= 0x1p90f;
  for (std::size_t i = 256; i < 384; ++i) x[i] *= 0x1p-90f;
  std::vector<float> rounded(400);
  f16_round_row(x.data(), 400, rounded.data());
  int moved = 0;
  for (std::size_t i = 0; i < 400; ++i) {
    const float block_max = *std::max_element(
        x.begin() + static_cast<std::ptrdiff_t>(i / 128 * 128),
        x.begin() + static_cast<std::ptrdiff_t>(std::min<std::size_t>(400, i / 128 * 128 + 128)),
        [](float a, float b) { return std::abs(a) < std::abs(b); });
    EXPECT_LE(std::abs(rounded[i] - x[i]),
              std::max(std::abs(x[i]) * 0x1p-11f, std::abs(block_max) * 0x1p-39f));
    moved += rounded[i] != x[i] ? 1 : 0;
  }
  EXPECT_GT(moved, 390);  // no FP32 value of a random mantissa has 11 bits
  std::vector<float> again(400);
  f16_round_row(rounded.data(), 400, again.data());
  EXPECT_TRUE(same_bits(again, rounded));
  x[130] = kNaN;
  f16_round_row(x.data(), 400, again.data());
  EXPECT_TRUE(std::isnan(again[130]));
  again[130] = rounded[130];
  EXPECT_TRUE(same_bits(again, rounded));
}

// Of FP8 weights the CPU's products with rounded activations are products of rounded rows; FP8
// activations are for weights in blocks.
TEST(Fp8Activations, LinearsTakeRoundedRows) {
  constexpr int kBf16 = 1, kBlocks = 6, kRow = 9;  // of kMatrixKinds
  for (const CpuIsa isa : {CpuIsa::kPlain, best_isa()}) {
    CpuOps ops(2, isa);
    for (const int kind : {kBf16, kBlocks, kRow})
      for (const std::int64_t groups : {1, 2, 3})
        for (const std::int64_t tokens : {1, 7, 70}) {
          RandomMatrix w(kMatrixKinds[kind], 96, 320, 60);
          const auto packed = ops.pack_linear(w.view());
          ops.reserve(roomy_limits());
          const std::vector<float> x = Random(61).normals(tokens * groups * 320, 5);
          const std::vector<float> rounded =
              kind == kBlocks ? rounded_rows(x, 320, fp8_round_row) : x;
          const std::vector<float> by_f16 = kind != kBf16 ? rounded_rows(x, 320, f16_round_row) : x;
          const auto plain = LinearActivations::kFull;
          EXPECT_TRUE(
              same_bits(linear_product(ops, *packed, tokens, groups, x, LinearActivations::kF16),
                        linear_product(ops, *packed, tokens, groups, by_f16, plain)));
          EXPECT_TRUE(
              same_bits(linear_product(ops, *packed, tokens, groups, x, LinearActivations::kFp8),
                        linear_product(ops, *packed, tokens, groups, rounded, plain)));
          if (groups == 1) {
            EXPECT_TRUE(
                same_bits(linear_product(ops, *packed, tokens, 1, x, LinearActivations::kFp8, true),
                          linear_product(ops, *packed, tokens, 1, x, plain)));
          }
        }
  }
}

}  // namespace
}  // namespace quatrain::testing

// SPDX-License-Identifier: Apache-2.0
// Quantisers: published vectors, error bounds, and the lossless cast.
#include "checkpoint/quantise.h"

#include <gtest/gtest.h>

#include <cmath>

#include "checkpoint/scratch.h"

namespace quatrain::test {
namespace {

struct BlockVector {
  std::string name;
  std::vector<float> inputs;
  float global_scale;
  int scale;
  std::string codes;  // element 0 first, hexadecimal
};

std::vector<float> repeated(const std::vector<float>& pattern, int times) {
  std::vector<float> out;
  for (int i = 0; i < times; ++i)
    for (const float x : pattern) out.push_back(x);
  return out;
}

std::vector<float> ramp16() {
  std::vector<float> out;
  for (int i = 0; i < 16; ++i) out.push_back(static_cast<float>(0.01 * i - 0.08));
  return out;
}

std::vector<float> tiny() {
  std::vector<float> out(8, std::ldexp(1.0f, -12));
  out.resize(16, -std::ldexp(1.0f, -13));
  return out;
}

// Whole blocks with the published converter's result.
const std::vector<BlockVector>& block_vectors() {
  static const std::vector<BlockVector> vectors = {
      {"ramp",
       {0, .25f, .5f, .75f, 1, 1.25f, 1.5f, 1.75f, 2, 2.5f, 3, 3.5f, 4, 5, 6, -6},
       1,
       0x38,
       "001222344456667f"},
      {"negties",
       {-0.0f, -.25f, -.5f, -.75f, -1, -1.25f, -1.75f, -2.5f, -3.5f, -5, -.2500001f, -.7499999f,
        -1.7500001f, -2.5000002f, -5.0000005f, 6},
       1,
       0x38,
       "089aaaccee99cdf7"},
      {"sat",
       {100, -2688, 3000, 0, 1, 10, 448, 600, -700, 1344, 2016, 672, 336, 224, -224, 112},
       1,
       0x7E,
       "0f700023b5632190"},
      {"tiny", tiny(), 1, 0x01, "0000000088888888"},
      {"zero", std::vector<float>(16, 0.0f), 1, 0x38, "0000000000000000"},
      {"ramp16", ramp16(), float_from_bits(0x37F9A934), 0x7E, "ffeedcb901345667"},
      {"pow2", repeated({.375f, .09375f, -.0625f, .03125f}, 4), 1.0f / 256, 0x58,
       "73a173a173a173a1"},
  };
  return vectors;
}

TEST(Quantise, PublishedBlocks) {
  for (const BlockVector& v : block_vectors()) {
    const LoadedLinear out = quantize_nvfp4(dense_view(v.inputs, 1), v.global_scale);
    EXPECT_EQ(static_cast<int>(out.matrix.scales[0]), v.scale) << v.name;
    std::string codes;
    for (int i = 0; i < 16; ++i) {
      const auto pair = static_cast<unsigned>(out.matrix.values[i / 2]);
      codes += fmt::format("{:x}", i % 2 == 0 ? pair & 15u : pair >> 4);
    }
    EXPECT_EQ(codes, v.codes) << v.name;
  }
}

TEST(Quantise, GlobalScale) {
  EXPECT_EQ(nvfp4_global_scale(0.0f), 1.0f);
  EXPECT_EQ(nvfp4_global_scale(2688.0f), 1.0f);
  EXPECT_EQ(bits_from_float(nvfp4_global_scale(0.08f)), 0x37F9A934u);
  EXPECT_GE(nvfp4_global_scale(1e-40f), std::numeric_limits<float>::min());
}

TEST(Quantise, ErrorLevels) {
  std::mt19937 generator(7);
  std::normal_distribution<float> normal;
  std::vector<float> values(256 * 512);
  for (float& v : values) v = normal(generator);
  const QuantMatrix dense = dense_view(values, 256);
  const auto error = [&](const LoadedLinear& q) {
    return squared_error(q.matrix, dense).relative();
  };
  // Expected for Gaussian data: 9.49 %, 11.5 % and 2.6 %.
  EXPECT_NEAR(error(quantize_nvfp4(dense, nvfp4_global_scale(max_magnitude(dense)))), 0.0949,
              0.001);
  EXPECT_NEAR(error(quantize_mxfp4(dense)), 0.115, 0.01);
  EXPECT_NEAR(error(quantize_fp8_block(dense, DType::kF32)), 0.026, 0.001);
  EXPECT_NEAR(error(quantize_fp8_block(dense)), 0.026, 0.001);
}

TEST(Quantise, RaggedFp8BlocksCoverEveryElement) {
  const std::vector<float> values = random_values(130 * 200, 3);
  const LoadedLinear q = quantize_fp8_block(dense_view(values, 130));
  EXPECT_EQ(q.matrix.scale_count(), 4);
  EXPECT_LT(squared_error(q.matrix, dense_view(values, 130)).relative(), 0.03);
}

TEST(Quantise, RequantisingAnExactMatrixChangesNothing) {
  const std::vector<float> values = random_values(64 * 256, 11);
  const QuantMatrix dense = dense_view(values, 64);
  const LoadedLinear once = quantize_mxfp4(dense);
  const LoadedLinear twice = quantize_mxfp4(once.matrix);
  EXPECT_EQ(decode_all(once.matrix), decode_all(twice.matrix));
  const LoadedLinear fp8 = quantize_fp8_block(dense);
  EXPECT_EQ(decode_all(fp8.matrix), decode_all(quantize_fp8_block(fp8.matrix).matrix));
}

TEST(Quantise, SharedScaleNeverClips) {
  const std::vector<float> gate = random_values(32 * 64, 1, 0.2f);
  const std::vector<float> up = random_values(32 * 64, 2, 0.02f);
  const float amax =
      std::max(max_magnitude(dense_view(gate, 32)), max_magnitude(dense_view(up, 32)));
  for (const auto* values : {&gate, &up}) {
    const LoadedLinear q = quantize_nvfp4(dense_view(*values, 32), nvfp4_global_scale(amax));
    const std::vector<float> decoded = decode_all(q.matrix);
    for (std::size_t i = 0; i < decoded.size(); ++i)
      EXPECT_LE(std::abs(decoded[i] - (*values)[i]), amax / 6) << i;
  }
}

TEST(Quantise, RefusesValuesThatAreNotFinite) {
  std::vector<float> values(64, 1.0f);
  values[35] = std::numeric_limits<float>::infinity();
  const QuantMatrix m = dense_view(values, 2, "layers.0.x");
  for (const auto& action : std::vector<std::function<void()>>{
           [&] { max_magnitude(m); }, [&] { quantize_nvfp4(m, 1.0f); }, [&] { quantize_mxfp4(m); },
           [&] { quantize_fp8_block(m); }})
    EXPECT_TRUE(contains(message_of(action), "layers.0.x: the value at row 1, column 3"));
}

TEST(Quantise, RefusesRaggedColumns) {
  const std::vector<float> values(24 * 2, 1.0f);
  EXPECT_TRUE(contains(message_of([&] { quantize_nvfp4(dense_view(values, 2), 1.0f); }),
                       "multiples of 16, found 24"));
  EXPECT_TRUE(contains(message_of([&] { quantize_mxfp4(dense_view(values, 2)); }),
                       "multiples of 32, found 24"));
}

/// MXFP4 with the given scale bytes, one block of 32 each, and codes that are not zero.
LoadedLinear mxfp4_of(const std::vector<int>& bytes) {
  LoadedLinear out =
      allocate_linear("m", WeightFormat::kMxfp4, std::ssize(bytes), 32, DType::kI8, DType::kF8E8M0);
  std::mt19937 generator(5);
  for (std::byte& b : out.values()) b = static_cast<std::byte>(generator() | 0x10u);
  for (std::size_t i = 0; i < bytes.size(); ++i) out.scales()[i] = static_cast<std::byte>(bytes[i]);
  return out;
}

std::vector<int> scale_bytes(const LoadedLinear& linear) {
  std::vector<int> out;
  for (std::int64_t i = 0; i < linear.matrix.scale_count(); ++i)
    out.push_back(static_cast<int>(linear.matrix.scales[i]));
  return out;
}

TEST(Cast, PublishedExponents) {
  const LoadedLinear mx = mxfp4_of({120, 118, 127, 110});
  ASSERT_EQ(max_exponent(mx.matrix), 0);
  const CastResult cast = cast_mxfp4_to_nvfp4(mx.matrix, 0);
  EXPECT_EQ(cast.inexact_blocks, 0);
  EXPECT_EQ(cast.linear.matrix.global_scale, 1.0f / 256);
  EXPECT_EQ(scale_bytes(cast.linear),
            (std::vector<int>{0x40, 0x40, 0x30, 0x30, 0x78, 0x78, 0x01, 0x01}));
  EXPECT_EQ(decode_all(cast.linear.matrix), decode_all(mx.matrix));
  EXPECT_TRUE(is_pow2_paired(cast.linear.matrix));
}

TEST(Cast, EighteenBinadesAreInexactAndCounted) {
  const LoadedLinear mx = mxfp4_of({127, 110, 109});
  const CastResult cast = cast_mxfp4_to_nvfp4(mx.matrix, 0);
  EXPECT_EQ(cast.blocks, 3);
  EXPECT_EQ(cast.inexact_blocks, 1);
  const std::vector<float> a = decode_all(cast.linear.matrix), b = decode_all(mx.matrix);
  for (std::size_t i = 0; i < 64; ++i) EXPECT_EQ(a[i], b[i]);
  for (std::size_t i = 64; i < 96; ++i) EXPECT_NEAR(a[i], b[i], std::ldexp(6.0f, -18));
}

TEST(Cast, ExhaustiveExponents) {
  for (int k_max = -127; k_max <= 127; ++k_max)
    for (int below = 0; below <= 20 && k_max - below >= -127; ++below) {
      const LoadedLinear mx = mxfp4_of({k_max + 127, k_max - below + 127});
      const CastResult cast = cast_mxfp4_to_nvfp4(mx.matrix, k_max);
      // Near the bottom the global scale stops at 2^-126 and the window narrows from below.
      const bool exact = k_max - below - std::max(k_max - 8, -126) >= -9;
      EXPECT_EQ(cast.inexact_blocks, exact ? 0 : 1) << k_max << " - " << below;
      if (exact) {
        EXPECT_EQ(decode_all(cast.linear.matrix), decode_all(mx.matrix)) << k_max << " " << below;
        EXPECT_TRUE(is_pow2_paired(cast.linear.matrix));
      }
    }
}

TEST(Cast, ZeroBlocksDoNotCount) {
  LoadedLinear mx = mxfp4_of({127, 0, 200});
  for (std::size_t i = 16; i < 48; ++i) mx.values()[i] = std::byte{0x80};  // zeros of both signs
  EXPECT_EQ(max_exponent(mx.matrix), 0);
  const CastResult cast = cast_mxfp4_to_nvfp4(mx.matrix, 0);
  EXPECT_EQ(cast.inexact_blocks, 0);
  EXPECT_EQ(decode_all(cast.linear.matrix), decode_all(mx.matrix));
}

TEST(Cast, PairsAreDetectedFromTheBytes) {
  CastResult cast = cast_mxfp4_to_nvfp4(mxfp4_of({120, 118, 127, 110}).matrix, 0);
  LoadedLinear& m = cast.linear;
  ASSERT_TRUE(is_pow2_paired(m.matrix));
  for (std::size_t i = 0; i < m.scales().size(); ++i) {
    for (const int wrong : {0x00, 0x03, 0x39, 0x48}) {
      const std::byte kept = m.scales()[i];
      m.scales()[i] = static_cast<std::byte>(wrong);
      EXPECT_FALSE(is_pow2_paired(m.matrix)) << i << " " << wrong;
      m.scales()[i] = kept;
    }
  }
  m.matrix.global_scale = 0.0123f;
  EXPECT_FALSE(is_pow2_paired(m.matrix));
}

// Trap 42: the global scale is a multiplier; dividing by it changes the magnitude of the weights.
TEST(Quantise, Trap42GlobalScaleMultiplies) {
  const std::vector<float> values = random_values(64 * 256, 21);
  const QuantMatrix dense = dense_view(values, 64);
  const LoadedLinear mx = quantize_mxfp4(dense);
  const LoadedLinear nv = quantize_nvfp4(mx.matrix, nvfp4_global_scale(max_magnitude(mx.matrix)));
  const auto rms = [](const std::vector<float>& v) {
    double sum = 0;
    for (const float x : v) sum += static_cast<double>(x) * x;
    return std::sqrt(sum / static_cast<double>(v.size()));
  };
  EXPECT_NEAR(rms(decode_all(nv.matrix)) / rms(decode_all(mx.matrix)), 1.0, 0.05);
}

}  // namespace
}  // namespace quatrain::test

// SPDX-License-Identifier: Apache-2.0
// The bytes of caches at the sizes of DeepSeek-V4-Flash and -Pro: what a token adds, by cache type.
#include "model/kv_layout.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "backends/cpu/cpu_ops.h"
#include "core/packed_row.h"
#include "ops/interceptor.h"

namespace quatrain::testing {
namespace {

/// The CPU backend under the name of another cache type; nothing runs on it.
class CachesOf final : public Interceptor {
 public:
  CachesOf(Ops& inner, DType type) : Interceptor(inner), type_(type) {}
  DType cache_dtype() const override { return type_; }
  // Only sizes matter, so the memory is not touched.
  void zero(const Tensor&) override {}

 private:
  DType type_;
};

V4Config model(std::int64_t layers, std::vector<std::int64_t> first) {
  V4Config c;
  c.num_layers = layers;
  c.head_dim = 512;
  c.rope_dim = 64;
  c.sliding_window = 128;
  c.index_head_dim = 128;
  c.compress_ratios = std::move(first);
  while (static_cast<std::int64_t>(c.compress_ratios.size()) < layers)
    c.compress_ratios.push_back(c.compress_ratios.size() % 2 == 0 ? 4 : 128);
  return c;
}

std::int64_t bytes(const V4Config& config, DType type, std::int64_t slots, std::int64_t blocks) {
  CpuOps cpu(1);
  CachesOf ops(cpu, type);
  return KvCache(ops, config, slots, blocks).bytes();
}

double bytes_per_token(const V4Config& config, DType type) {
  return static_cast<double>(bytes(config, type, 1, 2) - bytes(config, type, 1, 1)) /
         static_cast<double>(kBlockTokens);
}

TEST(KvLayout, BytesPerTokenOfFlash) {
  const V4Config flash = model(43, {0, 0});
  EXPECT_EQ(bytes_per_token(flash, DType::kF16), 6880);
  EXPECT_EQ(bytes_per_token(flash, DType::kU8), 21 * (584 + 68) / 4.0 + 20 * 584 / 128.0);
  EXPECT_EQ(bytes_per_token(flash, DType::kF32), 2 * 6880);
}

TEST(KvLayout, BytesPerTokenOfPro) {
  const V4Config pro = model(61, {128});
  EXPECT_EQ(bytes_per_token(pro, DType::kF16), 9848);
  EXPECT_EQ(bytes_per_token(pro, DType::kU8), 30 * (584 + 68) / 4.0 + 31 * 584 / 128.0);
}

// What a sequence takes beside its tokens: rings, and compressor states in FP32.
TEST(KvLayout, BytesPerSequenceOfFlash) {
  const V4Config flash = model(43, {0, 0});
  const std::int64_t states = 21 * (64 + 16) * 1024 + 20 * 512 * 1024;
  for (const auto& [type, row] : {std::pair(DType::kF16, 1024), std::pair(DType::kU8, 584)})
    EXPECT_EQ(bytes(flash, type, 2, 1) - bytes(flash, type, 1, 1), 43 * 128 * row + states);
}

TEST(KvLayout, PackedRowsNeedSixtyFourRotaryColumns) {
  V4Config config = model(2, {0, 4});
  config.rope_dim = 32;
  EXPECT_THROW(bytes(config, DType::kU8, 1, 1), Error);
  EXPECT_GT(bytes(config, DType::kF16, 1, 1), 0);
}

// Random packed rows hold numbers of deviation 1, codes and rotary columns alike.
TEST(KvLayout, RandomPackedRowsAreNumbersOfDeviationOne) {
  CpuOps cpu(1);
  CachesOf ops(cpu, DType::kU8);
  const V4Config config = model(4, {0, 0});  // window, window, CSA, HCA
  const KvCache cache(ops, config, 1, 2);
  cache.randomise(ops, 5);
  const auto deviation = [](const Tensor& rows, std::int64_t columns, auto unpack) {
    const std::int64_t width = rows.dim(rows.rank() - 1), count = rows.elements() / width;
    std::vector<float> values(static_cast<std::size_t>(columns));
    double squares = 0;
    for (std::int64_t r = 0; r < count; ++r) {
      unpack(static_cast<const std::uint8_t*>(rows.data()) + r * width, static_cast<int>(columns),
             values.data());
      for (const float x : values) squares += double{x} * double{x};
    }
    return std::sqrt(squares / static_cast<double>(count * columns));
  };
  EXPECT_NEAR(deviation(cache.layer(0).ring, 512, unpack_latent), 1.0, 0.03);
  EXPECT_NEAR(deviation(cache.layer(2).entries.rows, 512, unpack_latent), 1.0, 0.05);
  EXPECT_NEAR(deviation(cache.layer(2).index_keys.rows, 128, unpack_index_key), 1.0, 0.05);
  EXPECT_NEAR(deviation(cache.layer(3).entries.rows, 512, unpack_latent), 1.0, 0.3);
}

}  // namespace
}  // namespace quatrain::testing

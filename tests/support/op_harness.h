// SPDX-License-Identifier: Apache-2.0
// What tests of single operations share: device arrays, random data, batches of several sequences,
// and the checks that results depend on nothing but a row's own inputs.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "backends/cpu/cpu_ops.h"

namespace quatrain::testing {

inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}

  float normal(float scale = 1) { return std::normal_distribution<float>(0, scale)(engine_); }
  float uniform(float low, float high) {
    return std::uniform_real_distribution<float>(low, high)(engine_);
  }
  /// In [low, high].
  std::int64_t integer(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(engine_);
  }
  std::vector<float> normals(std::int64_t n, float scale = 1) {
    std::vector<float> out(static_cast<std::size_t>(n));
    for (float& x : out) x = normal(scale);
    return out;
  }
  std::vector<std::int32_t> integers(std::int64_t n, std::int64_t below) {
    std::vector<std::int32_t> out(static_cast<std::size_t>(n));
    for (std::int32_t& x : out) x = static_cast<std::int32_t>(integer(0, below - 1));
    return out;
  }
  std::vector<std::int32_t> permutation(std::int64_t n) {
    std::vector<std::int32_t> out(static_cast<std::size_t>(n));
    std::iota(out.begin(), out.end(), 0);
    std::shuffle(out.begin(), out.end(), engine_);
    return out;
  }

 private:
  std::mt19937 engine_;
};

/// An array in the memory of `ops`.
template <class T>
class Array {
 public:
  static constexpr DType kType = std::is_same_v<T, float> ? DType::kF32 : DType::kI32;

  Array(Ops& ops, std::initializer_list<std::int64_t> shape, const std::vector<T>& values)
      : ops_(ops),
        buffer_(ops.allocate(static_cast<std::int64_t>(values.size() * sizeof(T)))),
        tensor_(buffer_.data(), kType, shape) {
    QT_CHECK_EQ(static_cast<std::int64_t>(values.size()), tensor_.elements(), "values of an array");
    ops.upload(tensor_, values.data());
  }
  /// Poisoned: NaN, or −999 for integers.
  Array(Ops& ops, std::initializer_list<std::int64_t> shape)
      : Array(ops, shape,
              std::vector<T>(static_cast<std::size_t>(Tensor(nullptr, kType, shape).elements()),
                             poison())) {}

  operator const Tensor&() const { return tensor_; }
  const Tensor& tensor() const { return tensor_; }
  std::vector<T> values() const {
    std::vector<T> out(static_cast<std::size_t>(tensor_.elements()));
    ops_.download(out.data(), tensor_);
    return out;
  }

 private:
  static T poison() {
    if constexpr (std::is_same_v<T, float>)
      return kNaN;
    else
      return -999;
  }
  Ops& ops_;
  Buffer buffer_;
  Tensor tensor_;
};

using Floats = Array<float>;
using Ints = Array<std::int32_t>;

/// Rows [begin, begin + count) of a row-major host array.
template <class T>
std::vector<T> rows_of(const std::vector<T>& all, std::int64_t begin, std::int64_t count,
                       std::int64_t width) {
  return {all.begin() + begin * width, all.begin() + (begin + count) * width};
}

/// Runs an operation as a step would: an allocation ends the process.
template <class F>
void in_step(F&& body) {
  const StepGuard guard("the operation under test");
  body();
}

/// x Wᵀ [tokens, rows] by a linear of an input [tokens, cols], or with more than one group by a
/// grouped one of [tokens, groups, cols].
inline std::vector<float> linear_product(Ops& ops, const PackedLinear& w, std::int64_t tokens,
                                         std::int64_t groups, const std::vector<float>& x,
                                         LinearActivations activations = LinearActivations::kFull,
                                         bool precise = false) {
  const Floats in(ops, {tokens, groups, w.cols}, x), out(ops, {tokens, w.rows});
  in_step([&] {
    if (groups == 1)
      ops.linear({.x = in.tensor().reshaped({tokens, w.cols}),
                  .w = &w,
                  .out = out,
                  .precise = precise,
                  .activations = activations});
    else
      ops.grouped_linear({.x = in,
                          .w = &w,
                          .out = out.tensor().reshaped({tokens, groups, w.rows / groups}),
                          .activations = activations});
  });
  return out.values();
}

/// Every row of `cols` values as `round` (of activation_quant.h) leaves it.
inline std::vector<float> rounded_rows(std::vector<float> x, std::int64_t cols,
                                       void (*round)(const float*, std::int64_t, float*)) {
  for (std::size_t at = 0; at < x.size(); at += static_cast<std::size_t>(cols))
    round(x.data() + at, cols, x.data() + at);
  return x;
}

/// Limits that are large enough for every operation test.
inline StepLimits roomy_limits() {
  return {.rows = 64,
          .context = 4096,
          .slots = 8,
          .experts_per_token = 8,
          .num_experts = 64,
          .hidden_size = 512,
          .intermediate_size = 512,
          .window = 128,
          .index_topk = 64};
}

/// |found − expected| ≤ tolerance · max(1, |expected|) everywhere.
inline void expect_close(std::span<const float> found, std::span<const double> expected,
                         double tolerance) {
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i)
    ASSERT_LE(std::abs(found[i] - expected[i]), tolerance * std::max(1.0, std::abs(expected[i])))
        << "element " << i << ": found " << found[i] << ", expected " << expected[i];
}

template <class T>
::testing::AssertionResult same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() != b.size())
    return ::testing::AssertionFailure() << a.size() << " and " << b.size() << " elements";
  for (std::size_t i = 0; i < a.size(); ++i)
    if (std::memcmp(&a[i], &b[i], sizeof(T)) != 0)
      return ::testing::AssertionFailure() << "element " << i << ": " << a[i] << " and " << b[i];
  return ::testing::AssertionSuccess();
}

/// `body(ops, begin, count)` runs rows [begin, begin + count) of an operation on a backend of its
/// own and returns their outputs. The bits must be the same for every thread count, and for a row
/// alone or among others.
inline void expect_invariant(
    std::int64_t rows,
    const std::function<std::vector<float>(Ops&, std::int64_t, std::int64_t)>& body) {
  CpuOps one(1);
  const std::vector<float> all = body(one, 0, rows);
  const auto width = static_cast<std::int64_t>(all.size()) / rows;
  for (const int threads : {2, 3, 7}) {
    CpuOps many(threads);
    EXPECT_TRUE(same_bits(body(many, 0, rows), all)) << threads << " threads";
  }
  CpuOps two(2);
  for (std::int64_t r = 0; r < rows; ++r)
    EXPECT_TRUE(same_bits(body(two, r, 1), rows_of(all, r, 1, width))) << "row " << r << " alone";
}

/// Consecutive rows of one sequence, or padding (slot −1).
struct Chunk {
  std::int64_t slot = 0;
  std::int64_t position = 0;
  std::int64_t count = 1;
};

/// A step over several sequences. Blocks of the pools are dealt out at random, some to nobody.
class Step {
 public:
  Step(Ops& ops, const std::vector<Chunk>& chunks, std::int64_t slots = 4,
       std::int64_t blocks_per_slot = 8, unsigned seed = 7)
      : pool_blocks(slots * blocks_per_slot + 3),
        block_table(random_table(slots * blocks_per_slot, seed)) {
    for (const Chunk& chunk : chunks) {
      const auto first = static_cast<std::int32_t>(slot.size());
      for (std::int64_t i = 0; i < chunk.count; ++i) {
        const bool padding = chunk.slot < 0;
        slot.push_back(static_cast<std::int32_t>(chunk.slot));
        // What a padded row says beside its slot and token is arbitrary.
        position.push_back(padding ? -12345 : static_cast<std::int32_t>(chunk.position + i));
        first_row.push_back(padding ? 99999 : first);
        token.push_back(static_cast<std::int32_t>(i % 3));
      }
      is_decode_ = is_decode_ && (chunk.slot < 0 || chunk.count <= 1);
    }
    const auto n = static_cast<std::int64_t>(slot.size());
    for (const auto* values : {&token, &position, &slot, &first_row})
      device_.emplace_back(ops, std::initializer_list<std::int64_t>{n}, *values);
    device_.emplace_back(ops, std::initializer_list<std::int64_t>{slots, blocks_per_slot},
                         block_table);
    blocks_per_slot_ = blocks_per_slot;
  }

  std::int64_t rows() const { return static_cast<std::int64_t>(slot.size()); }
  Batch batch() const {
    return {.token_ids = device_[0],
            .positions = device_[1],
            .slots = device_[2],
            .first_rows = device_[3],
            .block_table = device_[4],
            .is_decode = is_decode_};
  }
  /// Pool row of entry w of sequence s.
  std::int64_t pool_row(std::int64_t s, std::int64_t w, std::int64_t ratio) const {
    const std::int64_t per_block = 128 / ratio;
    const auto at = static_cast<std::size_t>(s * blocks_per_slot_ + w / per_block);
    return block_table[at] * per_block + w % per_block;
  }

  std::int64_t pool_blocks;
  std::vector<std::int32_t> token, position, slot, first_row, block_table;

 private:
  std::vector<std::int32_t> random_table(std::int64_t n, unsigned seed) const {
    std::vector<std::int32_t> table = Random(seed).permutation(pool_blocks);
    table.resize(static_cast<std::size_t>(n));
    return table;
  }
  std::int64_t blocks_per_slot_ = 0;
  bool is_decode_ = true;
  std::vector<Ints> device_;
};

}  // namespace quatrain::testing

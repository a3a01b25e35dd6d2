// SPDX-License-Identifier: Apache-2.0
// Routed experts with FP8 inputs on the GPU: the words they are packed to, every code at every
// place of a row's window, results against the CPU backend, bits that depend on nothing but the
// row.
#include "backends/cuda/launch/experts_layout.h"
#include "ops/cuda_compare.h"
#include "support/random_matrix.h"

namespace quatrain::testing {
namespace {

// ---- the layout, without a device ----

TEST(ExpertsFp8Layout, EveryBitOfAWordIsTakenOnce) {
  std::uint32_t taken = 0;
  for (int half = 0; half < 2; ++half)
    for (int member = 0; member < 4; ++member)
      for (const unsigned bit : {1u, 2u, 4u, 8u}) {
        const std::uint32_t bits = cuda::fp8_bits(half, member, bit);
        EXPECT_EQ(bits & (bits - 1), 0u);
        EXPECT_EQ(taken & bits, 0u);
        taken |= bits;
      }
  EXPECT_EQ(taken, ~0u);
}

// What a byte permutation and the signs make of a word are the columns in the inputs' order.
TEST(ExpertsFp8Layout, WordsHaveTheColumnsOfTheInputs) {
  const cuda::PackedShape shape{16, 64};
  for (int row = 0; row < 16; ++row)
    for (int col = 0; col < 16; ++col) {
      const cuda::CodePlace place = cuda::code_place(shape, row, col);
      const int lane = static_cast<int>(place.words / 16);
      EXPECT_EQ(lane / 4, row % 8);
      const std::uint32_t word = cuda::fp8_bits(place.half, place.member, 0xF);
      const int at = cuda::fp8_input_place(col);
      EXPECT_EQ(at / 4, lane % 4);
      const std::uint32_t selectors = (word & 0x77777777u) >> (row < 8 ? 0 : 16);
      EXPECT_EQ(selectors & 0xFFFFu, 7u << (4 * (at % 4)));
      EXPECT_EQ((row < 8 ? word : word << 4) & 0x80808080u, 0x80u << (8 * (at % 4)));
    }
  EXPECT_EQ(cuda::fp8_input_place(16 + 9), 16 + 3);
}

TEST(ExpertsFp8Layout, ScalesTellTheRowsTop) {
  for (int top = -9; top <= 8; ++top)
    for (int k = std::max(-9, top - 14); k <= top; ++k) {
      EXPECT_EQ(cuda::packed_power(k), cuda::packed_scale(e4m3_encode(std::ldexp(1.0f, k))));
      EXPECT_EQ(cuda::packed_power(k) - cuda::fp8_table_place(k, top), 8 * (top + 1));
      EXPECT_LT(cuda::fp8_table_place(k, top), 15 * 8);
    }
}

// ---- on the device ----

using CudaExpertsFp8 = CudaTest;

std::byte power(int exponent) {
  return static_cast<std::byte>(e4m3_encode(std::ldexp(1.0f, exponent)));
}

// An expert's matrices: NVFP4 as casts of MXFP4 are, scales between 2^low and 2^(low + 14).
class CastMatrix : public RandomMatrix {
 public:
  CastMatrix(std::int64_t rows, std::int64_t cols, unsigned seed)
      : RandomMatrix(kMatrixKinds[3], rows, cols, seed) {
    Random random(seed);
    auto* scales = const_cast<std::byte*>(view().scales);
    const std::int64_t blocks = view().scale_columns();
    for (std::int64_t r = 0; r < rows; ++r) {
      const auto low = static_cast<int>(random.integer(-9, -6));
      for (std::int64_t b = 0; b < blocks; ++b)
        scales[r * blocks + b] = b % 2 == 1
                                     ? scales[r * blocks + b - 1]
                                     : power(static_cast<int>(random.integer(low, low + 14)));
    }
    // Blocks of zeros have any scale, even one that is no power of two.
    auto* codes = const_cast<std::byte*>(view().values);
    std::fill_n(codes, 8, std::byte{0x08});
    scales[0] = std::byte{0x7E};
    view().global_scale = 0.002f;
  }
};

class Fp8Layer {
 public:
  Fp8Layer(Ops& ops, std::int64_t count, std::int64_t hidden, std::int64_t inner)
      : ops_(ops), packed_(ops.make_experts("experts", count, hidden, inner)) {
    packed_->fp8_inputs = true;
  }
  PackedExperts& packed() { return *packed_; }
  void pack_random() {
    for (std::int64_t e = 0; e < packed_->count; ++e) {
      const auto seed = static_cast<unsigned>(20 + 3 * e);
      CastMatrix w1(packed_->intermediate, packed_->hidden, seed),
          w3(packed_->intermediate, packed_->hidden, seed + 1),
          w2(packed_->hidden, packed_->intermediate, seed + 2);
      w3.view().global_scale = 0.02f;  // unlike w1's
      ops_.pack_expert(*packed_, e, w1.view(), w3.view(), w2.view());
    }
  }
  void reserve(std::int64_t rows, std::int64_t k) {
    StepLimits limits = roomy_limits();
    limits.rows = rows;
    limits.experts_per_token = k;
    limits.num_experts = packed_->count;
    limits.hidden_size = packed_->hidden;
    limits.intermediate_size = packed_->intermediate;
    ops_.reserve(limits);
  }

  struct Step {
    std::int64_t k = 1;
    std::vector<float> x, weights;
    std::vector<std::int32_t> ids, slots;
  };
  std::vector<float> run(const Step& step, float limit = 10, int replays = 0) {
    const auto t = static_cast<std::int64_t>(step.slots.size());
    const Ints slots(ops_, {t}, step.slots), ids(ops_, {t, step.k}, step.ids);
    const Floats x(ops_, {t, packed_->hidden}, step.x), weights(ops_, {t, step.k}, step.weights);
    const Floats out(ops_, {t, packed_->hidden},
                     std::vector<float>(static_cast<std::size_t>(t * packed_->hidden)));
    const auto body = [&] {
      ops_.experts({.batch = {.token_ids = slots,
                              .positions = slots,
                              .slots = slots,
                              .first_rows = slots,
                              .block_table = slots},
                    .x = x,
                    .ids = ids,
                    .weights = weights,
                    .w = packed_.get(),
                    .limit = limit,
                    .activations = ExpertActivations::kFp8,
                    .out = out});
    };
    in_step(body);
    const std::vector<float> values = out.values();
    if (replays > 0) {
      const auto recording = ops_.record(body);
      for (int i = 0; i < replays; ++i) {
        ops_.zero(out);
        recording->replay();
        EXPECT_TRUE(same_bits(out.values(), values)) << "replay " << i;
      }
    }
    return values;
  }

 private:
  Ops& ops_;
  std::unique_ptr<PackedExperts> packed_;
};

// Expert c passes 32 on in its hidden column c and zero elsewhere. Row r of its second projection
// has all 16 codes at a scale 2^k, and 2^top further on: every exponent below every top. So the
// output is 32 times code c times 2^k, exactly.
TEST_F(CudaExpertsFp8, EveryCodeAtEveryPlaceOfTheWindowIsExact) {
  std::vector<std::pair<int, int>> rows;  // k, top
  for (int top = -9; top <= 8; ++top)
    for (int k = std::max(-9, top - 14); k <= top; ++k) rows.emplace_back(k, top);
  const std::int64_t hidden = 192, inner = 64;
  ASSERT_LE(std::ssize(rows), hidden);
  Fp8Layer layer(gpu(), 16, hidden, inner);
  for (int c = 0; c < 16; ++c) {
    RandomMatrix w1(kMatrixKinds[3], inner, hidden, 1), w3(kMatrixKinds[3], inner, hidden, 1),
        w2(kMatrixKinds[3], hidden, inner, 1);
    for (RandomMatrix* w : {&w1, &w3, &w2}) {
      auto* codes = const_cast<std::byte*>(w->view().values);
      auto* scales = const_cast<std::byte*>(w->view().scales);
      std::fill_n(codes, w->view().rows * w->view().cols / 2, std::byte{0});
      std::fill_n(scales, w->view().scale_count(), power(0));
      w->view().global_scale = 1;
      if (w == &w1)
        for (int i = 0; i < inner; ++i) codes[i * hidden / 2] = std::byte{4};  // 2 · 16
      if (w == &w3) codes[c * hidden / 2] = std::byte{2};                      // 1
      for (std::size_t r = 0; w == &w2 && r < rows.size(); ++r) {
        for (std::size_t i = 0; i < 8; ++i)
          codes[r * inner / 2 + i] = static_cast<std::byte>(2 * i | (2 * i + 1) << 4);
        codes[r * inner / 2 + 16] = std::byte{1};
        scales[r * 4] = scales[r * 4 + 1] = power(rows[r].first);
        scales[r * 4 + 2] = scales[r * 4 + 3] = power(rows[r].second);
      }
    }
    w1.view().global_scale = 16;
    gpu().pack_expert(layer.packed(), c, w1.view(), w3.view(), w2.view());
  }
  layer.reserve(1808, 1);
  for (const int tokens : {16, 480, 1808}) {  // by the decode kernel and both of prefill
    Fp8Layer::Step step;
    step.x.assign(static_cast<std::size_t>(tokens * hidden), 0.0f);
    for (int t = 0; t < tokens; ++t) {
      step.ids.push_back(t % 16);
      step.slots.push_back(0);
      step.weights.push_back(1);
      step.x[static_cast<std::size_t>(t * hidden)] = 1;
    }
    const std::vector<float> out = layer.run(step, 0);
    for (int t = 0; t < tokens; ++t)
      for (std::size_t r = 0; r < rows.size(); ++r)
        ASSERT_EQ(out[static_cast<std::size_t>(t * hidden) + r],
                  std::ldexp(32 * e2m1_decode(static_cast<unsigned>(t % 16)), rows[r].first))
            << tokens << " tokens, code " << t % 16 << ", 2^" << rows[r].first << " below 2^"
            << rows[r].second;
  }
}

// counts[e] tokens choose expert e, and all of them the last expert, too. Every fifth is padding,
// full of NaN.
Fp8Layer::Step step_with(const std::vector<int>& counts, std::int64_t hidden, unsigned seed) {
  Fp8Layer::Step step{.k = 2, .x = {}, .weights = {}, .ids = {}, .slots = {}};
  Random random(seed);
  for (std::size_t e = 0; e < counts.size(); ++e)
    for (int i = 0; i < counts[e]; ++i) {
      const bool is_padding = step.slots.size() % 5 == 4;
      step.slots.push_back(is_padding ? -1 : 0);
      for (const std::size_t id : {e, counts.size()}) {
        step.ids.push_back(static_cast<int>(id));
        step.weights.push_back(random.uniform(0.1f, 1.0f));
      }
      // Blocks of 128 columns differ by some binades.
      for (std::int64_t d = 0; d < hidden; ++d)
        step.x.push_back(
            is_padding ? kNaN : random.normal() * std::exp2(static_cast<float>(d / 128 % 3) * 4));
    }
  return step;
}

double relative_error(const std::vector<float>& found, const std::vector<float>& wanted) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    difference += std::pow(double{found[i]} - wanted[i], 2);
    norm += std::pow(double{wanted[i]}, 2);
  }
  return std::sqrt(difference / norm);
}

// The CPU's sums are FP32. So are the decode kernel's; the prefill kernel's tensor cores keep about
// 14 bits of a sum of 128 columns, by which hidden values fall on other sides of rounding steps,
// and its outputs are rounded to BF16.
void match_the_cpu(Ops& gpu, Ops& cpu, std::int64_t experts) {
  const std::int64_t hidden = 1040, inner = 544;
  Fp8Layer on_gpu(gpu, experts, hidden, inner), on_cpu(cpu, experts, hidden, inner);
  for (Fp8Layer* layer : {&on_gpu, &on_cpu}) {
    layer->pack_random();
    layer->reserve(700, 2);
  }
  unsigned seed = 0;
  for (const std::vector<int>& counts : std::vector<std::vector<int>>{{1, 0, 0, 0},
                                                                      {0, 7, 2, 9},
                                                                      {16, 17, 33, 1},
                                                                      {111, 112, 113, 0},
                                                                      {270, 8, 15, 23},
                                                                      {88, 96, 104, 40},
                                                                      {48, 56, 64, 120},
                                                                      {207, 208, 104, 105},
                                                                      {209, 30, 1, 160},
                                                                      {0, 0, 0, 300}}) {
    const Fp8Layer::Step step = step_with(counts, hidden, ++seed);
    const std::vector<float> found = on_gpu.run(step), wanted = on_cpu.run(step);
    for (std::size_t i = 0; i < found.size(); ++i)
      if (step.slots[i / static_cast<std::size_t>(hidden)] < 0) {
        ASSERT_EQ(found[i], 0.0f) << "padding was written";
      }
    const double error = relative_error(found, wanted);
    EXPECT_LE(error, step.slots.size() > 256 ? 8e-3 : 2e-3) << step.slots.size() << " tokens";
    fmt::print("{} experts, {} tokens: {:.2e}\n", experts, step.slots.size(), error);
  }
}

TEST_F(CudaExpertsFp8, MatchTheCpuForAnyCounts) {
  match_the_cpu(gpu(), cpu(), 12);  // so many experts that no passes are wide
}
TEST_F(CudaExpertsFp8, MatchTheCpuInWidePasses) { match_the_cpu(gpu(), cpu(), 5); }

TEST_F(CudaExpertsFp8, ARowHasTheSameBitsInAnyBatchAndReplay) {
  const std::int64_t hidden = 1024, inner = 512, tokens = 500;
  Fp8Layer layer(gpu(), 12, hidden, inner);
  layer.pack_random();
  layer.reserve(tokens, 3);
  Random random(3);
  Fp8Layer::Step all{.k = 3,
                     .x = random.normals(tokens * hidden),
                     .weights = random.normals(tokens * 3, 0.5f),
                     .ids = random.integers(tokens * 3, 12),
                     .slots = std::vector<std::int32_t>(tokens)};
  const std::vector<float> together = layer.run(all, 10, 20);
  for (const std::int64_t count : {257, 300})
    for (const std::int64_t first : {std::int64_t{0}, tokens - count}) {
      const Fp8Layer::Step some{.k = 3,
                                .x = rows_of(all.x, first, count, hidden),
                                .weights = rows_of(all.weights, first, count, 3),
                                .ids = rows_of(all.ids, first, count, 3),
                                .slots = rows_of(all.slots, first, count, 1)};
      EXPECT_TRUE(same_bits(layer.run(some, 10, 3), rows_of(together, first, count, hidden)))
          << count << " tokens from " << first;
    }
}

TEST_F(CudaExpertsFp8, OtherWeightsAndInputsAreRefused) {
  Fp8Layer layer(gpu(), 1, 64, 64);
  RandomMatrix any(kMatrixKinds[3], 64, 64, 1), mxfp4(kMatrixKinds[4], 64, 64, 1);
  EXPECT_THROW(gpu().pack_expert(layer.packed(), 0, any.view(), any.view(), any.view()), Error);
  Fp8Layer other(gpu(), 1, 64, 64);
  EXPECT_THROW(gpu().pack_expert(other.packed(), 0, mxfp4.view(), mxfp4.view(), mxfp4.view()),
               Error);
}

}  // namespace
}  // namespace quatrain::testing

// SPDX-License-Identifier: Apache-2.0
// FP8 products whose weights are decoded beforehand: the same bits as those of few tokens.
#include "backends/cuda/launch/linear_decoded.h"

#include <deque>
#include <optional>

#include "ops/cuda_compare.h"
#include "support/random_matrix.h"

namespace quatrain::testing {
namespace {

using CudaDecodedLinears = CudaTest;

const MatrixKind& kFp8 = kMatrixKinds[6];
constexpr LinearActivations kF16 = LinearActivations::kF16;

/// Weights of one input on the device, an input that may be a SwiGLU, and their products.
class DecodedProducts {
 public:
  DecodedProducts(CudaOps& gpu, std::int64_t cols, std::int64_t tokens, std::int64_t groups,
                  const std::vector<float>& x, const std::vector<float>& up = {})
      : gpu_(gpu), x_(gpu, {tokens, groups * cols}, x) {
    args_ = cuda::LinearTiles{{.x = x_.tensor().f32(),
                               .tokens = static_cast<int>(tokens),
                               .groups = static_cast<int>(groups),
                               .cols = static_cast<int>(cols)},
                              cuda::LinearKind::kFp8Rounded};
    if (up.empty()) return;
    up_.emplace(gpu, std::initializer_list<std::int64_t>{tokens, cols}, up);
    args_.up = up_->tensor().f32();
    args_.limit = kLimit;
  }
  static constexpr float kLimit = 2;

  void add(const PackedLinear& w) {
    outs_.emplace_back(gpu_, std::initializer_list<std::int64_t>{args_.tokens, w.rows});
    args_.products[args_.count++] = {.w = static_cast<const CudaLinear&>(w).matrix,
                                     .out = outs_.back().tensor().f32()};
  }
  /// The least scratch `times` over.
  void run(std::int64_t times) {
    const std::int64_t bytes = times * cuda::decoded_scratch_bytes(args_.cols, args_.groups);
    const Buffer scratch = gpu_.allocate(bytes);
    ASSERT_TRUE(cuda::takes_decoded(args_));
    in_step([&] {
      cuda::multiply_decoded(args_, {.memory = scratch.data(), .bytes = bytes}, gpu_.stream());
    });
    gpu_.wait();
  }
  std::vector<float> of(std::size_t i) const { return outs_[i].values(); }

 private:
  CudaOps& gpu_;
  Floats x_;
  std::optional<Floats> up_;
  cuda::LinearTiles args_;
  std::deque<Floats> outs_;
};

std::vector<float> decoded_product(CudaOps& gpu, const PackedLinear& w, std::int64_t tokens,
                                   std::int64_t groups, const std::vector<float>& x) {
  DecodedProducts products(gpu, w.cols, tokens, groups, x);
  products.add(w);
  products.run(64);
  return products.of(0);
}

struct Shape {
  std::int64_t rows, cols, groups;
};

// An odd number of tiles of rows, in groups too, the last with 8 rows; one block of columns, and
// slices that end with one; the last tile of tokens full, with one token, and with all but one.
TEST_F(CudaDecodedLinears, HaveTheBitsOfFewTokens) {
  gpu().reserve(roomy_limits());
  unsigned seed = 1;
  for (const Shape& s : {Shape{8, 128, 1}, Shape{264, 1152, 1}, Shape{768, 256, 2},
                         Shape{400, 4096, 1}, Shape{136, 9216, 1}, Shape{2048, 2048, 8}}) {
    RandomMatrix w(kFp8, s.rows, s.cols, ++seed);
    const auto packed = gpu().pack_linear(w.view());
    const std::int64_t width = s.groups * s.cols;
    const std::vector<float> x = Random(++seed).normals(1151 * width);
    for (const std::int64_t tokens : {768, 961, 1151}) {
      const std::vector<float> many =
          decoded_product(gpu(), *packed, tokens, s.groups, rows_of(x, 0, tokens, width));
      for (const std::int64_t first : {std::int64_t{0}, std::int64_t{187}, tokens - 9}) {
        SCOPED_TRACE(fmt::format("{} x {} in {} groups, tokens {} on of {}", s.rows, s.cols,
                                 s.groups, first, tokens));
        expect_same(rows_of(many, first, 9, s.rows),
                    linear_product(gpu(), *packed, 9, s.groups, rows_of(x, first, 9, width), kF16));
      }
    }
  }
}

// As linear() takes them, where blocks have tiles enough.
TEST_F(CudaDecodedLinears, AreTakenWhereThereIsMuchToDo) {
  constexpr std::int64_t kTokens = 2048, kRows = 8192, kCols = 128, kFirst = 1500, kSome = 9;
  StepLimits limits = roomy_limits();
  limits.rows = kTokens;
  gpu().reserve(limits);
  RandomMatrix w(kFp8, kRows, kCols, 41);
  const auto packed = gpu().pack_linear(w.view());
  cuda::LinearTiles args{{.tokens = kTokens, .cols = kCols}, cuda::LinearKind::kFp8Rounded};
  args.products[args.count++].w = static_cast<const CudaLinear&>(*packed).matrix;
  EXPECT_TRUE(cuda::prefers_decoded(args));
  args.tokens = 512;
  EXPECT_FALSE(cuda::prefers_decoded(args));
  const std::vector<float> x = Random(42).normals(kTokens * kCols);
  const std::vector<float> many = linear_product(gpu(), *packed, kTokens, 1, x, kF16);
  expect_same(rows_of(many, kFirst, kSome, kRows),
              linear_product(gpu(), *packed, kSome, 1, rows_of(x, kFirst, kSome, kCols), kF16));
}

// Several weights of an input that is a SwiGLU, with scratch for a pair of row tiles and a tile of
// tokens at a time, and for more of them.
TEST_F(CudaDecodedLinears, TakeTurnsWhereScratchIsSmall) {
  constexpr std::int64_t kCols = 1280, kTokens = 800, kFirst = 300, kSome = 7;
  gpu().reserve(roomy_limits());
  const std::vector<float> gate = Random(31).normals(kTokens * kCols),
                           up = Random(32).normals(kTokens * kCols);
  std::vector<std::unique_ptr<PackedLinear>> packed;
  for (const std::int64_t rows : {600, 128, 1000}) {
    RandomMatrix w(kFp8, rows, kCols, 33);
    packed.push_back(gpu().pack_linear(w.view()));
  }
  for (const std::int64_t times : {1, 3, 64}) {
    SCOPED_TRACE(fmt::format("{} times the least scratch", times));
    DecodedProducts products(gpu(), kCols, kTokens, 1, gate, up);
    for (const auto& w : packed) products.add(*w);
    products.run(times);
    for (std::size_t i = 0; i < packed.size(); ++i) {
      const Floats some_gate(gpu(), {kSome, kCols}, rows_of(gate, kFirst, kSome, kCols)),
          some_up(gpu(), {kSome, kCols}, rows_of(up, kFirst, kSome, kCols)),
          out(gpu(), {kSome, packed[i]->rows});
      in_step([&] {
        gpu().swiglu_linear({.gate = some_gate,
                             .up = some_up,
                             .limit = DecodedProducts::kLimit,
                             .w = packed[i].get(),
                             .out = out,
                             .activations = kF16});
      });
      expect_same(rows_of(products.of(i), kFirst, kSome, packed[i]->rows), out.values());
    }
  }
}

// The order of blocks of different speed does not matter, nor what was in memory before.
TEST_F(CudaDecodedLinears, EqualThemselvesAgainAndAgain) {
  RandomMatrix w(kFp8, 5000, 2048, 51);
  const auto packed = gpu().pack_linear(w.view());
  const std::vector<float> x = Random(52).normals(1000 * 2048);
  const std::vector<float> first = decoded_product(gpu(), *packed, 1000, 1, x);
  for (int i = 0; i < 20; ++i) expect_same(decoded_product(gpu(), *packed, 1000, 1, x), first);
}

TEST_F(CudaDecodedLinears, ANaNStaysInItsRow) {
  RandomMatrix w(kFp8, 256, 1024, 61);
  const auto packed = gpu().pack_linear(w.view());
  std::vector<float> x = Random(62).normals(800 * 1024);
  const std::vector<float> clean = decoded_product(gpu(), *packed, 800, 1, x);
  x[700 * 1024 + 7] = kNaN;
  const std::vector<float> out = decoded_product(gpu(), *packed, 800, 1, x);
  for (std::int64_t t = 0; t < 800; ++t)
    if (t != 700) {
      expect_same(rows_of(out, t, 1, 256), rows_of(clean, t, 1, 256));
    } else {
      for (const float value : rows_of(out, t, 1, 256)) EXPECT_TRUE(std::isnan(value));
    }
}

}  // namespace
}  // namespace quatrain::testing

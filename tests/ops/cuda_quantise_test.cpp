// SPDX-License-Identifier: Apache-2.0
// FP8 activations of the device: the bits of the CPU's definition.
#include "backends/cpu/activation_quant.h"
#include "backends/cuda/launch/quantise.h"
#include "core/fp8_activations.h"
#include "ops/cuda_compare.h"

namespace quatrain::testing {
namespace {

class CudaFp8Rows : public CudaTest {
 protected:
  static constexpr std::int64_t kSources = 40;

  /// Rows of all sizes; some with zeros, ties, NaN and infinities.
  static std::vector<float> sources(std::int64_t cols) {
    Random random(4);
    std::vector<float> x;
    for (std::int64_t r = 0; r < kSources; ++r)
      for (const float v : random.normals(cols, std::exp2(static_cast<float>(r) * 4 - 60)))
        x.push_back(r % 5 == 1 ? std::round(v * 16) / 16 : v);
    std::fill_n(x.begin() + 3 * cols, cols, 0.0f);
    x[static_cast<std::size_t>(7 * cols + 2)] = kNaN;
    x[static_cast<std::size_t>(9 * cols + cols - 1)] = -std::numeric_limits<float>::infinity();
    return x;
  }
};

TEST_F(CudaFp8Rows, HaveTheBitsOfTheCpu) {
  for (const std::int64_t cols : {4, 128, 204, 1024, 5120}) {
    const std::int64_t rows = 70, blocks = (cols + 127) / 128;
    const std::vector<float> x = sources(cols);
    const std::vector<std::int32_t> map = Random(5).integers(rows, kSources);
    const Floats in(gpu(), {kSources, cols}, x), out(gpu(), {rows, cols});
    const Floats scales(gpu(), {blocks, rows});
    const Ints row_map(gpu(), {rows}, map);
    const Buffer codes = gpu().allocate(rows * cols);
    cuda::fp8_quantise_rows({.x = in.tensor().f32(),
                             .row_map = row_map.tensor().i32(),
                             .rows = static_cast<int>(rows),
                             .cols = static_cast<int>(cols),
                             .codes = static_cast<std::uint8_t*>(codes.data()),
                             .scales = scales.tensor().f32(),
                             .scale_row = 1,
                             .scale_block = rows,
                             .out = out.tensor().f32()},
                            gpu().stream());
    std::vector<std::uint8_t> found(static_cast<std::size_t>(rows * cols));
    gpu().download(found.data(), Tensor(codes.data(), DType::kU8, {rows, cols}));
    const std::vector<float> factors = scales.values();
    std::vector<float> expected(found.size()), coded(found.size());
    for (std::int64_t r = 0; r < rows; ++r) {
      fp8_round_row(x.data() + map[static_cast<std::size_t>(r)] * cols, cols,
                    expected.data() + r * cols);
      for (std::int64_t c = 0; c < cols; ++c)
        coded[static_cast<std::size_t>(r * cols + c)] =
            e4m3_decode(found[static_cast<std::size_t>(r * cols + c)]) *
            factors[static_cast<std::size_t>(c / kFp8ActivationBlock * rows + r)];
    }
    expect_same(out.values(), expected);
    expect_same(coded, expected);
  }
}

TEST_F(CudaFp8Rows, TakeASwiGluInPlace) {
  const std::int64_t rows = 33, cols = 384;
  const std::vector<float> gate = Random(6).normals(rows * cols, 4);
  const std::vector<float> up = Random(7).normals(rows * cols, 4);
  const Floats x(gpu(), {rows, cols}, gate), other(gpu(), {rows, cols}, up);
  const Floats hidden(gpu(), {rows, cols});
  gpu().swiglu({.gate = x, .up = other, .limit = 3, .out = hidden});
  std::vector<float> expected = hidden.values();
  for (std::int64_t r = 0; r < rows; ++r)
    fp8_round_row(expected.data() + r * cols, cols, expected.data() + r * cols);
  cuda::fp8_quantise_rows({.x = x.tensor().f32(),
                           .up = other.tensor().f32(),
                           .limit = 3,
                           .rows = static_cast<int>(rows),
                           .cols = static_cast<int>(cols),
                           .out = x.tensor().f32()},
                          gpu().stream());
  expect_same(x.values(), expected);
}

}  // namespace
}  // namespace quatrain::testing

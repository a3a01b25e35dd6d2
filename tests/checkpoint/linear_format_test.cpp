// SPDX-License-Identifier: Apache-2.0
// Format detection: every layout in use is recognised from its tensors and decodes to the right
// values; contradictions are refused.
#include "checkpoint/linear_format.h"

#include <gtest/gtest.h>

#include "checkpoint/quantise.h"
#include "checkpoint/scratch.h"

namespace quatrain::test {
namespace {

constexpr std::int64_t kRows = 160, kCols = 256;
const std::string kBase = "layers.0.attn.wq_a";

std::vector<std::uint8_t> bytes_of_values(const QuantMatrix& m) {
  const auto* p = reinterpret_cast<const std::uint8_t*>(m.values);
  return {p, p + m.rows * m.row_bytes()};
}

std::vector<std::uint8_t> bytes_of_scales(const QuantMatrix& m) {
  const auto* p = reinterpret_cast<const std::uint8_t*>(m.scales);
  return {p, p + m.scale_count() * bytes_of(m.scale_dtype)};
}

TestTensor weight_of(const QuantMatrix& m, DType dtype, std::string_view suffix = "weight") {
  return tensor_of(fmt::format("{}.{}", kBase, suffix), dtype,
                   {m.rows, m.row_bytes() / bytes_of(dtype)}, bytes_of_values(m));
}

TestTensor scale_of(const QuantMatrix& m, DType dtype, std::string_view suffix) {
  return tensor_of(fmt::format("{}.{}", kBase, suffix), dtype,
                   {m.scale_count() / m.scale_columns(), m.scale_columns()}, bytes_of_scales(m));
}

struct Case {
  std::string name;
  WeightFormat format;
  std::vector<TestTensor> tensors;
  std::vector<float> expected;
};

class Layouts {
 public:
  Layouts()
      : values_(random_values(kRows * kCols, 17)),
        dense_(dense_view(values_, kRows)),
        nvfp4_(quantize_nvfp4(dense_, nvfp4_global_scale(max_magnitude(dense_)))),
        mxfp4_(quantize_mxfp4(dense_)),
        fp8_(quantize_fp8_block(dense_)),
        fp8_f32_(quantize_fp8_block(dense_, DType::kF32)) {}

  std::vector<TestTensor> modelopt() const {
    return {weight_of(nvfp4_.matrix, DType::kU8),
            scale_of(nvfp4_.matrix, DType::kF8E4M3, "weight_scale"),
            scalar_of(kBase + ".weight_scale_2", nvfp4_.matrix.global_scale)};
  }

  std::vector<TestTensor> packed(std::vector<std::int64_t> scalar_shape) const {
    return {weight_of(nvfp4_.matrix, DType::kU8, "weight_packed"),
            scale_of(nvfp4_.matrix, DType::kF8E4M3, "weight_scale"),
            tensor_of<float>(kBase + ".weight_global_scale", DType::kF32, std::move(scalar_shape),
                             {1.0f / nvfp4_.matrix.global_scale})};
  }

  std::vector<TestTensor> mxfp4(DType weight, DType scale) const {
    return {weight_of(mxfp4_.matrix, weight), scale_of(mxfp4_.matrix, scale, "scale")};
  }

  std::vector<TestTensor> fp8(std::string_view suffix, DType dtype) const {
    const QuantMatrix& m = dtype == DType::kF32 ? fp8_f32_.matrix : fp8_.matrix;
    if (dtype != DType::kBF16) return {weight_of(m, DType::kF8E4M3), scale_of(m, dtype, suffix)};
    // Powers of two are exact in BF16.
    std::vector<std::uint16_t> scales;
    for (const std::uint8_t b : bytes_of_scales(m)) scales.push_back(bf16_encode(ue8m0_decode(b)));
    return {weight_of(m, DType::kF8E4M3),
            tensor_of(fmt::format("{}.{}", kBase, suffix), DType::kBF16,
                      {m.scale_count() / m.scale_columns(), m.scale_columns()}, scales)};
  }

  /// E4M3 weights with the given scales, and the values they mean.
  Case fp8_scaled(std::string name, WeightFormat format, std::vector<std::int64_t> shape,
                  DType dtype) const {
    const std::vector<std::uint8_t> codes = bytes_of_values(fp8_.matrix);
    const std::size_t count = format == WeightFormat::kFp8Row ? kRows : 1;
    std::vector<float> scales(count);
    for (std::size_t i = 0; i < count; ++i)
      scales[i] = bf16_round(0.01f + 0.001f * static_cast<float>(i));
    Case out{std::move(name), format, {weight_of(fp8_.matrix, DType::kF8E4M3)}, {}};
    if (dtype == DType::kF32) {
      out.tensors.push_back(tensor_of(kBase + ".weight_scale", dtype, std::move(shape), scales));
    } else {
      std::vector<std::uint16_t> stored;
      for (const float s : scales) stored.push_back(bf16_encode(s));
      out.tensors.push_back(tensor_of(kBase + ".weight_scale", dtype, std::move(shape), stored));
    }
    for (std::size_t i = 0; i < codes.size(); ++i)
      out.expected.push_back(e4m3_decode(codes[i]) * scales[count == 1 ? 0 : i / kCols]);
    return out;
  }

  Case dense(DType dtype) const {
    Case out{fmt::format("dense {}", name_of(dtype)), WeightFormat::kDense, {}, {}};
    std::vector<std::uint16_t> halves;
    for (const float v : values_) {
      halves.push_back(dtype == DType::kF16 ? f16_encode(v) : bf16_encode(v));
      out.expected.push_back(dtype == DType::kF32   ? v
                             : dtype == DType::kF16 ? f16_decode(halves.back())
                                                    : bf16_decode(halves.back()));
    }
    const std::string name = kBase + ".weight";
    out.tensors.push_back(dtype == DType::kF32 ? tensor_of(name, dtype, {kRows, kCols}, values_)
                                               : tensor_of(name, dtype, {kRows, kCols}, halves));
    return out;
  }

  std::vector<Case> all() const {
    const std::vector<float> nv = decode_all(nvfp4_.matrix), mx = decode_all(mxfp4_.matrix),
                             f8 = decode_all(fp8_.matrix), f8_f32 = decode_all(fp8_f32_.matrix);
    std::vector<Case> out = {
        {"ModelOpt", WeightFormat::kNvfp4, modelopt(), nv},
        {"MXFP4 I8 + E8M0", WeightFormat::kMxfp4, mxfp4(DType::kI8, DType::kF8E8M0), mx},
        {"MXFP4 U8 + U8", WeightFormat::kMxfp4, mxfp4(DType::kU8, DType::kU8), mx},
        {"MXFP4 I8 + U8", WeightFormat::kMxfp4, mxfp4(DType::kI8, DType::kU8), mx},
        {"MXFP4 U8 + E8M0", WeightFormat::kMxfp4, mxfp4(DType::kU8, DType::kF8E8M0), mx},
        {"FP8 U8 scale", WeightFormat::kFp8Block, fp8("scale", DType::kU8), f8},
        fp8_scaled("FP8 tensor []", WeightFormat::kFp8Tensor, {}, DType::kF32),
        fp8_scaled("FP8 tensor [1]", WeightFormat::kFp8Tensor, {1}, DType::kBF16),
        fp8_scaled("FP8 row [n]", WeightFormat::kFp8Row, {kRows}, DType::kF32),
        fp8_scaled("FP8 row [n, 1]", WeightFormat::kFp8Row, {kRows, 1}, DType::kBF16),
        dense(DType::kF32),
        dense(DType::kBF16),
        dense(DType::kF16),
    };
    for (const char* suffix : {"scale", "weight_scale", "weight_scale_inv"}) {
      out.push_back({fmt::format("FP8 E8M0 .{}", suffix), WeightFormat::kFp8Block,
                     fp8(suffix, DType::kF8E8M0), f8});
      out.push_back({fmt::format("FP8 BF16 .{}", suffix), WeightFormat::kFp8Block,
                     fp8(suffix, DType::kBF16), f8});
      out.push_back({fmt::format("FP8 F32 .{}", suffix), WeightFormat::kFp8Block,
                     fp8(suffix, DType::kF32), f8_f32});
    }
    return out;
  }

 private:
  std::vector<float> values_;
  QuantMatrix dense_;
  LoadedLinear nvfp4_, mxfp4_, fp8_, fp8_f32_;
};

std::string refusal(const std::vector<TestTensor>& tensors, std::int64_t rows = kRows,
                    std::int64_t cols = kCols) {
  const ScratchFolder folder;
  write_model(folder.path(), tensors);
  return message_of([&] {
    const Checkpoint checkpoint = Checkpoint::open(folder.path());
    checkpoint.load(checkpoint.linear(kBase, rows, cols));
  });
}

TEST(LinearFormat, EveryLayoutDecodesToItsValues) {
  const Layouts layouts;
  for (const Case& c : layouts.all()) {
    SCOPED_TRACE(c.name);
    const ScratchFolder folder;
    write_model(folder.path(), c.tensors);
    const Checkpoint checkpoint = Checkpoint::open(folder.path());
    const LinearSource source = checkpoint.linear(kBase, kRows, kCols);
    EXPECT_EQ(source.format, c.format);
    EXPECT_EQ(source.tensors.size(), c.tensors.size());
    EXPECT_EQ(source.input_scale, nullptr);
    const LoadedLinear loaded = checkpoint.load(source);
    EXPECT_EQ(loaded.matrix.name, kBase);
    EXPECT_EQ(decode_all(loaded.matrix), c.expected);
  }
}

// compressed-tensors stores the reciprocal of the multiplier, as [1] or [].
TEST(LinearFormat, Trap42ReciprocalGlobalScaleIsInverted) {
  const Layouts layouts;
  const auto decoded = [](const std::vector<TestTensor>& tensors) {
    const ScratchFolder folder;
    write_model(folder.path(), tensors);
    const Checkpoint checkpoint = Checkpoint::open(folder.path());
    return decode_all(checkpoint.load(checkpoint.linear(kBase, kRows, kCols)).matrix);
  };
  const std::vector<float> expected = decoded(layouts.modelopt());
  for (const auto& shape : std::vector<std::vector<std::int64_t>>{{}, {1}}) {
    const std::vector<float> found = decoded(layouts.packed(shape));
    for (std::size_t i = 0; i < found.size(); ++i)
      ASSERT_NEAR(found[i], expected[i], 2e-7 * std::abs(expected[i])) << i;
  }
}

TEST(LinearFormat, InputScales) {
  const Layouts layouts;
  const ScratchFolder folder;
  std::vector<TestTensor> tensors = layouts.modelopt();
  tensors.push_back(scalar_of(kBase + ".input_scale", 0.25f));
  write_model(folder.path(), tensors);
  const Checkpoint modelopt = Checkpoint::open(folder.path());
  EXPECT_EQ(modelopt.load(modelopt.linear(kBase, kRows, kCols)).matrix.input_scale, 0.25f);

  const ScratchFolder other;
  tensors = layouts.packed({1});
  tensors.push_back(tensor_of<float>(kBase + ".input_global_scale", DType::kF32, {1}, {4.0f}));
  write_model(other.path(), tensors);
  const Checkpoint packed = Checkpoint::open(other.path());
  const LinearSource source = packed.linear(kBase, kRows, kCols);
  EXPECT_EQ(packed.load(source).matrix.input_scale, 0.25f);
  EXPECT_EQ(source.tensors.size(), 4u);
}

// Trap 40: UE8M0 bytes are exponents, not numbers, and lie row-major like the weight.
TEST(LinearFormat, Trap40ExponentBytesAreReadAsBits) {
  const std::vector<std::uint8_t> codes(64 * 64 / 2, 0x22);  // every value 1
  std::vector<std::uint8_t> scales;
  for (int i = 0; i < 64 * 2; ++i) scales.push_back(static_cast<std::uint8_t>(100 + i % 50));
  for (const DType dtype : {DType::kF8E8M0, DType::kU8}) {
    const ScratchFolder folder;
    write_model(folder.path(), {tensor_of(kBase + ".weight", DType::kI8, {64, 32}, codes),
                                tensor_of(kBase + ".scale", dtype, {64, 2}, scales)});
    const Checkpoint checkpoint = Checkpoint::open(folder.path());
    const auto loaded = checkpoint.load(checkpoint.linear(kBase, 64, 64));
    const std::vector<float> decoded = decode_all(loaded.matrix);
    for (std::size_t r = 0; r < 64; ++r)
      for (std::size_t c = 0; c < 64; ++c)
        ASSERT_EQ(decoded[r * 64 + c], std::ldexp(1.0f, scales[r * 2 + c / 32] - 127));
  }
}

// Trap 41: the low nibble is the even column, and I8 storage does not extend a sign.
TEST(LinearFormat, Trap41LowNibbleFirstWithoutSignExtension) {
  std::vector<std::uint8_t> codes, scales(256, 127);
  for (int b = 0; b < 256; ++b) codes.insert(codes.end(), 16, static_cast<std::uint8_t>(b));
  const ScratchFolder folder;
  write_model(folder.path(), {tensor_of(kBase + ".weight", DType::kI8, {256, 16}, codes),
                              tensor_of(kBase + ".scale", DType::kF8E8M0, {256, 1}, scales)});
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  const auto loaded = checkpoint.load(checkpoint.linear(kBase, 256, 32));
  constexpr float kValues[16] = {0, .5f, 1, 1.5f, 2, 3, 4, 6, -0, -.5f, -1, -1.5f, -2, -3, -4, -6};
  const std::vector<float> decoded = decode_all(loaded.matrix);
  for (std::size_t b = 0; b < 256; ++b)
    for (std::size_t c = 0; c < 32; ++c)
      ASSERT_EQ(decoded[b * 32 + c], kValues[c % 2 == 0 ? b & 15 : b >> 4]) << b;
}

// Trap 43: scales in files are plain row-major; a matrix whose scales differ everywhere shows it.
TEST(LinearFormat, Trap43BlockScalesAreRowMajor) {
  constexpr std::int64_t rows = 128, cols = 256;
  const std::vector<std::uint8_t> codes(rows * cols / 2, 0x22);
  std::vector<std::uint8_t> scales;
  for (int i = 0; i < rows * cols / 16; ++i) scales.push_back(static_cast<std::uint8_t>(i % 0x7F));
  const ScratchFolder folder;
  write_model(folder.path(),
              {tensor_of(kBase + ".weight", DType::kU8, {rows, cols / 2}, codes),
               tensor_of(kBase + ".weight_scale", DType::kF8E4M3, {rows, cols / 16}, scales),
               scalar_of(kBase + ".weight_scale_2", 0.5f)});
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  const auto loaded = checkpoint.load(checkpoint.linear(kBase, rows, cols));
  const std::vector<float> decoded = decode_all(loaded.matrix);
  for (std::size_t i = 0; i < decoded.size(); ++i)
    ASSERT_EQ(decoded[i], 0.5f * e4m3_decode(scales[i / 16])) << i;
}

// Trap 44: one model mixes formats; each linear is judged by its own tensors.
TEST(LinearFormat, Trap44FormatsAreDecidedPerTensor) {
  const Layouts layouts;
  std::vector<TestTensor> tensors;
  const auto add = [&](const std::vector<TestTensor>& parts, const std::string& base) {
    for (TestTensor part : parts) {
      part.spec.name = base + part.spec.name.substr(kBase.size());
      tensors.push_back(std::move(part));
    }
  };
  add(layouts.modelopt(), "layers.0.ffn.experts.0.w1");
  add(layouts.mxfp4(DType::kI8, DType::kF8E8M0), "mtp.0.ffn.experts.0.w1");
  add(layouts.fp8("scale", DType::kF8E8M0), "layers.0.attn.wq_a");
  add(layouts.dense(DType::kBF16).tensors, "head");
  const ScratchFolder folder;
  write_model(folder.path(), tensors);
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  const auto format = [&](const char* base) {
    return checkpoint.linear(base, kRows, kCols).format;
  };
  EXPECT_EQ(format("layers.0.ffn.experts.0.w1"), WeightFormat::kNvfp4);
  EXPECT_EQ(format("mtp.0.ffn.experts.0.w1"), WeightFormat::kMxfp4);
  EXPECT_EQ(format("layers.0.attn.wq_a"), WeightFormat::kFp8Block);
  EXPECT_EQ(format("head"), WeightFormat::kDense);
}

TEST(LinearFormat, ContradictionsAreRefused) {
  const Layouts layouts;
  const auto with = [](std::vector<TestTensor> tensors, TestTensor extra) {
    tensors.push_back(std::move(extra));
    return tensors;
  };
  const auto without = [](std::vector<TestTensor> tensors, std::size_t i) {
    tensors.erase(tensors.begin() + static_cast<std::ptrdiff_t>(i));
    return tensors;
  };
  const TestTensor f32_scale =
      tensor_of(kBase + ".scale", DType::kF32, {2, 2}, std::vector<float>(4, 1.0f));
  const TestTensor global = scalar_of(kBase + ".weight_scale_2", 1.0f);
  EXPECT_TRUE(contains(refusal(without(layouts.modelopt(), 1)), ".weight_scale' is missing"));
  EXPECT_TRUE(contains(refusal(without(layouts.modelopt(), 2)), ".weight_scale_2' is missing"));
  EXPECT_TRUE(contains(refusal(without(layouts.modelopt(), 0)), "wq_a.weight' is missing"));
  EXPECT_TRUE(
      contains(refusal(without(layouts.packed({1}), 2)), ".weight_global_scale' is missing"));
  EXPECT_TRUE(
      contains(refusal(without(layouts.mxfp4(DType::kI8, DType::kU8), 1)), ".scale' is missing"));
  EXPECT_TRUE(
      contains(refusal(without(layouts.fp8("scale", DType::kF32), 1)), ".scale' is missing"));
  EXPECT_TRUE(contains(refusal(with(layouts.modelopt(), f32_scale)),
                       "does not belong to the NVFP4 weight"));
  EXPECT_TRUE(contains(refusal(with(layouts.dense(DType::kBF16).tensors, f32_scale)),
                       "does not belong to the dense weight"));
  EXPECT_TRUE(contains(refusal(with(layouts.fp8("weight_scale", DType::kF32), f32_scale)),
                       "there is also a scale named"));
  EXPECT_TRUE(contains(refusal(with(layouts.packed({1}), global)), "does not belong to the NVFP4"));
  EXPECT_TRUE(contains(refusal(with(layouts.packed({}), layouts.modelopt()[0])),
                       "both weight and weight_packed exist"));
  EXPECT_TRUE(contains(refusal(layouts.fp8("weight_scale", DType::kU8)),
                       "expected F8_E8M0, F32 or BF16, found U8"));
}

TEST(LinearFormat, ShapesAreCheckedAgainstTheModel) {
  const Layouts layouts;
  EXPECT_TRUE(contains(refusal(layouts.modelopt(), kRows + 16), "expected shape [176, 128]"));
  EXPECT_TRUE(contains(refusal(layouts.modelopt(), kRows, kCols * 2), "found [160, 128]"));
  EXPECT_TRUE(contains(refusal(layouts.modelopt(), kRows, kCols + 8), "multiples of 16"));
  EXPECT_TRUE(contains(refusal(layouts.mxfp4(DType::kI8, DType::kU8), kRows, kCols + 16),
                       "multiples of 32"));
  EXPECT_TRUE(contains(refusal(layouts.fp8("scale", DType::kF32), 1), "expected shape [1, 256]"));
  EXPECT_TRUE(contains(refusal(layouts.dense(DType::kF32).tensors, kCols, kRows),
                       "expected shape [256, 160]"));
  // A transposed scale has the wrong shape (trap 40's second half).
  std::vector<TestTensor> transposed = layouts.mxfp4(DType::kI8, DType::kU8);
  std::swap(transposed[1].spec.shape[0], transposed[1].spec.shape[1]);
  EXPECT_TRUE(contains(refusal(transposed), "expected shape [160, 8]"));
}

TEST(LinearFormat, BadScalesAreRefusedWithTheirPlace) {
  const Layouts layouts;
  const auto set = [](std::vector<TestTensor> tensors, std::size_t i, std::size_t at,
                      std::initializer_list<int> bytes) {
    for (const int b : bytes) tensors[i].data[at++] = static_cast<std::byte>(b);
    return tensors;
  };
  // NVFP4: row 1, column 3 is byte 19.
  for (const int bad : {0x7F, 0xFF, 0x80, 0xB8}) {
    const std::string message = refusal(set(layouts.modelopt(), 1, 19, {bad}));
    EXPECT_TRUE(contains(message, "wq_a.weight_scale': the scale at row 1, column 3"));
  }
  EXPECT_TRUE(contains(refusal(set(layouts.mxfp4(DType::kI8, DType::kF8E8M0), 1, 8, {0xFF})),
                       "the scale at row 1, column 0"));
  EXPECT_TRUE(contains(refusal(set(layouts.fp8("scale", DType::kF8E8M0), 1, 3, {0xFF})),
                       "the scale at row 1, column 1"));
  EXPECT_TRUE(contains(refusal(set(layouts.fp8("scale", DType::kBF16), 1, 2, {0x80, 0x7F})),
                       "the scale at row 0, column 1"));
  EXPECT_TRUE(contains(refusal(set(layouts.fp8("scale", DType::kF32), 1, 0, {0, 0, 0xC0, 0x7F})),
                       "the scale at row 0, column 0"));
  EXPECT_TRUE(contains(refusal(set(layouts.fp8("scale", DType::kF32), 1, 0, {0, 0, 0x80, 0xBF})),
                       "the scale at row 0, column 0"));
  for (const float bad : {0.0f, -1.0f, std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<TestTensor> tensors = layouts.modelopt();
    tensors[2] = scalar_of(kBase + ".weight_scale_2", bad);
    EXPECT_TRUE(contains(refusal(tensors), "expected a finite scale above 0"));
    tensors = layouts.packed({1});
    tensors[2] = scalar_of(kBase + ".weight_global_scale", bad);
    EXPECT_TRUE(contains(refusal(tensors), "expected a finite scale above 0"));
  }
  std::vector<TestTensor> tensors = layouts.packed({1});
  tensors[2] = scalar_of(kBase + ".weight_global_scale", 1e-40f);
  EXPECT_TRUE(contains(refusal(tensors), "the reciprocal of"));
}

}  // namespace
}  // namespace quatrain::test

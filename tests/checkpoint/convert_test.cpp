// SPDX-License-Identifier: Apache-2.0
// Conversion of whole checkpoints: what changes, what is copied, what is reported.
#include "checkpoint/convert.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "checkpoint/scratch.h"
#include "core/file.h"

namespace quatrain::test {
namespace {

constexpr std::int64_t kD = 128, kI = 64;

std::vector<std::uint16_t> bf16_values(std::int64_t count, unsigned seed, float scale = 0.02f) {
  std::vector<std::uint16_t> out;
  for (const float v : random_values(static_cast<std::size_t>(count), seed, scale))
    out.push_back(bf16_encode(v));
  return out;
}

/// Two layers with two experts each, attention and what surrounds them.
std::vector<TestTensor> bf16_model() {
  std::vector<TestTensor> out;
  unsigned seed = 0;
  const auto linear = [&](const std::string& base, std::int64_t rows, std::int64_t cols,
                          float scale = 0.02f) {
    out.push_back(tensor_of(base + ".weight", DType::kBF16, {rows, cols},
                            bf16_values(rows * cols, ++seed, scale)));
  };
  linear("embed", 32, kD);
  for (int layer = 0; layer < 2; ++layer) {
    const std::string prefix = fmt::format("layers.{}.", layer);
    for (int expert = 0; expert < 2; ++expert) {
      const std::string base = fmt::format("{}ffn.experts.{}.", prefix, expert);
      linear(base + "w1", kI, kD, 0.2f);
      linear(base + "w2", kD, kI);
      linear(base + "w3", kI, kD);
    }
    linear(prefix + "attn.wq_a", 48, kD);
    linear(prefix + "ffn.gate", 2, kD);
    linear(prefix + "ffn.shared_experts.w2", kD, kI);
    out.push_back(tensor_of<float>(prefix + "attn_norm.weight", DType::kF32, {3}, {1, 2, 3}));
  }
  return out;
}

std::vector<float> decoded(const Checkpoint& checkpoint, const std::string& base, std::int64_t rows,
                           std::int64_t cols) {
  return decode_all(checkpoint.load(checkpoint.linear(base, rows, cols)).matrix);
}

std::vector<std::byte> raw(const Checkpoint& checkpoint, const std::string& name) {
  const TensorInfo* tensor = checkpoint.find(name);
  EXPECT_NE(tensor, nullptr) << name;
  std::vector<std::byte> out(static_cast<std::size_t>(tensor ? tensor->bytes : 0));
  if (tensor) checkpoint.read(*tensor, out);
  return out;
}

TEST(Convert, ExpertsToNvfp4) {
  const ScratchFolder in, out;
  write_model(in.path(), bf16_model());
  const Checkpoint source = Checkpoint::open(in.path());
  std::int64_t read = 0, total = 0;
  const ConvertReport report = convert_tensors(
      source, out.path(), {}, [&](std::string_view, std::int64_t bytes, std::int64_t all) {
        read += bytes;
        total = all;
      });
  EXPECT_EQ(report.converted_linears, 12);
  EXPECT_EQ(report.copied_tensors, 9);
  EXPECT_EQ(read, report.bytes_before);
  EXPECT_EQ(total, report.bytes_before);
  EXPECT_LT(report.bytes_after, report.bytes_before);
  EXPECT_GT(report.experts_error.relative(), 0.05);
  EXPECT_LT(report.experts_error.relative(), 0.12);
  EXPECT_EQ(report.linears_error.reference, 0.0);

  const Checkpoint result = Checkpoint::open(out.path());
  EXPECT_EQ(result.tensors().size(), 12u * 3 + 9);
  for (const char* name : {"embed.weight", "layers.1.attn.wq_a.weight", "layers.0.ffn.gate.weight",
                           "layers.1.attn_norm.weight"})
    EXPECT_EQ(raw(result, name), raw(source, name)) << name;
  // w1 is ten times larger than w3, yet they share the global scale.
  const auto global_scale = [&](const char* name, std::int64_t rows, std::int64_t cols) {
    const LinearSource linear = result.linear(name, rows, cols);
    EXPECT_EQ(linear.format, WeightFormat::kNvfp4);
    return result.load(linear).matrix.global_scale;
  };
  const float w1 = global_scale("layers.1.ffn.experts.0.w1", kI, kD);
  EXPECT_EQ(w1, global_scale("layers.1.ffn.experts.0.w3", kI, kD));
  EXPECT_NE(w1, global_scale("layers.1.ffn.experts.0.w2", kD, kI));
}

TEST(Convert, LinearsToFp8AndNvfp4) {
  for (const ConvertTarget target : {ConvertTarget::kFp8, ConvertTarget::kNvfp4}) {
    const ScratchFolder in, out;
    write_model(in.path(), bf16_model());
    const ConvertReport report =
        convert_tensors(Checkpoint::open(in.path()), out.path(), {.linears = target}, {});
    EXPECT_EQ(report.converted_linears, 16);
    EXPECT_LT(report.linears_error.relative(), 0.12);
    const Checkpoint result = Checkpoint::open(out.path());
    EXPECT_EQ(result.linear("layers.0.attn.wq_a", 48, kD).format,
              target == ConvertTarget::kFp8 ? WeightFormat::kFp8Block : WeightFormat::kNvfp4);
    EXPECT_EQ(result.linear("layers.0.ffn.gate", 2, kD).format, WeightFormat::kDense);
  }
}

TEST(Convert, ShardingChangesNothing) {
  const ScratchFolder in, one, many;
  write_model(in.path(), bf16_model());
  const Checkpoint source = Checkpoint::open(in.path());
  convert_tensors(source, one.path(), {}, {});
  const ConvertReport report = convert_tensors(source, many.path(), {.max_shard_bytes = 20000}, {});
  EXPECT_GT(report.shards, 3u);
  const Checkpoint a = Checkpoint::open(one.path()), b = Checkpoint::open(many.path());
  ASSERT_EQ(a.tensors().size(), b.tensors().size());
  for (const TensorInfo& tensor : a.tensors()) EXPECT_EQ(raw(a, tensor.name), raw(b, tensor.name));
}

TEST(Convert, FusedExpertsComeOutSplit) {
  const ScratchFolder in, out;
  const auto gate_up = bf16_values(3 * 2 * kI * kD, 1), down = bf16_values(3 * kD * kI, 2);
  write_model(
      in.path(),
      {tensor_of("model.layers.0.mlp.experts.gate_up_proj", DType::kBF16, {3, 2 * kI, kD}, gate_up),
       tensor_of("model.layers.0.mlp.experts.down_proj", DType::kBF16, {3, kD, kI}, down)});
  const Checkpoint source = Checkpoint::open(in.path());
  const std::vector<float> up = decoded(source, "layers.0.ffn.experts.2.w3", kI, kD);
  for (std::size_t i = 0; i < up.size(); ++i)
    ASSERT_EQ(up[i], bf16_decode(gate_up[static_cast<std::size_t>(5 * kI * kD) + i]));
  convert_tensors(source, out.path(), {.experts = ConvertTarget::kKeep}, {});
  EXPECT_EQ(decoded(Checkpoint::open(out.path()), "layers.0.ffn.experts.2.w3", kI, kD), up);
}

TEST(Convert, CastKeepsMxfp4Values) {
  const ScratchFolder in, cast, requantised;
  std::vector<TestTensor> tensors;
  std::vector<float> w1;
  for (const char* w : {"w1", "w3"}) {
    const std::vector<float> values = random_values(static_cast<std::size_t>(kI * kD), w[1]);
    LoadedLinear mx = quantize_mxfp4(dense_view(values, kI));
    const std::string base = fmt::format("layers.0.ffn.experts.0.{}", w);
    tensors.push_back(
        {{base + ".weight", DType::kI8, {kI, kD / 2}}, {mx.values().begin(), mx.values().end()}});
    tensors.push_back({{base + ".scale", DType::kF8E8M0, {kI, kD / 32}},
                       {mx.scales().begin(), mx.scales().end()}});
    if (w1.empty()) w1 = decode_all(mx.matrix);
  }
  write_model(in.path(), tensors);
  const Checkpoint source = Checkpoint::open(in.path());
  ConvertReport report = convert_tensors(source, cast.path(), {.cast_mxfp4 = true}, {});
  EXPECT_EQ(report.cast_blocks, 2 * kI * kD / 32);
  EXPECT_EQ(report.inexact_blocks, 0);
  EXPECT_EQ(report.experts_error.difference, 0.0);
  const Checkpoint result = Checkpoint::open(cast.path());
  EXPECT_EQ(decoded(result, "layers.0.ffn.experts.0.w1", kI, kD), w1);
  EXPECT_TRUE(
      is_pow2_paired(result.load(result.linear("layers.0.ffn.experts.0.w1", kI, kD)).matrix));
  report = convert_tensors(source, requantised.path(), {}, {});
  EXPECT_GT(report.experts_error.difference, 0.0);
}

TEST(Convert, FilesBesideTheTensors) {
  const ScratchFolder in, parent;
  const auto out = parent.path() / "new";
  write_model(in.path(), bf16_model());
  write_text_file(in.path() / "config.json",
                  R"({"model_type": "deepseek_v4", "x": [1, {"y": 1e-06}],
                      "quantization_config": {"quant_method": "none"}})");
  write_text_file(in.path() / "tokenizer.json", "{\"a\": 1}");
  convert_checkpoint(in.path(), out, {.linears = ConvertTarget::kFp8}, {});
  const auto config = nlohmann::json::parse(read_text_file(out / "config.json", 1 << 20));
  EXPECT_EQ(config["x"], nlohmann::json::parse(R"([1, {"y": 1e-06}])"));
  const auto& quant = config["quantization_config"];
  EXPECT_EQ(quant["quant_method"], "fp8");
  EXPECT_EQ(quant["quant_algo"], "MIXED_PRECISION");
  EXPECT_EQ(quant["moe_quant_algo"], "NVFP4");
  EXPECT_EQ(quant["group_size"], 16);
  EXPECT_EQ(quant["weight_block_size"], nlohmann::json({128, 128}));
  const auto hf = nlohmann::json::parse(read_text_file(out / "hf_quant_config.json", 1 << 20));
  EXPECT_EQ(hf["quantization"]["quant_algo"], "MIXED_PRECISION");
  EXPECT_EQ(read_text_file(out / "tokenizer.json", 100), "{\"a\": 1}");
  EXPECT_TRUE(contains(message_of([&] { convert_checkpoint(in.path(), out, {}, {}); }),
                       "already holds a checkpoint"));
}

}  // namespace
}  // namespace quatrain::test

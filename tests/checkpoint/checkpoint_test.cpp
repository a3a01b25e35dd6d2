// SPDX-License-Identifier: Apache-2.0
// Reading folders: single files, shards, typed reads, and what the writer promises.
#include "checkpoint/checkpoint.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>

#include "checkpoint/linear_format.h"
#include "checkpoint/scratch.h"
#include "core/file.h"
#include "model/config.h"

namespace quatrain::test {
namespace {

std::vector<TestTensor> twenty_tensors() {
  std::vector<TestTensor> out;
  for (int i = 0; i < 20; ++i) {
    const auto n = static_cast<std::size_t>(3 + i);
    std::vector<float> values(n);
    for (std::size_t k = 0; k < n; ++k)
      values[k] = static_cast<float>(i * 100) + static_cast<float>(k);
    out.push_back(tensor_of(fmt::format("layers.{}.attn_norm.weight", i), DType::kF32,
                            {static_cast<std::int64_t>(n)}, values));
    out.push_back(tensor_of<std::uint8_t>(fmt::format("bytes.{}", i), DType::kU8, {3}, {1, 2, 3}));
  }
  return out;
}

void expect_twenty(const Checkpoint& checkpoint) {
  EXPECT_EQ(checkpoint.tensors().size(), 40u);
  for (const TestTensor& expected : twenty_tensors()) {
    const TensorInfo* found = checkpoint.find(expected.spec.name);
    ASSERT_NE(found, nullptr) << expected.spec.name;
    std::vector<std::byte> data(static_cast<std::size_t>(found->bytes));
    checkpoint.read(*found, data);
    EXPECT_EQ(data, expected.data);
    EXPECT_EQ(found->offset % bytes_of(found->dtype), 0);
  }
}

TEST(Checkpoint, OneFile) {
  const ScratchFolder folder;
  write_model(folder.path(), twenty_tensors());
  expect_twenty(Checkpoint::open(folder.path()));
  expect_twenty(Checkpoint::open(folder.path() / "model.safetensors"));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

TEST(Checkpoint, Shards) {
  const ScratchFolder folder;
  write_model(folder.path(), twenty_tensors(), 200);
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  EXPECT_GT(checkpoint.files().size(), 5u);
  expect_twenty(checkpoint);
  EXPECT_EQ(
      checkpoint.where(*checkpoint.find("bytes.0")),
      fmt::format("model-00001-of-{:05}.safetensors: tensor 'bytes.0'", checkpoint.files().size()));
}

TEST(Checkpoint, StaleTotalSizeIsIgnored) {
  const ScratchFolder folder;
  write_model(folder.path(), twenty_tensors(), 200);
  const auto path = folder.path() / "model.safetensors.index.json";
  std::string text = read_text_file(path, 1 << 20);
  const std::size_t digit = text.find_first_of("0123456789");
  text[digit] = '9';
  write_text_file(path, text);
  expect_twenty(Checkpoint::open(folder.path()));
}

TEST(Checkpoint, WriterIsDeterministicAndWholeOrNothing) {
  const ScratchFolder a, b, c;
  write_model(a.path(), twenty_tensors(), 300);
  write_model(b.path(), twenty_tensors(), 300);
  for (const auto& entry : std::filesystem::directory_iterator(a.path()))
    EXPECT_EQ(read_text_file(entry.path(), 1 << 20),
              read_text_file(b.path() / entry.path().filename(), 1 << 20));
  {
    ShardedWriter writer(c.path(), {{"a", DType::kF32, {2}}, {"b", DType::kF32, {2}}}, 1 << 20);
    writer.write("a", std::vector<std::byte>(8));
    EXPECT_TRUE(contains(message_of([&] { writer.write("a", std::vector<std::byte>(8)); }), "'a'"));
    EXPECT_TRUE(contains(message_of([&] { writer.write("b", std::vector<std::byte>(4)); }), "8"));
    EXPECT_TRUE(contains(message_of([&] { writer.finish(); }), "'b' was never written"));
  }
  EXPECT_TRUE(std::filesystem::is_empty(c.path()));
}

TEST(Checkpoint, TypedReads) {
  const ScratchFolder folder;
  write_model(folder.path(),
              {tensor_of<std::uint16_t>("bf16", DType::kBF16, {2, 1}, {0x3F80, 0xC000}),
               tensor_of<std::uint16_t>("f16", DType::kF16, {2}, {0x3C00, 0xC000}),
               tensor_of<float>("f32", DType::kF32, {2}, {1.0f, -2.0f}),
               tensor_of<std::int32_t>("i32", DType::kI32, {2}, {-7, 9}),
               tensor_of<std::int64_t>("i64", DType::kI64, {2}, {-7, 1LL << 40}),
               tensor_of<std::uint8_t>("u8", DType::kU8, {2}, {1, 2})});
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  const std::vector<std::int64_t> two = {2}, column = {2, 1};
  const std::vector<float> expected = {1.0f, -2.0f};
  EXPECT_EQ(checkpoint.read_f32("bf16", column), expected);
  EXPECT_EQ(checkpoint.read_f32("f16", two), expected);
  EXPECT_EQ(checkpoint.read_f32("f32", two), expected);
  EXPECT_EQ(checkpoint.read_ints("i32", two), (std::vector<std::int64_t>{-7, 9}));
  EXPECT_EQ(checkpoint.read_ints("i64", two), (std::vector<std::int64_t>{-7, 1LL << 40}));
  EXPECT_TRUE(contains(message_of([&] { checkpoint.read_f32("bf16", two); }),
                       "tensor 'bf16': expected shape [2], found [2, 1]"));
  EXPECT_TRUE(contains(message_of([&] { checkpoint.read_f32("u8", two); }), "found U8"));
  EXPECT_TRUE(contains(message_of([&] { checkpoint.read_ints("f32", two); }), "found F32"));
  EXPECT_TRUE(contains(message_of([&] { checkpoint.read_f32("gone", two); }), "'gone' is missing"));
}

// Trap 38: 64-bit ids read as pairs of 32-bit words would make every second value 0.
TEST(Checkpoint, Trap38IdsKeepTheirWidth) {
  const ScratchFolder folder;
  std::vector<std::int64_t> ids(100);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int64_t>(i % 23) + 1;
  write_model(folder.path(), {tensor_of("layers.0.ffn.gate.tid2eid", DType::kI64, {50, 2}, ids)});
  const std::vector<std::int64_t> shape = {50, 2};
  const auto found = Checkpoint::open(folder.path()).read_ints("layers.0.ffn.gate.tid2eid", shape);
  EXPECT_EQ(found, ids);
}

TEST(Checkpoint, LoadedLinearsMoveWithTheirNames) {
  std::vector<LoadedLinear> linears;
  for (int i = 0; i < 20; ++i)
    linears.push_back(allocate_linear(fmt::format("n{}", i), WeightFormat::kDense, 1, 4,
                                      DType::kF32, DType::kF32));
  for (int i = 0; i < 20; ++i)
    EXPECT_EQ(linears[static_cast<std::size_t>(i)].matrix.name, fmt::format("n{}", i));
}

TEST(Checkpoint, AFileThatShrinksIsReported) {
  const ScratchFolder folder;
  write_model(folder.path(), twenty_tensors());
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  const auto path = folder.path() / "model.safetensors";
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  const TensorInfo* last = nullptr;
  for (const TensorInfo& tensor : checkpoint.tensors())
    if (!last || tensor.offset > last->offset) last = &tensor;
  std::vector<std::byte> data(static_cast<std::size_t>(last->bytes));
  EXPECT_TRUE(contains(message_of([&] { checkpoint.read(*last, data); }), "became shorter"));
}

/// As many tensors as the experts of the large published models have in one file.
TEST(Checkpoint, ManyTensorsOpenQuickly) {
  std::vector<TestTensor> tensors;
  for (int layer = 0; layer < 43; ++layer)
    for (int expert = 0; expert < 256; ++expert)
      for (const char* w : {"w1", "w2", "w3"}) {
        const std::string base = fmt::format("layers.{}.ffn.experts.{}.{}.", layer, expert, w);
        for (const char* part : {"weight", "weight_scale", "weight_scale_2", "input_scale"})
          tensors.push_back(tensor_of<std::uint8_t>(base + part, DType::kU8, {1}, {1}));
      }
  const ScratchFolder folder;
  write_model(folder.path(), tensors);
  const auto start = std::chrono::steady_clock::now();
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  [[maybe_unused]] const std::chrono::duration<double> seconds =
      std::chrono::steady_clock::now() - start;
  EXPECT_EQ(checkpoint.tensors().size(), 132096u);
#ifndef QUATRAIN_SANITIZED
  EXPECT_LT(seconds.count(), 3.0);  // well below a second on an idle machine
#endif
}

/// Optional: a folder whose subfolders are checkpoints made by another program.
TEST(Checkpoint, ForeignCheckpoints) {
  const char* folder = std::getenv("QUATRAIN_ORACLE_CASES");
  if (!folder) GTEST_SKIP() << "QUATRAIN_ORACLE_CASES is not set";
  int linears = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    SCOPED_TRACE(entry.path().string());
    const V4Config config = read_config(entry.path());
    EXPECT_EQ(std::ssize(config.compress_ratios), config.num_layers + config.num_mtp_layers);
    const Checkpoint checkpoint = Checkpoint::open(entry.path());
    for (const TensorInfo& tensor : checkpoint.tensors()) {
      if (tensor.shape.size() != 2 || !tensor.name.ends_with(".weight")) continue;
      const std::string base = tensor.name.substr(0, tensor.name.size() - 7);
      const LinearShape shape = stored_shape(checkpoint, base);
      checkpoint.load(checkpoint.linear(base, shape.rows, shape.cols));
      ++linears;
    }
  }
  EXPECT_GT(linears, 0);
}

}  // namespace
}  // namespace quatrain::test

// SPDX-License-Identifier: Apache-2.0
// Linears read ahead through a small ring are those that a plain read gives, in order, and faults
// come out where they are.
#include "checkpoint/linear_stream.h"

#include <deque>

#include "checkpoint/quantise.h"
#include "checkpoint/scratch.h"

namespace quatrain::test {
namespace {

// A checkpoint of NVFP4 and dense linears of many sizes in several files.
struct Linears {
  struct Shape {
    std::string name;
    std::int64_t rows, cols;
  };

  explicit Linears(int count) {
    std::mt19937 random(7);
    std::vector<TestTensor> tensors;
    for (int i = 0; i < count; ++i) {
      const std::string name = fmt::format("layers.{}.attn.wq_a", i);
      const auto rows = static_cast<std::int64_t>(1 + random() % 300);
      const auto cols = static_cast<std::int64_t>(16 * (1 + random() % 20));
      shapes.push_back({name, rows, cols});
      const std::vector<float> values =
          random_values(static_cast<std::size_t>(rows * cols), static_cast<unsigned>(i));
      if (i % 3 == 0) {
        tensors.push_back(tensor_of(name + ".weight", DType::kF32, {rows, cols}, values));
        continue;
      }
      const QuantMatrix dense = dense_view(values, rows);
      LoadedLinear q = quantize_nvfp4(dense, nvfp4_global_scale(max_magnitude(dense)));
      const auto bytes = [](std::span<std::byte> s) {
        return std::vector<std::byte>(s.begin(), s.end());
      };
      tensors.push_back({{name + ".weight", DType::kU8, {rows, cols / 2}}, bytes(q.values())});
      tensors.push_back(
          {{name + ".weight_scale", DType::kF8E4M3, {rows, cols / 16}}, bytes(q.scales())});
      tensors.push_back(scalar_of(name + ".weight_scale_2", q.matrix.global_scale));
      if (i == bad) tensors[tensors.size() - 2].data[5] = std::byte{0x7F};
    }
    write_model(folder.path(), tensors, 1 << 18);
  }

  std::vector<LinearSource> sources(const Checkpoint& checkpoint) const {
    std::vector<LinearSource> out;
    for (const Shape& s : shapes) out.push_back(checkpoint.linear(s.name, s.rows, s.cols));
    return out;
  }

  static constexpr int bad = 31;  // has a scale that is NaN
  ScratchFolder folder;
  std::vector<Shape> shapes;
};

TEST(LinearStream, GivesEveryLinearInOrderAndFaultsInTheirPlace) {
  const Linears linears(60);
  const Checkpoint checkpoint = Checkpoint::open(linears.folder.path());
  ASSERT_GT(checkpoint.files().size(), 2u);
  const std::vector<LinearSource> sources = linears.sources(checkpoint);
  for (const int threads : {1, 2, 8}) {
    for (const std::size_t held : {1, 3}) {
      std::vector<std::byte> ring(static_cast<std::size_t>(LinearStream::ring_bytes(sources, 0)),
                                  std::byte{0xEE});
      LinearStream stream(checkpoint, sources, ring, threads);
      std::deque<std::pair<QuantMatrix, LoadedLinear>> kept;
      const auto check_oldest = [&] {
        const auto& [found, expected] = kept.front();
        ASSERT_EQ(found.name, expected.matrix.name);
        ASSERT_EQ(found.global_scale, expected.matrix.global_scale);
        ASSERT_EQ(decode_all(found), decode_all(expected.matrix)) << found.name;
        kept.pop_front();
        stream.release();
      };
      for (std::size_t i = 0; i < sources.size(); ++i) {
        if (i == Linears::bad) {
          while (!kept.empty()) check_oldest();
          EXPECT_TRUE(contains(message_of([&] { stream.next(); }), "NaN"));
          stream.release();
          continue;
        }
        QuantMatrix found = stream.next();
        kept.emplace_back(found, checkpoint.load(sources[i]));
        if (kept.size() == held) check_oldest();
      }
      while (!kept.empty()) check_oldest();
      EXPECT_THROW(stream.next(), Error);
    }
  }
}

TEST(LinearStream, MayBeLeftAtAnyTime) {
  const Linears linears(40);
  const Checkpoint checkpoint = Checkpoint::open(linears.folder.path());
  const std::vector<LinearSource> sources = linears.sources(checkpoint);
  std::vector<std::byte> ring(static_cast<std::size_t>(LinearStream::ring_bytes(sources, 0)));
  for (int taken = 0; taken < 20; ++taken) {
    LinearStream stream(checkpoint, sources, ring, 4);
    for (int i = 0; i < taken; ++i) {
      stream.next();
      if (i > 0) stream.release();  // one stays held
    }
  }
}

// As a loader does whose device is late: many are held, and given back when the next is not there.
TEST(LinearStream, ManyMayBeHeldWhileThereIsRoom) {
  const Linears linears(30);
  const Checkpoint checkpoint = Checkpoint::open(linears.folder.path());
  const std::vector<LinearSource> sources = linears.sources(checkpoint);
  std::vector<std::byte> ring(static_cast<std::size_t>(LinearStream::ring_bytes(sources, 0)));
  LinearStream stream(checkpoint, sources, ring, 2);
  int held = 0, most = 0;
  for (const LinearSource& source : sources) {
    for (; held > 0 && !stream.is_ready(); --held) stream.release();
    EXPECT_EQ(decode_all(stream.next()), decode_all(checkpoint.load(source).matrix));
    most = std::max(most, ++held);
  }
  EXPECT_GE(most, 1);
}

TEST(LinearStream, ASmallRingIsAFault) {
  const Linears linears(6);
  const Checkpoint checkpoint = Checkpoint::open(linears.folder.path());
  const std::vector<LinearSource> sources = linears.sources(checkpoint);
  std::vector<std::byte> ring(100);
  EXPECT_THROW(LinearStream(checkpoint, sources, ring, 2), Error);
}

}  // namespace
}  // namespace quatrain::test

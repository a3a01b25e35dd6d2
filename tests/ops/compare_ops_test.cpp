// SPDX-License-Identifier: Apache-2.0
// CompareOps: equal backends do not differ, and a planted fault is found where it is.
#include "ops/compare_ops.h"
#include "ops/compare_values.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "backends/cpu/cpu_ops.h"
#include "model/synthetic.h"
#include "runtime/model_runner.h"

namespace quatrain {
namespace {

// Spoils the output of one operation in one layer.
class FaultyOps final : public Interceptor {
 public:
  using Spoil = void (*)(std::vector<float>& values);
  FaultyOps(Ops& inner, std::string name, std::int64_t at, Spoil spoil)
      : Interceptor(inner), name_(std::move(name)), at_(at), spoil_(spoil) {}

 protected:
  void after(const OpCall& call) override {
    if (call.name != name_ || layer() != at_) return;
    for (int i = 0; i < call.count; ++i) {
      const auto& field = call.fields[static_cast<std::size_t>(i)];
      if (!field.is_output || field.tensor.bytes() % 4 != 0) continue;
      // Ids are integers of as many bytes; as floats they are tiny, so spoiling changes their bits.
      std::vector<float> values(static_cast<std::size_t>(field.tensor.bytes() / 4));
      inner().download(values.data(), field.tensor);
      spoil_(values);
      inner().upload(field.tensor, values.data());
    }
  }

 private:
  std::string name_;
  std::int64_t at_;
  Spoil spoil_;
};

class Compared : public ::testing::Test {
 protected:
  // Runs a prompt and one more token of a small model; the subject is spoiled as given.
  const std::vector<OpDifference>& run(Ops& subject) {
    compare_ = std::make_unique<CompareOps>(subject, reference_);
    EngineOptions options;
    options.max_model_len = 200;
    options.max_num_batched_tokens = 5;
    options.record = false;
    runner_ = std::make_unique<ModelRunner>(*compare_, synthetic_model("storyteller", 3), options);
    runner_->cache().randomise(*compare_, 3);
    const std::vector<std::int32_t> tokens = {5, 6, 7, 8, 9};
    const SequenceChunk steps[] = {{.position = 190, .tokens = std::span(tokens)},
                                   {.position = 195, .tokens = std::span(tokens).first(1)}};
    for (const SequenceChunk& step : steps) runner_->step({&step, 1});
    return compare_->differences();
  }

  static const OpDifference* first_difference(const std::vector<OpDifference>& differences) {
    for (const OpDifference& d : differences)
      if (d.difference != 0) return &d;
    return nullptr;
  }

  CpuOps cpu_{2}, reference_{1};
  std::unique_ptr<CompareOps> compare_;
  std::unique_ptr<ModelRunner> runner_;
};

TEST_F(Compared, EqualBackendsDoNotDiffer) {
  const auto& differences = run(cpu_);
  EXPECT_GT(differences.size(), 2u * 3 * 20) << "every operation of two steps of three layers";
  const OpDifference* first = first_difference(differences);
  EXPECT_EQ(first, nullptr) << first->title() << " " << first->field << " " << first->difference;
}

TEST_F(Compared, APlantedFaultIsNamedWithItsLayerAndSize) {
  FaultyOps faulty(cpu_, "attend_store", 1, [](std::vector<float>& values) {
    for (float& v : values) v *= 1.01f;
  });
  const auto& differences = run(faulty);
  const OpDifference* first = first_difference(differences);
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(first->name, "attend_store");
  EXPECT_EQ(first->layer, 1);
  EXPECT_EQ(first->part, "attn");
  EXPECT_NEAR(first->difference, 0.01, 1e-4);
  // Later operations get the spoiled values on both sides.
  for (const OpDifference& d : differences) {
    if (d.name == "attend_store" && d.layer == 1) continue;
    EXPECT_EQ(d.difference, 0) << d.title() << " of layer " << d.layer;
  }
}

TEST_F(Compared, ASingleWrongElementCounts) {
  FaultyOps faulty(cpu_, "experts", 2, [](std::vector<float>& values) { values[7] += 1; });
  const OpDifference* first = first_difference(run(faulty));
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(first->name, "experts");
  EXPECT_EQ(first->layer, 2);
}

TEST_F(Compared, NanIsInfinitelyFar) {
  FaultyOps faulty(cpu_, "swiglu_linear", 0,
                   [](std::vector<float>& values) { values[0] = std::nanf(""); });
  const OpDifference* first = first_difference(run(faulty));
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(first->name, "swiglu_linear");
  EXPECT_EQ(first->difference, std::numeric_limits<double>::infinity());
}

// Floats of the bits of ids: what comes and goes through FaultyOps.
void replace_first_id(std::vector<float>& values) {
  std::int32_t ids[6];
  std::memcpy(ids, values.data(), sizeof(ids));
  std::int32_t other = 0;
  while (std::find(ids, ids + 6, other) != ids + 6) ++other;
  std::memcpy(values.data(), &other, sizeof(other));
}

TEST_F(Compared, TheOrderOfChosenEntriesDoesNotMatter) {
  FaultyOps faulty(cpu_, "index_select", 1,
                   [](std::vector<float>& values) { std::swap(values[0], values[1]); });
  EXPECT_EQ(first_difference(run(faulty)), nullptr);
}

// Of the best four, 4 and 5 are close.
TEST(CompareValues, OnlyTheLastPlaceOfAChoiceMayDiffer) {
  const IdRows certain{{2, 1, 3, -1, -1, -1}, 3}, likely{{5, 4, 1, 2, 3, -1, -1, -1, -1, -1}, 5};
  const auto difference = [&](std::vector<std::int32_t> chosen) {
    chosen.insert(chosen.end(), 4, -1);  // a row of none
    return choice_difference({chosen, 4}, certain, likely);
  };
  EXPECT_EQ(difference({1, 2, 3, 4}), 0);
  EXPECT_EQ(difference({5, 3, 2, 1}), 0);
  EXPECT_EQ(difference({1, 2, 4, 5}), 1.0 / 8);  // 3 is better
  EXPECT_EQ(difference({1, 2, 3, 6}), 1.0 / 8);
  EXPECT_EQ(difference({1, 2, 3, -1}), 1.0 / 8);  // there was a fourth
  EXPECT_EQ(difference({7, 8, 9, 6}), 4.0 / 8);
}

TEST_F(Compared, AWrongExpertIsAShareOfTheIds) {
  FaultyOps faulty(cpu_, "route", 2, replace_first_id);
  const OpDifference* first = first_difference(run(faulty));
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(first->name, "route");
  EXPECT_EQ(first->field, "ids");
  EXPECT_NEAR(first->difference, 1.0 / 30, 1e-9);  // one of 5 rows x 6 ids
}

TEST_F(Compared, WeightsMustComeThroughTheComparison) {
  CompareOps compare(cpu_, reference_);
  const std::vector<float> values(32, 1.0f);
  const QuantMatrix m{.name = "layers.0.attn.w",
                      .rows = 2,
                      .cols = 16,
                      .dtype = DType::kF32,
                      .values = reinterpret_cast<const std::byte*>(values.data())};
  const auto foreign = cpu_.pack_linear(m);
  const Buffer x = cpu_.allocate(64), out = cpu_.allocate(8);
  EXPECT_THROW(compare.linear({.x = Tensor(x.data(), DType::kF32, {1, 16}),
                               .w = foreign.get(),
                               .out = Tensor(out.data(), DType::kF32, {1, 2})}),
               Error);
}

}  // namespace
}  // namespace quatrain

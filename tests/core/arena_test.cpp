// SPDX-License-Identifier: Apache-2.0
// The bump arena: a measuring run predicts a real one, scopes give memory back, a full arena says
// so.
#include "core/arena.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace quatrain {
namespace {

struct Memory {
  explicit Memory(std::int64_t bytes)
      : storage(static_cast<std::size_t>(bytes + Arena::kAlignment)) {
    const auto address = reinterpret_cast<std::uintptr_t>(storage.data());
    const std::uintptr_t alignment = Arena::kAlignment;
    base = storage.data() + ((alignment - address % alignment) % alignment);
  }
  std::vector<char> storage;
  char* base = nullptr;
};

/// A pretend step: nested scopes and tensors of random sizes, the same for the same seed.
void pretend_step(Arena& arena, unsigned seed, std::vector<Tensor>* made = nullptr) {
  std::mt19937 random(seed);
  const auto size = [&] { return static_cast<std::int64_t>(random() % 1000); };
  const Tensor kept = arena.make(DType::kF32, {size(), 3});
  if (made) made->push_back(kept);
  for (int layer = 0; layer < 5; ++layer) {
    const Arena::Scope scope(arena);
    for (int i = 0; i < 4; ++i) {
      const Tensor t = arena.make(i % 2 ? DType::kBF16 : DType::kF32, {size(), 1 + size() % 7});
      if (made && layer == 0) made->push_back(t);
    }
    const Arena::Scope inner(arena);
    arena.make(DType::kU8, {size()});
  }
}

TEST(Arena, MeasuringPredictsUse) {
  for (unsigned seed = 0; seed < 50; ++seed) {
    Arena dry = Arena::measuring();
    EXPECT_TRUE(dry.is_measuring());
    pretend_step(dry, seed);
    Memory memory(dry.high_water());
    Arena arena(memory.base, dry.high_water());
    EXPECT_FALSE(arena.is_measuring());
    pretend_step(arena, seed);
    EXPECT_EQ(arena.high_water(), dry.high_water());
    EXPECT_EQ(arena.used(), dry.used());
  }
}

TEST(Arena, OneByteLessThanMeasuredIsTooLittle) {
  Arena dry = Arena::measuring();
  pretend_step(dry, 1);
  Memory memory(dry.high_water());
  Arena arena(memory.base, dry.high_water() - 1);
  EXPECT_THROW(pretend_step(arena, 1), Error);
}

TEST(Arena, TensorsAreAlignedDisjointAndInside) {
  Arena dry = Arena::measuring();
  pretend_step(dry, 3);
  Memory memory(dry.high_water());
  Arena arena(memory.base, dry.high_water());
  std::vector<Tensor> made;
  pretend_step(arena, 3, &made);
  const char* end = memory.base;
  for (const Tensor& t : made) {
    const char* begin = static_cast<const char*>(t.data());
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(begin) % Arena::kAlignment, 0u);
    EXPECT_GE(begin, end);
    end = begin + t.bytes();
    std::memset(t.data(), 0xFF, static_cast<std::size_t>(t.bytes()));
  }
  EXPECT_LE(end, memory.base + arena.capacity());
}

TEST(Arena, ScopesGiveMemoryBack) {
  Memory memory(1024);
  Arena arena(memory.base, 1024);
  const Tensor outer = arena.make(DType::kU8, {1});
  EXPECT_EQ(arena.used(), 256) << "sizes are rounded up to the alignment";
  void* first = nullptr;
  for (int i = 0; i < 100; ++i) {
    const Arena::Scope scope(arena);
    const Tensor inner = arena.make(DType::kF32, {192});
    if (i == 0) first = inner.data();
    EXPECT_EQ(inner.data(), first) << "the same memory every time";
    EXPECT_NE(inner.data(), outer.data());
  }
  EXPECT_EQ(arena.used(), 256);
  EXPECT_EQ(arena.high_water(), 1024);
}

TEST(Arena, MeasuringNeedsNoMemoryWhateverTheSize) {
  Arena dry = Arena::measuring();
  const Tensor big = dry.make(DType::kF32, {std::int64_t{1} << 40});
  EXPECT_NE(big.data(), nullptr);
  EXPECT_EQ(dry.high_water(), std::int64_t{4} << 40);
}

TEST(Arena, SaysWhatDidNotFit) {
  Memory memory(512);
  Arena arena(memory.base, 512);
  arena.make(DType::kF32, {64});
  try {
    arena.make(DType::kBF16, {3, 100});
    FAIL() << "accepted";
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_EQ(message.find("scratch arena is full: BF16 [3, 100] needs bytes up to 1024, "
                           "the dry run measured 512 ["),
              0u)
        << message;
  }
  EXPECT_EQ(arena.used(), 256) << "a refused tensor takes nothing";
  EXPECT_NO_THROW(arena.make(DType::kU8, {256}));
  EXPECT_THROW(Arena(nullptr, 16), Error);
}

}  // namespace
}  // namespace quatrain

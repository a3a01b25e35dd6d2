// SPDX-License-Identifier: Apache-2.0
// The merge loop against the definition written down naively, and its cost on hostile pieces.
#include "tokenizer/bpe.h"

#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <random>

#include "tokenizer/tokenizer.h"
#include "tokenizer/toy_tokenizer.h"

namespace quatrain {
namespace {

using Rules = std::map<std::pair<std::int32_t, std::int32_t>, Merge>;

// The definition: while a pair has a merge, take the lowest rank, leftmost.
std::vector<std::int32_t> merge_naively(const Rules& rules, std::vector<std::int32_t> ids) {
  for (;;) {
    std::size_t best = ids.size();
    Merge merge{};
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto it = rules.find({ids[i], ids[i + 1]});
      if (it != rules.end() && (best == ids.size() || it->second.rank < merge.rank))
        best = i, merge = it->second;
    }
    if (best == ids.size()) return ids;
    ids[best] = merge.id;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

TEST(Bpe, RandomRulesLikeTheDefinition) {
  std::mt19937 random(11);
  for (int round = 0; round < 3000; ++round) {
    const int letters = 1 + static_cast<int>(random() % 4);
    Rules rules;
    MergeTable table;
    const int count = static_cast<int>(random() % 40);
    table.reserve(static_cast<std::size_t>(count));
    for (std::int32_t rank = 0, id = letters; rank < count; ++rank) {
      const auto pick = [&] {
        return static_cast<std::int32_t>(random() % static_cast<unsigned>(id));
      };
      const std::pair pair(pick(), pick());
      // Sometimes two pairs give the same token, as "a"+"bc" and "ab"+"c" do.
      const Merge merge{rank, random() % 4 == 0 ? pick() : id++};
      const bool is_new = rules.emplace(pair, merge).second;
      ASSERT_EQ(table.insert(pair.first, pair.second, merge), is_new);
    }
    std::vector<std::int32_t> ids(random() % (round % 10 == 0 ? 400 : 60));
    for (auto& id : ids) id = static_cast<std::int32_t>(random() % static_cast<unsigned>(letters));
    const auto expected = merge_naively(rules, ids);
    ids.resize(merge_pairs(table, ids));
    ASSERT_EQ(ids, expected) << "round " << round;
  }
}

TEST(Bpe, HostileMegabytePieceTakesNoQuadraticTime) {
  // One piece of a million letters whose merges cascade: a, aa, aaaa, …
  std::vector<std::pair<std::string, std::string>> merges;
  for (std::string half = "a"; half.size() <= 1024; half += half) merges.emplace_back(half, half);
  const Tokenizer tokenizer = Tokenizer::parse(testing::toy_json({}, merges).dump());
  const std::string text(1'000'003, 'a');
  const auto begin = std::chrono::steady_clock::now();
  const auto ids = tokenizer.encode(text);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  EXPECT_EQ(tokenizer.decode(ids), text);
  EXPECT_EQ(ids.size(), 1'000'003 / 2048 + 4);  // the rest, 579, has four bits
  EXPECT_LT(seconds.count(), 20);               // a quadratic loop takes hours
}

}  // namespace
}  // namespace quatrain

// SPDX-License-Identifier: Apache-2.0
// Token ids against another implementation, added tokens, round trips.
#include "tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>

#include "core/file.h"
#include "tokenizer/toy_tokenizer.h"

namespace quatrain {
namespace {

using testing::Json;
using Ids = std::vector<std::int32_t>;

const Tokenizer& storyteller() {
  static const Tokenizer tokenizer = Tokenizer::load(testing::storyteller_folder());
  return tokenizer;
}

Json golden() {
  return Json::parse(
      read_text_file(std::string(QUATRAIN_SOURCE_DIR) + "/tests/tokenizer/golden.json", 1 << 24));
}

TEST(Tokenizer, GoldenIds) {
  const Json cases = golden();
  for (const char* part : {"validation", "strings"}) {
    ASSERT_GT(cases[part].size(), 100u);
    for (const auto& entry : cases[part]) {
      const auto text = entry[0].get<std::string>();
      const Ids ids = storyteller().encode(text);
      EXPECT_EQ(ids, entry[1].get<Ids>()) << ::testing::PrintToString(text);
      EXPECT_EQ(storyteller().decode(ids), text);
    }
  }
}

TEST(Tokenizer, GoldenPromptsBeginWithBos) {
  ASSERT_TRUE(storyteller().add_bos());
  const Json cases = golden();
  ASSERT_EQ(cases["greedy"].size(), 10u);
  for (const auto& entry : cases["greedy"]) {
    Ids ids = {storyteller().bos_id().value()};
    storyteller().encode_to(entry[0].get<std::string>(), AddedTokens::kMatch, ids);
    EXPECT_EQ(ids, entry[1].get<Ids>());
  }
}

// `validation_ids` of golden.safetensors: each paragraph with its blank line by itself, then EOS.
TEST(Tokenizer, ValidationIds) {
  const char* folder = std::getenv("QUATRAIN_STORYTELLER_BF16");
  const char* corpus = std::getenv("QUATRAIN_CORPUS_VALIDATION");
  if (folder == nullptr || corpus == nullptr)
    GTEST_SKIP() << "QUATRAIN_STORYTELLER_BF16 and QUATRAIN_CORPUS_VALIDATION are not set";
  const std::string file = read_text_file(std::string(folder) + "/golden.safetensors", 1 << 24);
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), 8);
  const Json entry = Json::parse(file.substr(8, header_bytes))["validation_ids"];
  const auto offsets = entry["data_offsets"].get<std::vector<std::size_t>>();
  const std::size_t item = entry["dtype"] == "I64" ? 8 : 4;
  Ids expected;
  for (std::size_t i = offsets[0]; i < offsets[1]; i += item) {
    std::int32_t id = 0;  // little-endian: the low half of an I64
    std::memcpy(&id, file.data() + 8 + header_bytes + i, 4);
    expected.push_back(id);
  }
  std::string text = read_text_file(corpus, 1 << 24);
  text.erase(text.find_last_not_of(" \t\r\n") + 1);
  text.erase(0, text.find_first_not_of(" \t\r\n"));
  Ids ids;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find("\n\n", begin), text.size());
    storyteller().encode_to(text.substr(begin, end - begin) + "\n\n", AddedTokens::kMatch, ids);
    begin = end + 2;
  }
  ids.push_back(storyteller().eos_id().value());
  ASSERT_EQ(ids.size(), expected.size());
  EXPECT_TRUE(ids == expected);
}

TEST(Tokenizer, Trap54AddedTokensAreCutOutOfTheRawText) {
  const Tokenizer tokenizer = Tokenizer::parse(
      testing::toy_json({"<think>", "<thinking>", "ink", " x"}, {{" ", "<"}, {"n", "k"}}).dump());
  const std::int32_t first = tokenizer.id_of("a").value() - 'a';  // the id of byte 0
  const auto byte = [first](char c) { return first + c; };
  // The space would stick to "<" if the pre-tokenizer and the merges came first.
  EXPECT_EQ(tokenizer.encode(" <think>"), (Ids{byte(' '), 0}));
  EXPECT_EQ(tokenizer.encode("<thinking>"), (Ids{1}));  // the longest at a place
  EXPECT_EQ(tokenizer.encode("<<think>"), (Ids{byte('<'), 0}));
  EXPECT_EQ(tokenizer.encode("think"), (Ids{byte('t'), byte('h'), 2}));  // inside a word
  EXPECT_EQ(tokenizer.encode("a x"), (Ids{byte('a'), 3}));               // with a space of its own
  EXPECT_EQ(tokenizer.encode("a  b <think>"),  // the space after b is at the end of its text
            (Ids{byte('a'), byte(' '), byte(' '), byte('b'), byte(' '), 0}));
}

TEST(Tokenizer, LongestAddedTokenAtEachPositionLikeASearch) {
  std::mt19937 random(5);
  for (int round = 0; round < 300; ++round) {
    std::vector<std::string> added;
    for (int i = 0; i < 12; ++i) {
      std::string text;
      for (auto n = 2 + random() % 4; n > 0; --n) text += "ab<"[random() % 3];
      if (std::find(added.begin(), added.end(), text) == added.end()) added.push_back(text);
    }
    const Tokenizer tokenizer = Tokenizer::parse(testing::toy_json(added, {}).dump());
    std::string text;
    for (int i = 0; i < 60; ++i) text += "ab<c"[random() % 4];
    Ids expected;
    for (std::size_t i = 0; i < text.size();) {
      std::size_t best = 0;
      std::int32_t id = tokenizer.id_of("c").value() - 'c' + text[i];
      for (std::size_t t = 0; t < added.size(); ++t)
        if (added[t].size() > best && text.compare(i, added[t].size(), added[t]) == 0)
          best = added[t].size(), id = static_cast<std::int32_t>(t);
      expected.push_back(id);
      i += std::max<std::size_t>(best, 1);
    }
    ASSERT_EQ(tokenizer.encode(text), expected) << text;
  }
}

TEST(Tokenizer, ControlTokensInUserTextStayText) {
  const std::string text = "<｜User｜>hi<think></think>｜DSML｜<｜end▁of▁sentence｜>";
  const Ids ids = storyteller().encode(text, AddedTokens::kText);
  EXPECT_EQ(storyteller().decode(ids), text);
  for (const std::int32_t id : ids) EXPECT_FALSE(storyteller().is_special(id)) << id;
  EXPECT_EQ(storyteller().encode(text).front(), 3);
}

TEST(Tokenizer, AnyBytesRoundTrip) {
  std::mt19937 random(9);
  for (int i = 0; i < 5000; ++i) {
    std::string text = i % 2 ? testing::random_text(random, 40) : "";
    for (auto n = random() % 20; n > 0; --n) text += static_cast<char>(random());
    for (const AddedTokens added : {AddedTokens::kMatch, AddedTokens::kText})
      ASSERT_EQ(storyteller().decode(storyteller().encode(text, added)), text);
  }
}

TEST(Tokenizer, Properties) {
  const Tokenizer& t = storyteller();
  EXPECT_EQ(t.vocab_size(), 4096);
  EXPECT_EQ(t.bos_id(), 0);
  EXPECT_EQ(t.eos_id(), 1);
  EXPECT_EQ(t.id_of("<think>"), 5);
  EXPECT_EQ(t.added_id_of("<think>"), 5);
  EXPECT_EQ(t.id_of("<｜latest_reminder｜>"), std::nullopt);
  EXPECT_EQ(t.token(t.id_of(" the").value()), " the");
  EXPECT_EQ(t.added_id_of(" the"), std::nullopt);
  EXPECT_TRUE(t.is_special(7));
  EXPECT_FALSE(t.is_special(8));
  for (const std::int32_t id : {-1, 4096, 1 << 30, -(1 << 30)}) {
    EXPECT_FALSE(t.has_token(id));
    EXPECT_EQ(t.token(id), "");
    EXPECT_FALSE(t.is_special(id));
  }
  EXPECT_EQ(t.decode(Ids{0, 5, 6}, true), "");
  EXPECT_EQ(t.encode(""), Ids());
}

TEST(Tokenizer, Trap58OnlyEosStops) {
  const std::vector<std::string> added = {std::string(kBosToken), std::string(kEosToken), "<|EOT|>",
                                          "<｜User｜>", "<｜Assistant｜>"};
  Tokenizer tokenizer = Tokenizer::parse(testing::toy_json(added, {}).dump());
  EXPECT_EQ(tokenizer.bos_id(), 0);
  EXPECT_EQ(tokenizer.eos_id(), 1);
  tokenizer.set_eos_id(2);
  EXPECT_EQ(tokenizer.eos_id(), 2);
  Tokenizer without = Tokenizer::parse(testing::toy_json({"<|EOT|>"}, {}).dump());
  EXPECT_EQ(without.eos_id(), std::nullopt);
}

}  // namespace
}  // namespace quatrain

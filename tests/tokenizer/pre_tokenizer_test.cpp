// SPDX-License-Identifier: Apache-2.0
// The written pre-tokenizer against its regular expressions in PCRE2, and known pieces.
#include "tokenizer/pre_tokenizer.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "core/file.h"
#include "tokenizer/pcre2_splitter.h"
#include "tokenizer/toy_tokenizer.h"

namespace quatrain {
namespace {

using Pieces = std::vector<std::string_view>;

Pieces split(std::string_view text) {
  Pieces pieces;
  PreTokenizer tokenizer(text);
  for (std::string_view piece; tokenizer.next(piece);) pieces.push_back(piece);
  return pieces;
}

void expect_like_pcre2(std::string_view text) {
  const Pieces found = split(text), expected = testing::split_by_pcre2(text);
  if (found == expected) return;
  std::size_t i = 0;
  while (i < found.size() && i < expected.size() && found[i] == expected[i]) ++i;
  FAIL() << "piece " << i << ": expected "
         << ::testing::PrintToString(i < expected.size() ? expected[i] : "") << ", found "
         << ::testing::PrintToString(i < found.size() ? found[i] : "");
}

// The borders are those of the published token ids of these texts under DeepSeek's vocabulary.
TEST(PreTokenizer, Trap54KnownPieces) {
  EXPECT_EQ(split("hello world  "), (Pieces{"hello", " world", "  "}));
  EXPECT_EQ(split("  \n  \n  "), (Pieces{"  \n  \n", "  "}));
  EXPECT_EQ(split(" \n "), (Pieces{" \n", " "}));
  EXPECT_EQ(split("a  b   c"), (Pieces{"a", " ", " b", "  ", " c"}));
  EXPECT_EQ(split("   leading"), (Pieces{"  ", " leading"}));
  EXPECT_EQ(split("spaces   "), (Pieces{"spaces", "   "}));
  EXPECT_EQ(split("1234567890"), (Pieces{"123", "456", "789", "0"}));
  EXPECT_EQ(split("99 bottles, 100"), (Pieces{"99", " bottles", ",", " ", "100"}));
  EXPECT_EQ(split("foo(bar, baz)"), (Pieces{"foo", "(bar", ",", " baz", ")"}));
  EXPECT_EQ(split("中文123英文"), (Pieces{"中文", "123", "英文"}));
  EXPECT_EQ(split("world你好"), (Pieces{"world", "你好"}));
  EXPECT_EQ(split("\u00a0nbsp"), (Pieces{"\u00a0nbsp"}));
  EXPECT_EQ(split("line1\n\nline2"), (Pieces{"line", "1", "\n\n", "line", "2"}));
  EXPECT_EQ(split("x);\n\ny"), (Pieces{"x", ");\n\n", "y"}));
  EXPECT_EQ(split(std::string_view("\0\1\2a", 4)),
            (Pieces{std::string_view("\0\1", 2), std::string_view("\2a", 2)}));
}

TEST(PreTokenizer, Trap54OneSpaceIsGivenBackOnlyBeforeAWord) {
  EXPECT_EQ(split("a    b"), (Pieces{"a", "   ", " b"}));
  EXPECT_EQ(split("a    "), (Pieces{"a", "    "}));
  EXPECT_EQ(split("a    1"), (Pieces{"a", "    ", "1"}));  // the digit is another piece already
  EXPECT_EQ(split("a\t\tb"), (Pieces{"a", "\t", "\tb"}));
  EXPECT_EQ(split(" \u3000\u2003x"), (Pieces{" \u3000", "\u2003x"}));
}

TEST(PreTokenizer, RandomTextsLikePcre2) {
  std::mt19937 random(20240601);
  for (int i = 0; i < 100000; ++i) {
    const std::string text = testing::random_text(random, 32);
    ASSERT_NO_FATAL_FAILURE(expect_like_pcre2(text)) << ::testing::PrintToString(text);
  }
}

TEST(PreTokenizer, MegabyteLikePcre2) {
  std::mt19937 random(7);
  const std::string_view prose[] = {"The quick brown fox, \"jumps\" over 12 lazy dogs.\n\n",
                                    "    if (x == 0x1F) {\r\n\treturn;\r\n",
                                    "東京タワーは333メートルです。",
                                    "Привет, мир! ",
                                    "naïve café ",
                                    "🙂👍🏽 ",
                                    "state-of-the-art's "};
  std::string text;
  while (text.size() < (1u << 20)) {
    text += prose[random() % std::size(prose)];
    if (random() % 4 == 0) text += testing::random_text(random, 24);
  }
  expect_like_pcre2(text);
}

TEST(PreTokenizer, CorpusLikePcre2) {
  const char* path = std::getenv("QUATRAIN_CORPUS");
  if (path == nullptr) GTEST_SKIP() << "QUATRAIN_CORPUS names no text file";
  expect_like_pcre2(read_text_file(path, std::int64_t{1} << 30));
}

TEST(PreTokenizer, BadBytesAreCharactersOfNoClass) {
  EXPECT_EQ(split("\xFF\xFE"), (Pieces{"\xFF\xFE"}));
  EXPECT_EQ(split("\xFF\xFFword"), (Pieces{"\xFF", "\xFFword"}));
  EXPECT_EQ(split("ab\xE4\xB8"), (Pieces{"ab", "\xE4\xB8"}));  // a character that is cut off
  EXPECT_EQ(split(" \xFF"), (Pieces{" ", "\xFF"}));
  std::mt19937 random(3);
  for (int i = 0; i < 20000; ++i) {
    std::string text;
    for (auto n = random() % 24; n > 0; --n)
      text += random() % 3 ? static_cast<char>(random()) : "a 1\n"[random() % 4];
    std::string joined;
    for (const auto piece : split(text)) {
      ASSERT_FALSE(piece.empty());
      joined += piece;
    }
    ASSERT_EQ(joined, text);
  }
}

}  // namespace
}  // namespace quatrain

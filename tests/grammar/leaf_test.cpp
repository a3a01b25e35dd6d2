// SPDX-License-Identifier: Apache-2.0
// Strings, numbers and fixed texts, against readers of JSON that were written by others.
#include <random>

#include "grammar/grammar_harness.h"
#include "grammar/leaf.h"

namespace quatrain::grammar {
namespace {

using testing::accepts;
using testing::grammar_of;
using testing::Json;

bool is_forbidden(const std::string& text) { return !testing::markup_guard()->allows(text); }

TEST(Strings, AcceptWhatAJsonReaderAccepts) {
  const auto grammar = grammar_of({{"type", "string"}});
  const std::vector<std::string> parts = {
      "a",       "\"",   "\\",      "\\n", "\\u",  "00e9", "d83d", "\\ud83d", "\\udE00",
      "\\u0041", "\xC3", "\xA9",    "é",   "🦉", "\xF0", "\x9F", "\xED",    "\xA0",
      "\xE0",    "\x80", "\xFF",    "\n",  "\x1F", "\x7F", "\\/",  "\\x",     "\xF4",
      "\x90",    "\xC0", "\\ud800", "<",   "｜",   "|",    "DSML", "|DSM",    "L"};
  std::mt19937 random(1);
  int valid = 0;
  for (int i = 0; i < 200'000; ++i) {
    std::string text = "\"";
    for (auto n = random() % 7; n > 0; --n) text += parts[random() % parts.size()];
    if (random() % 8 != 0) text += '"';
    const bool expected = Json::accept(text) && text.ends_with('"') && !is_forbidden(text);
    ASSERT_EQ(accepts(grammar, text), expected) << text;
    valid += expected;
  }
  EXPECT_GT(valid, 10'000);
}

TEST(Strings, CountCodePoints) {
  for (const auto& [min, max] : std::vector<std::pair<int, int>>{{0, 0}, {0, 3}, {2, 2}, {3, 5}}) {
    const auto grammar = grammar_of({{"type", "string"}, {"minLength", min}, {"maxLength", max}});
    const std::vector<std::string> one = {"a", "é", "🦉", "\\n", "\\u00e9", "\\ud83e\\udd89"};
    std::mt19937 random(2);
    for (int i = 0; i < 2000; ++i) {
      const auto n = static_cast<int>(random() % 7);
      std::string text;
      for (int k = 0; k < n; ++k) text += one[random() % one.size()];
      ASSERT_EQ(accepts(grammar, fmt::format("\"{}\"", text)), n >= min && n <= max) << text;
    }
  }
}

TEST(Numbers, AcceptWhatAJsonReaderAccepts) {
  const auto any = grammar_of({{"type", "number"}});
  const auto whole = grammar_of({{"type", "integer"}});
  const std::string alphabet = "0123456789-+.eE";
  std::mt19937 random(3);
  int numbers = 0, integers = 0;
  for (int i = 0; i < 300'000; ++i) {
    std::string text;
    for (auto n = 1 + random() % 6; n > 0; --n) text += alphabet[random() % alphabet.size()];
    const auto e = text.find_first_of("eE");
    const auto digits = e == text.npos ? 0 : text.size() - text.find_first_of("0123456789", e);
    const bool expected = Json::accept(text) && digits <= 2;
    ASSERT_EQ(accepts(any, text), expected) << text;
    const bool is_whole = expected && text.find_first_of(".eE") == text.npos;
    ASSERT_EQ(accepts(whole, text), is_whole) << text;
    numbers += expected, integers += is_whole;
  }
  EXPECT_GT(numbers, 5000);
  EXPECT_GT(integers, 1000);
  EXPECT_TRUE(accepts(whole, "-999999999999999999"));
  EXPECT_FALSE(accepts(whole, "1000000000000000000"));
  EXPECT_TRUE(accepts(any, "0.30000000000000004"));
  EXPECT_TRUE(accepts(any, "-1.2345678901234567e-05"));
}

// Every beginning that is taken can be completed, and every value in the range is taken.
TEST(Numbers, Bounds) {
  std::mt19937 random(4);
  for (int round = 0; round < 300; ++round) {
    const int scale = static_cast<int>(random() % 3);
    const int reach = scale == 0 ? 10 : scale == 1 ? 300 : 100'000;
    const auto pick = [&] { return static_cast<int>(random() % (2u * reach + 1)) - reach; };
    int low = pick(), high = pick();
    if (low > high) std::swap(low, high);
    Json schema = {{"type", "integer"}};
    const bool has_low = random() % 4 != 0, has_high = random() % 4 != 0;
    if (has_low) schema["minimum"] = low;
    if (has_high) schema["exclusiveMaximum"] = high + 1;
    const auto grammar = grammar_of(schema);
    for (int i = 0; i < 300; ++i) {
      const int x = i % 3 == 0 ? pick() : i % 3 == 1 ? low + i % 7 - 3 : high + i % 7 - 3;
      ASSERT_EQ(accepts(grammar, std::to_string(x)),
                (!has_low || x >= low) && (!has_high || x <= high))
          << schema << x;
    }
  }
}

TEST(Numbers, BoundsOfFractions) {
  const auto grammar = grammar_of({{"type", "number"}, {"minimum", 0.1}, {"exclusiveMaximum", 1}});
  for (const char* text : {"0.1", "0.10", "0.5", "0.999999", "0.100001"})
    EXPECT_TRUE(accepts(grammar, text)) << text;
  for (const char* text : {"0", "0.0", "0.09", "1", "1.0", "-0.5", "2", "5e-1", "0.0999999"})
    EXPECT_FALSE(accepts(grammar, text)) << text;
  const auto below = grammar_of({{"type", "number"}, {"maximum", -0.25}});
  for (const char* text : {"-0.25", "-1", "-0.3", "-100000.5", "-0.250000"})
    EXPECT_TRUE(accepts(below, text)) << text;
  for (const char* text : {"0", "-0", "-0.2", "-0.24", "1"})
    EXPECT_FALSE(accepts(below, text)) << text;
  // After any beginning that is taken, some byte may follow or the number may end.
  std::mt19937 random(5);
  for (int round = 0; round < 200; ++round) {
    const double a = static_cast<double>(static_cast<int>(random() % 4001) - 2000) / 128.0;
    const Json schema = {{"type", "number"}, {"minimum", a}, {"maximum", a + 0.0625}};
    const auto narrow = grammar_of(schema);
    std::string text;
    for (;;) {
      std::vector<std::string> longer;
      for (const char c : std::string("-.0123456789eE"))
        if (testing::taken(narrow, text + c) > text.size()) longer.push_back(text + c);
      const bool ends = accepts(narrow, text);
      ASSERT_TRUE(ends || !longer.empty()) << schema << text;
      if (longer.empty() || (ends && random() % 4 == 0)) break;
      text = longer[random() % longer.size()];
    }
    const double x = Json::parse(text).get<double>();
    ASSERT_TRUE(x >= a && x <= a + 0.0625) << schema << text;
  }
}

TEST(Texts, AreTakenWhole) {
  const auto grammar = grammar_of({{"enum", {"red", "reddish", 1, 12, nullptr, true, 1.5}}});
  for (const char* text : {"\"red\"", "\"reddish\"", "1", "12", "null", "true", "1.5"})
    EXPECT_TRUE(accepts(grammar, text)) << text;
  for (const char* text : {"\"redd\"", "2", "123", "nul", "false", "\"\"", "red", " 1", "1 "})
    EXPECT_FALSE(accepts(grammar, text)) << text;
}

TEST(Guard, FindsWhatASearchFinds) {
  const std::vector<std::string> texts = {"abc", "bd", "cab", "aa"};
  const TextGuard guard(texts);
  std::mt19937 random(6);
  for (int i = 0; i < 20'000; ++i) {
    std::string text;
    for (auto n = random() % 10; n > 0; --n) text += static_cast<char>('a' + random() % 4);
    const bool found = std::ranges::any_of(
        texts, [&](const std::string& t) { return text.find(t) != std::string::npos; });
    ASSERT_EQ(guard.allows(text), !found) << text;
  }
}

}  // namespace
}  // namespace quatrain::grammar

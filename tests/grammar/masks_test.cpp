// SPDX-License-Identifier: Apache-2.0
// Masks of tokens: the same as asking the automaton for every token, and texts made of tokens.
#include <algorithm>

#include "grammar/random_schema.h"
#include "tokenizer/tokenizer.h"

namespace quatrain::grammar {
namespace {

using testing::Json;

constexpr std::int32_t kEnd = 0;

// Tokens like those of a tokenizer: all bytes, and random pieces of JSON.
std::shared_ptr<const Vocabulary> toy_vocabulary(std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::string> tokens = {"", "", std::string(1, kControlByte) + "｜DSML｜"};
  for (int b = 0; b < 256; ++b) tokens.emplace_back(1, static_cast<char>(b));
  const std::string pieces[] = {"\"", "a",    "b",  "é",    "\xF0\x9F", "{",  "}", ", ",
                                ":",  "\n",   "  ", "1",    ".5",       "\\", "n", "u00",
                                "|",  "DSML", "<",  "true", "null",     "]",  "["};
  for (int i = 0; i < 1500; ++i) {
    std::string token;
    for (auto n = 1 + random() % 5; n > 0; --n) token += pieces[random() % std::size(pieces)];
    tokens.push_back(token);
  }
  tokens.push_back(std::string(30, 'a'));
  return std::make_shared<Vocabulary>(tokens, kEnd, *testing::markup_guard());
}

std::shared_ptr<const Vocabulary> storyteller_vocabulary() {
  const Tokenizer tokenizer =
      Tokenizer::load(std::string(QUATRAIN_SOURCE_DIR) + "/models/storyteller-nvfp4");
  std::vector<std::string> tokens;
  for (std::int32_t id = 0; id < tokenizer.vocab_size(); ++id)
    tokens.emplace_back(tokenizer.is_special(id) ? "" : tokenizer.token(id));
  return std::make_shared<Vocabulary>(tokens, tokenizer.eos_id(), *testing::markup_guard());
}

bool has(std::span<const std::uint32_t> mask, std::int32_t id) {
  return (mask[static_cast<std::size_t>(id) / 32] >> (id % 32) & 1) != 0;
}

std::vector<std::int32_t> ids_in(std::span<const std::uint32_t> mask, std::int32_t size) {
  std::vector<std::int32_t> ids;
  for (std::int32_t id = 0; id < size; ++id)
    if (has(mask, id)) ids.push_back(id);
  return ids;
}

// Writes a text token by token; ending ones are taken more often than they come.
template <class Check>
std::string write(TokenMatcher& matcher, std::mt19937& random, const Check& check) {
  std::string text;
  const Vocabulary& vocabulary = matcher.vocabulary();
  for (int i = 0; i < 5000; ++i) {
    const auto mask = matcher.allowed();
    check(mask, text);
    const std::vector<std::int32_t> ids = ids_in(mask, vocabulary.size());
    if (ids.empty()) {
      ADD_FAILURE() << "no token may follow " << text;
      return text;
    }
    std::int32_t id = ids[random() % ids.size()];
    if (random() % 3 != 0)
      for (const std::int32_t other : ids)
        if (vocabulary.token(other).find_first_of("\"}]") != std::string_view::npos &&
            random() % 8 == 0)
          id = other;
    if (vocabulary.end() && has(mask, *vocabulary.end()) && random() % 2 == 0)
      id = *vocabulary.end();
    matcher.advance(id);
    if (id == vocabulary.end()) return text;
    text += vocabulary.token(id);
  }
  ADD_FAILURE() << "no end after " << text.size() << " bytes";
  return text;
}

TEST(Masks, AreWhatTheAutomatonSaysOfEachToken) {
  std::mt19937 random(1);
  const auto vocabulary = toy_vocabulary(1);
  std::int64_t compared = 0;
  for (std::uint32_t seed = 0; seed < 60; ++seed) {
    testing::RandomSchema schema(seed);
    const auto grammar =
        seed % 4 == 0 ? testing::object_grammar() : testing::grammar_of(schema.root());
    TokenMatcher matcher(grammar, vocabulary);
    int left = 25;
    write(matcher, random, [&](std::span<const std::uint32_t> mask, const std::string& text) {
      if (left-- <= 0) return;
      Automaton automaton(grammar);
      std::vector<Automaton::Thread> threads, next;
      automaton.start(threads);
      for (const char c : text) {
        next.clear();
        automaton.step(threads, static_cast<std::uint8_t>(c), next);
        threads.swap(next);
      }
      EXPECT_EQ(has(mask, kEnd), testing::accepts(grammar, text)) << text;
      const std::size_t cells = automaton.cells();
      for (std::int32_t id = 1; id < vocabulary->size(); ++id, ++compared) {
        std::vector<Automaton::Thread> at = threads;
        for (const char c : vocabulary->token(id)) {
          next.clear();
          automaton.step(at, static_cast<std::uint8_t>(c), next);
          at.swap(next);
        }
        automaton.forget(cells);
        const bool expected = !vocabulary->token(id).empty() && !at.empty();
        ASSERT_EQ(has(mask, id), expected) << text << " + " << vocabulary->token(id);
      }
    });
  }
  EXPECT_GT(compared, 200'000);
}

TEST(Masks, RandomTokensOfStorytellerWriteValidDocuments) {
  std::mt19937 random(2);
  const auto vocabulary = storyteller_vocabulary();
  for (std::uint32_t seed = 0; seed < 250; ++seed) {
    testing::RandomSchema schema(seed + 2000);
    const bool any = seed % 5 == 0;
    TokenMatcher matcher(any ? testing::object_grammar() : testing::grammar_of(schema.root()),
                         vocabulary);
    const std::string text = write(matcher, random, [](auto&&...) {});
    ASSERT_TRUE(Json::accept(text)) << schema.root() << text;
    const Json document = Json::parse(text);
    ASSERT_TRUE(any ? document.is_object() : testing::is_valid(document, schema.root()))
        << schema.root() << text;
  }
}

TEST(Masks, EndAndRefusedTokens) {
  const auto vocabulary = toy_vocabulary(1);
  TokenMatcher matcher(testing::grammar_of({{"const", 7}}), vocabulary);
  const std::int32_t seven = 3 + '7';
  EXPECT_EQ(ids_in(matcher.allowed(), vocabulary->size()), std::vector<std::int32_t>{seven});
  matcher.advance(seven);
  EXPECT_TRUE(matcher.may_end());
  EXPECT_EQ(ids_in(matcher.allowed(), vocabulary->size()), std::vector<std::int32_t>{kEnd});
  matcher.advance(kEnd);
  EXPECT_TRUE(ids_in(matcher.allowed(), vocabulary->size()).empty());
  for (const std::int32_t id : {seven + 1, 1, -5, 1 << 20}) {
    TokenMatcher refusing(testing::grammar_of({{"const", 7}}), vocabulary);
    refusing.advance(id);
    EXPECT_TRUE(ids_in(refusing.allowed(), vocabulary->size()).empty()) << id;
  }
}

TEST(Masks, ControlTokensComeOnlyWhereTheGrammarNamesThem) {
  const auto vocabulary = toy_vocabulary(1);
  constexpr std::int32_t kMarkerId = 2;
  GrammarBuilder builder(testing::markup_guard());
  const std::vector<Tool> tools = {{"f", R"({"properties": {"s": {"type": "string"}}})", "tools"}};
  builder.add_calls(tools, vocabulary->token(kMarkerId), 1);
  TokenMatcher matcher(builder.build(), vocabulary);
  const auto spell = [&](std::string_view text) {
    for (const char c : text) {
      EXPECT_TRUE(has(matcher.allowed(), 3 + static_cast<unsigned char>(c))) << c;
      EXPECT_FALSE(has(matcher.allowed(), kMarkerId)) << c;
      matcher.advance(3 + static_cast<unsigned char>(c));
    }
  };
  const auto mark = [&](bool in_text = false) {
    EXPECT_TRUE(has(matcher.allowed(), kMarkerId));
    EXPECT_EQ(has(matcher.allowed(), 3 + 0xEF), in_text);
    EXPECT_FALSE(has(matcher.allowed(), 3 + 0xFF));
    matcher.advance(kMarkerId);
  };
  spell("\n\n<"), mark(), spell("tool_calls>\n<"), mark(), spell("invoke name=\"f\">\n<"), mark();
  spell("parameter name=\"s\" string=\"true\">a < b"), spell("</"), mark(true);
  spell("parameter>\n</"), mark(), spell("invoke>\n</"), mark(), spell("tool_calls>");
  EXPECT_TRUE(matcher.may_end());
}

}  // namespace
}  // namespace quatrain::grammar

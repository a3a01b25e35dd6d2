// SPDX-License-Identifier: Apache-2.0
// Streaming output: characters are never cut, stop strings never shown.
#include <gtest/gtest.h>

#include <random>

#include "core/error.h"
#include "tokenizer/stop_matcher.h"
#include "tokenizer/stream_decoder.h"
#include "tokenizer/toy_tokenizer.h"
#include "tokenizer/unicode.h"

namespace quatrain {
namespace {

const Tokenizer& bytes_only() {
  static const Tokenizer tokenizer =
      Tokenizer::parse(testing::toy_json({"<think>", "</think>", "｜DSML｜"}, {}).dump());
  return tokenizer;
}

bool is_valid_utf8(std::string_view text) {
  while (!text.empty()) {
    const Utf8Char c = decode_utf8(text);
    if (c.status != Utf8Char::Status::kValid) return false;
    text.remove_prefix(c.size);
  }
  return true;
}

TEST(StreamDecoder, Trap56CharactersOverSeveralTokensAppearWhole) {
  StreamDecoder decoder(bytes_only());
  std::vector<std::string> parts;
  for (const std::int32_t id : bytes_only().encode("a🙂é</think>"))
    parts.push_back(decoder.feed(id));
  EXPECT_EQ(parts, (std::vector<std::string>{"a", "", "", "", "🙂", "", "é", "</think>"}));
  EXPECT_EQ(decoder.finish(), "");
}

TEST(StreamDecoder, Trap56SpecialTokensAreKeptUnlessSkipped) {
  const std::string text = "r</think>\n\n<｜DSML｜tool_calls>";
  for (const bool skip : {false, true}) {
    StreamDecoder decoder(bytes_only(), skip);
    std::string out;
    for (const std::int32_t id : bytes_only().encode(text)) out += decoder.feed(id);
    EXPECT_EQ(out + decoder.finish(), skip ? "r\n\n<tool_calls>" : text);
  }
}

TEST(StreamDecoder, Trap56RandomTextIsValidAtEveryStep) {
  std::mt19937 random(2);
  for (int i = 0; i < 3000; ++i) {
    const std::string text = testing::random_text(random, 30);
    StreamDecoder decoder(bytes_only());
    std::string out;
    for (const std::int32_t id : bytes_only().encode(text)) {
      const std::string part = decoder.feed(id);
      ASSERT_TRUE(is_valid_utf8(part));
      out += part;
    }
    ASSERT_EQ(out + decoder.finish(), text);
  }
}

TEST(StreamDecoder, BadBytesBecomeReplacementCharacters) {
  const auto stream = [](std::string_view bytes) {
    StreamDecoder decoder(bytes_only());
    std::string out;
    for (const std::int32_t id : bytes_only().encode(bytes)) out += decoder.feed(id);
    return out + "|" + decoder.finish();
  };
  EXPECT_EQ(stream("a\xE2\x82"), "a|\uFFFD");
  EXPECT_EQ(stream("\xE2\x82z"), "\uFFFDz|");
  EXPECT_EQ(stream("\x80\xFF"), "\uFFFD\uFFFD|");
  EXPECT_EQ(stream("\xF0\x9F\xF0\x9F\x99\x82"), "\uFFFD🙂|");
  StreamDecoder decoder(bytes_only());
  EXPECT_EQ(decoder.feed(-5) + decoder.feed(1 << 20) + decoder.finish(), "");
}

// The definition: the first end of a stop string, there the longest; held back is the longest end
// of the text that begins a stop string.
struct Expected {
  std::string shown;
  std::size_t held = 0;
  int stop = -1;
};

Expected search(const std::vector<std::string>& stops, const std::string& text, bool include) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    Expected e;
    std::size_t longest = 0;
    for (std::size_t s = 0; s < stops.size(); ++s)
      if (stops[s].size() > longest && text.substr(0, end).ends_with(stops[s]))
        longest = stops[s].size(), e.stop = static_cast<int>(s);
    if (e.stop >= 0) {
      e.shown = text.substr(0, include ? end : end - longest);
      return e;
    }
  }
  Expected e;
  for (const std::string& stop : stops)
    for (std::size_t n = 1; n < stop.size(); ++n)
      if (n > e.held && text.ends_with(stop.substr(0, n))) e.held = n;
  e.shown = text.substr(0, text.size() - e.held);
  return e;
}

TEST(StopMatcher, RandomTextsLikeASearchHoweverCut) {
  std::mt19937 random(4);
  const auto word = [&](unsigned low, unsigned high) {
    std::string out;
    for (auto n = low + random() % (high - low + 1); n > 0; --n) out += "ab"[random() % 2];
    return out;
  };
  for (int i = 0; i < 30000; ++i) {
    std::vector<std::string> stops;
    for (auto n = random() % 4; n > 0; --n) stops.push_back(word(1, 6));
    const bool include = random() % 2;
    StopMatcher matcher(stops, include);
    std::string text, shown;
    for (auto n = random() % 8; n > 0; --n) {
      const std::string part = word(0, 4);
      text += part;
      shown += matcher.feed(part);
      const Expected e = search(stops, text, include);
      ASSERT_EQ(shown, e.shown) << text;
      ASSERT_EQ(matcher.stop_index(), e.stop) << text;
    }
    const bool stopped = matcher.stopped();
    shown += matcher.finish();
    if (!stopped) {
      ASSERT_EQ(shown, text);
    }
  }
}

TEST(StopMatcher, Cases) {
  StopMatcher matcher({"\n\nUser:", "###"});
  EXPECT_EQ(matcher.feed("Hi.\n"), "Hi.");
  EXPECT_EQ(matcher.feed("\nUse"), "");
  EXPECT_EQ(matcher.feed("ful"), "\n\nUseful");
  EXPECT_EQ(matcher.feed(" ##"), " ");
  EXPECT_EQ(matcher.feed("# more"), "");
  EXPECT_TRUE(matcher.stopped());
  EXPECT_EQ(matcher.stop_index(), 1);
  EXPECT_EQ(matcher.feed("x"), "");
  EXPECT_EQ(matcher.finish(), "");
  EXPECT_THROW(StopMatcher({"a", ""}), Error);
  StopMatcher none({});
  EXPECT_EQ(none.feed("abc"), "abc");
}

}  // namespace
}  // namespace quatrain

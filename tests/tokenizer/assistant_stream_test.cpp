// SPDX-License-Identifier: Apache-2.0
// Answers cut into pieces at every place: the result never changes, and markup is never seen.
#include "tokenizer/assistant_stream.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "tokenizer/assistant_parser.h"
#include "tokenizer/reference_assistant.h"

namespace quatrain {
namespace {

std::string flat(const std::string& reasoning, const std::string& content,
                 const std::vector<ToolCall>& calls) {
  std::string out = reasoning + "\x01" + content + "\x01";
  for (const ToolCall& call : calls) out += call.name + "\x02" + call.arguments + "\x03";
  return out;
}

class Collector {
 public:
  explicit Collector(ThinkingMode mode) : stream_(mode) {}
  void feed(std::string_view piece) { add(stream_.feed(piece)); }
  std::string finish() {
    add(stream_.finish());
    return flat(reasoning_, content_, calls_);
  }
  const std::string& content() const { return content_; }

 private:
  void add(AssistantDelta&& delta) {
    reasoning_ += delta.reasoning;
    content_ += delta.content;
    for (auto& call : delta.tool_calls) calls_.push_back(std::move(call));
  }
  AssistantStream stream_;
  std::string reasoning_, content_;
  std::vector<ToolCall> calls_;
};

std::string expected(std::string_view text, ThinkingMode mode) {
  const auto turn = testing::reference::parse_assistant(text, mode);
  return flat(turn.reasoning, turn.content, turn.tool_calls);
}

// An answer as the model writes it, sometimes with the faults that models make.
class Transcripts {
 public:
  explicit Transcripts(unsigned seed) : random_(seed) {}

  std::string next(ThinkingMode mode) {
    std::string text;
    if (mode == ThinkingMode::kThinking) {
      if (chance(8)) text += "<think>";
      text += prose();
      if (chance(8)) text += block() + prose();
      if (!chance(8)) text += "</think>";
    }
    text += prose();
    if (chance(2)) text += block();
    if (chance(12)) text += prose();
    if (!chance(4)) text += "<｜end▁of▁sentence｜>";
    if (chance(16)) text += prose();
    if (chance(10)) {
      std::size_t at = random_() % (text.size() + 1);
      const auto marker = text.rfind("DSML", at);  // one token: nothing comes between its bytes
      if (marker != text.npos && at < marker + 8) at = std::min(marker + 8, text.size());
      const bool is_before = text.substr(at).find("DSML") < 4;
      if (!is_before) text.insert(at, pick(kNoise));
    }
    if (chance(6)) text.resize(random_() % (text.size() + 1));
    return text;
  }

 private:
  bool chance(unsigned one_in) { return random_() % one_in == 0; }
  template <std::size_t N>
  std::string pick(const std::string_view (&list)[N]) {
    return std::string(list[random_() % N]);
  }

  std::string prose() {
    static constexpr std::string_view kWords[] = {"the owl", " a < b", "\n", "\n\n", "π ≈ 3.14",
                                                  "|x|",     " <|",    "</", "<b>",  "🦉",
                                                  " > ",     "｜",     "<"};
    std::string text;
    for (auto n = random_() % 8; n > 0; --n) text += pick(kWords);
    return text;
  }

  std::string block() {
    const bool ascii = chance(6), spaces = chance(6);
    const std::string bar = ascii ? "|DSML|" : "｜DSML｜", gap = spaces ? " " : "";
    const auto open = [&](std::string_view name) {
      return fmt::format("<{}{}{}{}", gap, bar, gap, name);
    };
    const auto close = [&](std::string_view name) {
      return chance(15) ? std::string() : fmt::format("<{}/{}{}{}>", gap, gap, bar, name);
    };
    std::string text = "\n\n" + (chance(10) ? std::string() : open("tool_calls>\n"));
    for (auto calls = random_() % 4; calls > 0; --calls) {
      text += open(fmt::format("invoke name=\"f{}\">\n", random_() % 10));
      for (auto n = random_() % 4; n > 0; --n) {
        const bool is_string = chance(2);
        text += open(fmt::format("parameter name=\"k{}\"", random_() % 3));
        if (!chance(6)) text += is_string ? " string=\"true\"" : " string=\"false\"";
        text += ">" + (is_string ? prose() : pick(kValues)) + close("parameter") + "\n";
      }
      text += close("invoke") + "\n";
    }
    return text + close("tool_calls");
  }

  static constexpr std::string_view kValues[] = {"1",    "[1, {\"a\": null}]", "\"s\"", "oops",
                                                 "true", "{\"π\": 1e3}",       ""};
  static constexpr std::string_view kNoise[] = {"<",
                                                "</think>",
                                                "<｜DSML｜",
                                                "<|DSML|x y=\"",
                                                "</｜DSML｜invoke>",
                                                "\"",
                                                ">",
                                                "<think>",
                                                "<｜end▁of▁sentence｜>",
                                                "</｜DSML｜parameter>",
                                                "<        ｜DSML｜invoke>"};
  std::mt19937 random_;
};

constexpr ThinkingMode kModes[] = {ThinkingMode::kChat, ThinkingMode::kThinking};

TEST(AssistantStream, EveryCutOfGeneratedTranscripts) {
  Transcripts transcripts(1);
  std::size_t with_calls = 0;
  for (int i = 0; i < 400; ++i) {
    const ThinkingMode mode = kModes[i % 2];
    const std::string text = transcripts.next(mode);
    const std::string wanted = expected(text, mode);
    with_calls += wanted.back() == '\x03';
    Collector bytes(mode);
    for (const char& c : text) bytes.feed(std::string_view(&c, 1));
    ASSERT_EQ(bytes.finish(), wanted) << text;
    for (std::size_t cut = 0; cut <= text.size(); ++cut) {
      Collector halves(mode);
      halves.feed(std::string_view(text).substr(0, cut));
      halves.feed(std::string_view(text).substr(cut));
      ASSERT_EQ(halves.finish(), wanted) << "cut at " << cut << " of " << text;
    }
  }
  EXPECT_GT(with_calls, 60u);
}

// QUATRAIN_CHUNKINGS sets how many; the long run is 1,000,000.
TEST(AssistantStream, RandomChunkingsLeakNothing) {
  const char* wanted_runs = std::getenv("QUATRAIN_CHUNKINGS");
  const int runs = wanted_runs != nullptr ? std::atoi(wanted_runs) : 20000;
  Transcripts transcripts(2);
  std::mt19937 random(3);
  for (int i = 0; i < runs; ++i) {
    const ThinkingMode mode = kModes[random() % 2];
    const std::string text = transcripts.next(mode);
    const std::size_t longest = 1 + random() % 24;
    Collector collector(mode);
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t size = 1 + random() % longest;
      collector.feed(std::string_view(text).substr(at, size));
      at += size;
    }
    ASSERT_EQ(collector.finish(), expected(text, mode)) << text;
    ASSERT_EQ(testing::reference::find_markup(collector.content()), std::string::npos) << text;
  }
}

TEST(AssistantStream, TextIsHandedOutAtOnce) {
  AssistantStream stream(ThinkingMode::kThinking);
  EXPECT_TRUE(stream.in_reasoning());
  EXPECT_EQ(stream.feed("Let me think").reasoning, "Let me think");
  EXPECT_EQ(stream.feed(": 1 < 2").reasoning, ": 1 < 2");
  EXPECT_EQ(stream.feed("</thi").reasoning, "");
  EXPECT_EQ(stream.feed("nk>Yes").content, "Yes");
  EXPECT_FALSE(stream.in_reasoning());
  EXPECT_EQ(stream.feed(".\n\n<｜DSML｜tool_calls>\n").content, ".");
  EXPECT_TRUE(stream.feed("<｜DSML｜invoke name=\"f\">").tool_calls.empty());
  const auto delta = stream.feed("</｜DSML｜invoke>");
  ASSERT_EQ(delta.tool_calls.size(), 1u);
  EXPECT_EQ(delta.tool_calls[0].name, "f");
  EXPECT_EQ(stream.feed("</｜DSML｜tool_calls>more").content, "");
  EXPECT_EQ(stream.finish().content, "");
}

TEST(AssistantStream, StrayTagsAreNotContent) {
  for (const std::string_view tag :
       {"</｜DSML｜invoke>", "<｜DSML｜parameter name=\"a\">v", "< |DSML| foo>", "</｜DSML｜",
        "<｜DSM", "<|D", "｜DSML｜", "｜DSML｜>"}) {
    const auto turn = parse_assistant("text" + std::string(tag), ThinkingMode::kChat);
    EXPECT_EQ(turn.content, "text") << tag;
  }
  EXPECT_EQ(parse_assistant("a <| b", ThinkingMode::kChat).content, "a <| b");
  EXPECT_EQ(parse_assistant("a <|", ThinkingMode::kChat).content, "a <|");
}

TEST(AssistantStream, LongAnswersTakeLinearTime) {
  std::string text = "<｜DSML｜invoke name=\"f\"><｜DSML｜parameter name=\"a\">";
  for (int i = 0; i < 300000; ++i) text += "< ";
  for (int i = 0; i < 20000; ++i) text += "</｜DSML｜parameter><｜DSML｜parameter name=\"a\">";
  text += "</｜DSML｜parameter></｜DSML｜invoke>";
  EXPECT_EQ(parse_assistant(text, ThinkingMode::kChat).tool_calls.size(), 1u);
}

}  // namespace
}  // namespace quatrain
